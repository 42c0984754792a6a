"""The part of ai.onnx.ml that scikit-learn's linear models and scalers export to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wsb_engine.formats.graph.kernels.norms import normalised, vector_norm
from wsb_engine.formats.graph.operators.registry import ML, Call, operator


@operator("Scaler", domain=ML)
def scaler(call: Call, x: Tensor) -> Tensor:
    """(x − offset) · scale, by feature."""
    offset: tuple[float, ...] = call.get("offset", (0.0,))
    scale: tuple[float, ...] = call.get("scale", (1.0,))
    x = x.to(call.working)
    return (x - x.new_tensor(offset)) * x.new_tensor(scale)


@operator("Normalizer", domain=ML)
def normalizer(call: Call, x: Tensor) -> Tensor:
    """Divide each row by its norm, or by its largest element (which may be negative), unless that is 0.

    ONNX defines MAX without absolute values, and onnxruntime computes that; scikit-learn divides by max |x|.
    """
    x = x.to(call.working)
    kind = call.get("norm", "MAX")
    if kind in ("L1", "L2"):
        norm = vector_norm(x, 1 if kind == "L1" else 2, [-1], keepdim=True)
    elif kind == "MAX":
        norm = x.amax(-1, keepdim=True)
    else:
        raise call.wrong(f"norm {kind!r} is unknown")
    return normalised(x, norm)


@operator("ArrayFeatureExtractor", domain=ML)
def array_feature_extractor(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Columns by index."""
    return torch.index_select(x, -1, indices.reshape(-1).to(torch.int64))


@operator("Imputer", domain=ML)
def imputer(call: Call, x: Tensor) -> Tensor:
    """Replace one value, usually NaN, by another for each feature."""
    whole: tuple[int, ...] = call.get("imputed_value_int64s", ())
    values: tuple[float, ...] | tuple[int, ...] = whole or call.get("imputed_value_floats", (0.0,))
    replaced = call.get("replaced_value_int64", 0) if whole else call.get("replaced_value_float", 0.0)
    missing = x.isnan() if math.isnan(replaced) else x == replaced
    return torch.where(missing, x.new_tensor(values), x)


@operator("Binarizer", domain=ML)
def binarizer(call: Call, x: Tensor) -> Tensor:
    return (x > call.get("threshold", 0.0)).to(x.dtype)


@operator("OneHotEncoder", domain=ML)
def one_hot_encoder(call: Call, x: Tensor) -> Tensor:
    """Return 1 at the position of each value in a list of integers; nothing but zeros for other values."""
    categories: tuple[int, ...] = call.get("cats_int64s", ())
    if not categories:
        raise call.unsupported("an encoding of strings")
    return (x.unsqueeze(-1) == x.new_tensor(categories)).to(call.working)


@operator("LabelEncoder", domain=ML)
def label_encoder(call: Call, x: Tensor) -> Tensor:
    """Replace each number of a list by its value, and numbers that are not in it by a default."""
    return _encoded(call, x, of_nan=None)


@operator("LabelEncoder", domain=ML, since=4)
def label_encoder_of_nan(call: Call, x: Tensor) -> Tensor:
    """Replace NaN too by its value, if that is in the list."""
    return _encoded(call, x, of_nan=next((value for key, value in _pairs(call) if math.isnan(key)), None))


def _encoded(call: Call, x: Tensor, *, of_nan: float | None) -> Tensor:
    pairs, stored = _pairs(call), call.node.attributes.get("keys_tensor")
    whole, exact = all(isinstance(value, int) for _, value in pairs), all(isinstance(key, int) for key, _ in pairs)
    dtype = torch.int64 if whole else call.working
    default = x.new_tensor(_default(call, whole=whole), dtype=dtype)
    table = {key: value for key, value in reversed(pairs) if not math.isnan(key)}  # of equal keys the first counts
    # As the file rounds them: in float64 no number of a batch would equal 0.1 of the file.
    near = x.to(torch.int64 if exact else stored.dtype if isinstance(stored, Tensor) else torch.float32).contiguous()
    made = default.expand(x.shape)
    if table:
        keys, values = zip(*sorted(table.items()), strict=True)
        ordered = near.new_tensor(keys)
        place = torch.searchsorted(ordered, near).clamp(max=len(keys) - 1)
        made = torch.where(ordered[place] == near, x.new_tensor(values, dtype=dtype)[place], default)
    return made if of_nan is None else torch.where(near.isnan(), x.new_tensor(of_nan, dtype=dtype), made)


def _pairs(call: Call) -> list[tuple[float, float]]:
    """Return numbers and their values, integers as such."""
    keys, values = _numbers(call, "keys"), _numbers(call, "values")
    if len(keys) != len(values) or not keys:
        raise call.wrong(f"{len(keys)} keys have {len(values)} values")
    return list(zip(keys, values, strict=True))


def _numbers(call: Call, kind: str) -> list[float]:
    attributes = call.node.attributes
    tensor = attributes.get(f"{kind}_tensor")
    if isinstance(tensor, Tensor):
        return tensor.reshape(-1).tolist()
    found = attributes.get(f"{kind}_int64s") or attributes.get(f"{kind}_floats")
    if not found:
        raise call.unsupported("an encoding of strings")
    return list(found)


def _default(call: Call, *, whole: bool) -> float:
    tensor = call.node.attributes.get("default_tensor")
    if isinstance(tensor, Tensor):
        if tensor.numel() != 1:
            raise call.wrong(f"the default has {tensor.numel()} values")
        return tensor.item()
    return call.get("default_int64", -1) if whole else call.get("default_float", -0.0)
