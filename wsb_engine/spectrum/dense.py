"""The whole spectrum, from the Hessian formed column by column."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wsb_engine import devices
from wsb_engine.curvature.products.autodiff import HessianProduct
from wsb_engine.errors import ResourceError, finite
from wsb_engine.memory import ran_out

BLOCK = 512
"""Rows and columns of a block that is symmetrised at a time."""


_UNSOLVED = (NotImplementedError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
"""Errors of a solver that is not there, or does not converge."""


@dataclass(frozen=True)
class DenseSpectrum:
    """All eigenvalues of H, and the moments of the same matrix."""

    eigenvalues: Tensor
    """(P,) float64, descending."""
    trace: float
    frobenius_squared: float
    asymmetry: float
    """max |H − Hᵀ| / max |H| before H was symmetrised."""
    eigenvectors: Tensor | None = None
    """(P, P) float64, orthonormal columns in the order of the eigenvalues; None unless asked for."""


def form_hessian(
    operator: HessianProduct, *, memory: int, progress: Callable[[float, int], None] = lambda *_: None
) -> Tensor:
    """Form H of shape (P, P), not symmetrised, in float64 on the operator's device.

    Args:
        operator: Computes H·V for blocks of columns V.
        memory: Bytes of working memory; H takes 8 P², and the eigensolver twice that in addition.
        progress: Called with the fraction of columns done and the number of products so far; may raise to stop.

    Raises:
        ResourceError: ``memory_limit``, or ``overflow`` if the norm of H is not finite.
    """
    P = operator.parameters
    needed = 3 * 8 * P * P
    if needed > memory:
        raise ResourceError(
            f"the dense spectrum of {P:,} parameters needs {needed:,} bytes, the memory limit is {memory:,}",
            code="memory_limit",
            advice=f"Set memory_limit to at least {needed}, select fewer parameters, or set spectrum to top or none.",
            needed=needed,
            limit=memory,
        )
    H = torch.empty(P, P, dtype=torch.float64, device=operator.device)
    stop = 0
    while stop < P:
        start, stop = stop, min(stop + operator.columns, P)
        H[:, start:stop] = operator(operator.basis(start, stop))
        progress(stop / P, stop)
    finite(float(torch.linalg.vector_norm(H, torch.inf)), "the Hessian")
    return H


def dense_spectrum(H: Tensor, *, eigenvectors: bool = False) -> DenseSpectrum:
    """Compute the eigenvalues of (H + Hᵀ)/2; overwrites H.

    Args:
        H: (P, P) float64. Its device solves the problem, or else the CPU: if the device has no solver, or no memory for
            it.
        eigenvectors: True to compute eigenvectors too, which takes several times as long.

    Raises:
        torch.linalg.LinAlgError: if the solver does not converge.
    """
    largest = float(torch.linalg.vector_norm(H, torch.inf))
    difference = _symmetrise(H)
    asymmetry = difference / largest if largest else 0.0
    values, vectors = _solved(H, eigenvectors)
    return DenseSpectrum(
        eigenvalues=values.flip(0).cpu(),
        trace=float(H.trace()),
        frobenius_squared=float(torch.linalg.vector_norm(H) ** 2),
        asymmetry=asymmetry,
        eigenvectors=None if vectors is None else vectors.flip(1).cpu(),
    )


def _solved(H: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor | None]:
    """Return ascending eigenvalues and, if asked for, eigenvectors in columns."""
    if H.device.type == "cpu":
        return _solved_here(H, eigenvectors)
    try:
        return _solved_here(H, eigenvectors)
    except (NotImplementedError, RuntimeError) as error:  # a solver's own failures are RuntimeErrors too
        if not (isinstance(error, _UNSOLVED) or devices.lacks(error) or ran_out(error)):
            raise
    devices.release(H.device)
    return _solved_here(H.cpu(), eigenvectors)


def _solved_here(H: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor | None]:
    if not eigenvectors:
        return torch.linalg.eigvalsh(H), None
    values, vectors = torch.linalg.eigh(H)
    return values, vectors


def _symmetrise(H: Tensor) -> float:
    """Overwrite H with (H + Hᵀ)/2, in pairs of blocks that fit in caches; return max |H − Hᵀ| of the original."""
    starts, difference = range(0, len(H), BLOCK), H.new_zeros(())
    for i in starts:
        for j in starts[i // BLOCK :]:
            upper, lower = H[i : i + BLOCK, j : j + BLOCK], H[j : j + BLOCK, i : i + BLOCK]
            mirrored = lower.T.clone()
            difference = torch.maximum(difference, torch.linalg.vector_norm(upper - mirrored, torch.inf))
            mean = mirrored.add_(upper).mul_(0.5)
            upper.copy_(mean)
            lower.copy_(mean.T)
    return float(difference)
