"""The words for each consistency check of a report."""

from __future__ import annotations

from wsb_engine.presentation.text import name

WORDS = {
    "mlp_structure": "layers evaluate to the logits of the graph",
    "parity": "logits agree with another runtime",
    "float32_drift": "float32 agrees with float64",
    "trace_within_frobenius": "the trace fits the Frobenius norm",
    "product_symmetry": "products are symmetric",
    "hessian_symmetry": "the dense Hessian is symmetric",
    "hessian_product": "the dense Hessian agrees with products",
    "row_forms": "the curvatures of the rows add up",
    "ritz_pairs": "fresh products confirm the enclosure",
    "enclosure_meets_bound": "the enclosure meets the upper bounds",
    "enclosure_meets_lower_bound": "the enclosure meets the lower bounds",
    "lambda_max_enclosed": "the largest eigenvalue is in its enclosure",
    "lambda_min_enclosed": "the smallest eigenvalue is in its enclosure",
    "spectrum_trace": "eigenvalues add up to the trace",
    "spectrum_frobenius": "squared eigenvalues add up to the squared Frobenius norm",
    "spectrum_frobenius_bound": "squared eigenvalues keep to the bound on the squared Frobenius norm",
    "lambda_max_within_bound": "the largest eigenvalue keeps to its bounds",
    "lambda_min_within_bound": "the smallest eigenvalue keeps to its bounds",
}
"""By name of a check: what holds if it has passed; ``float32_drift`` is of reports before schema 1.2."""


def words(check: str) -> str:
    """Return a check's words; a check that this version does not know goes by its name."""
    return WORDS.get(check) or name(check)
