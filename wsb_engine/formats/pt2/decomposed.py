"""Operators of decomposed programs, in the terms of those that ``torch.nn.functional`` calls.

``run_decompositions`` and export itself replace some operators by ones that give out what a backward pass needs, or
that are free of aliases. The interpreter knows the originals, with their first output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fixed:
    """An argument that is always the same."""

    value: Any


@dataclass(frozen=True)
class Form:
    """How to call the original."""

    name: str
    overload: str
    arguments: tuple[str | Fixed, ...]
    """Names of the decomposed operator's arguments, in the order of the original's."""


_BATCH_NORM = Form(
    "batch_norm",
    "",
    ("input", "weight", "bias", "running_mean", "running_var", Fixed(False), "momentum", "eps", Fixed(False)),
)


def _pool(dimensions: int) -> Form:
    arguments = ("self", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    return Form(f"max_pool{dimensions}d", "", arguments)


def _attention(mask: str | Fixed) -> Form:
    arguments = ("query", "key", "value", mask, "dropout_p", "is_causal", "scale", Fixed(False))
    return Form("scaled_dot_product_attention", "", arguments)


_BAG = Form(
    "embedding_bag",
    "",
    ("weight", "indices", "offsets", "scale_grad_by_freq", "mode", "sparse", "per_sample_weights",
     "include_last_offset", "padding_idx"),
)  # fmt: skip


CANONICAL: Mapping[str, Form] = {
    "_adaptive_avg_pool2d": Form("adaptive_avg_pool2d", "", ("self", "output_size")),
    "_adaptive_avg_pool3d": Form("adaptive_avg_pool3d", "", ("self", "output_size")),
    "_batch_norm_no_update": _BATCH_NORM,
    "_cdist_forward": Form("cdist", "", ("x1", "x2", "p", "compute_mode")),
    "_embedding_bag": _BAG,
    "_embedding_bag_forward_only": _BAG,
    "_euclidean_dist": Form("cdist", "", ("x1", "x2", Fixed(2.0), Fixed(None))),
    "_fused_rms_norm": Form("rms_norm", "", ("input", "normalized_shape", "weight", "eps")),
    "_local_scalar_dense": Form("item", "", ("self",)),
    "_log_softmax": Form("log_softmax", "int", ("self", "dim", Fixed(None))),
    "_native_batch_norm_legit": _BATCH_NORM,
    "_native_batch_norm_legit.no_stats": Form(
        "instance_norm",
        "",
        ("input", "weight", "bias", Fixed(None), Fixed(None), Fixed(True), "momentum", "eps", Fixed(False)),
    ),
    "_native_batch_norm_legit_no_training": _BATCH_NORM,
    "_scaled_dot_product_efficient_attention": _attention("attn_bias"),
    "_scaled_dot_product_flash_attention": _attention(Fixed(None)),
    "_scaled_dot_product_flash_attention_for_cpu": _attention("attn_mask"),
    "_softmax": Form("softmax", "int", ("self", "dim", Fixed(None))),
    "_to_copy": Form("to", "dtype", ("self", "dtype", Fixed(False), Fixed(False), Fixed(None))),
    "_unsafe_index": Form("index", "Tensor", ("self", "indices")),
    "_unsafe_view": Form("view", "", ("self", "size")),
    "empty.memory_format": Form("zeros", "", ("size", "dtype", "layout", "device", "pin_memory")),
    "empty_like": Form("zeros_like", "", ("self", "dtype", "layout", "device", "pin_memory", "memory_format")),
    "max_pool2d_with_indices": _pool(2),
    "max_pool3d_with_indices": _pool(3),
    "native_batch_norm": _BATCH_NORM,
    "native_dropout": Form("dropout", "", ("input", "p", "train")),
    "native_group_norm": Form("group_norm", "", ("input", "group", "weight", "bias", "eps", Fixed(False))),
    "native_layer_norm": Form("layer_norm", "", ("input", "normalized_shape", "weight", "bias", "eps", Fixed(False))),
    "new_empty": Form("new_zeros", "", ("self", "size", "dtype", "layout", "device", "pin_memory")),
    "sym_numel": Form("numel", "", ("self",)),
    "sym_size.int": Form("size", "int", ("self", "dim")),
}
"""Name of a decomposed operator, with its overload if only that one is meant → its original.

The elements of an empty tensor are written before they are read, so it may as well be zero.
"""
