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
