"""Random vectors by a counter-based generator: the same on every device, drawn there in tiles.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, *Parallel random numbers: as easy as 1, 2, 3*, SC'11) turns a counter
and a key into 128 random bits, which give two numbers. The key is the seed; the counter is the place in the vector,
with the number of the stream above it. So streams do not overlap, and no number depends on how many were drawn before.

A number is the normal quantile of 52 bits (Wichura 1988, *Algorithm AS 241*, Applied Statistics 37), with a relative
error of about 1e-15. Only +, ×, ÷ and √ are used, one at a time: these round alike everywhere, unlike a library's
logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
TILE = {"cpu": 1 << 15}
"""Counters at a time, for two numbers each: what the caches of a CPU hold."""
LARGE_TILE = 1 << 21
"""The same for other devices."""
BITS = 52
CENTRE, CENTRE_SQUARED = 0.425, 0.180625
"""|p − ½| up to which the first approximation holds, and its square."""
FAR = 5.0
"""√(−ln p) beyond which the third one holds."""
CENTRAL = (
    (
        *(2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4),
        *(1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0),
    ),
    (
        *(5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4),
        *(5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0),
    ),
)
TAIL = (
    (
        *(7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0),
        *(3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0),
    ),
    (
        *(1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1),
        *(6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0),
    ),
)
FAR_TAIL = (
    (
        *(2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2),
        *(2.96560571828504891230e-1, 1.78482653991729133580e0, 5.46378491116411436990e0, 6.65790464350110377720e0),
    ),
    (
        *(2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4),
        *(1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0),
    ),
)
"""Numerators and denominators of the quantile's rational approximations, highest power first."""
LOG_TERMS = 11
"""Terms of the series of the logarithm, whose ratio is at most 0.03."""


def gaussian(count: int, seed: int, stream: int = 0, device: torch.device | None = None) -> Tensor:
    """Draw standard normal numbers, (count,) float64.

    Args:
        count: How many.
        seed: Key of the generator; 64 bits of it count.
        stream: Number of the vector among those of this seed; 64 bits.
        device: Where to draw; the CPU by default.
    """
    total = torch.empty(count, dtype=torch.float64, device=device)
    for piece, centred in _tiles(total, seed, stream):
        piece.copy_(_quantile(centred)[: len(piece)])
    return total


def uniform(count: int, seed: int, stream: int = 0, device: torch.device | None = None) -> Tensor:
    """Draw numbers uniform in (−½, ½), (count,) float64; arguments as for ``gaussian``."""
    total = torch.empty(count, dtype=torch.float64, device=device)
    for piece, centred in _tiles(total, seed, stream):
        piece.copy_(centred[: len(piece)])
    return total


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Return the four 32-bit words that belong to each counter.

    Args:
        counter: Four int64 tensors of one shape, with 32 bits in each number; overwritten.
        key: Two 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The upper halves of c1 and c3 hold bits of no meaning, which the masks below remove.
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = (second >> 32).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(MASK)
        c2 = (first >> 32).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(MASK)
        c1, c3 = second, first
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1.bitwise_and_(MASK), c2, c3.bitwise_and_(MASK)


def _tiles(total: Tensor, seed: int, stream: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pieces of a vector, each with (m + ½)/2⁵² − ½ for as many or one more random m of 52 bits."""
    size = TILE.get(total.device.type, LARGE_TILE)
    for start in range(0, len(total), 2 * size):
        piece = total[start : start + 2 * size]
        place = torch.arange(start // 2, start // 2 + (len(piece) + 1) // 2, device=total.device)
        high = torch.full_like(place, stream & MASK), torch.full_like(place, stream >> 32 & MASK)
        words = philox((place & MASK, place >> 32, *high), (seed & MASK, seed >> 32 & MASK))
        pairs = (words[:2], words[2:])
        bits = torch.stack([(first << BITS - 32) ^ (second >> 64 - BITS) for first, second in pairs], dim=1)
        yield piece, bits.flatten().double().add_(0.5 - 2.0 ** (BITS - 1)).mul_(2.0**-BITS)


def _quantile(centred: Tensor) -> Tensor:
    """Compute the normal quantile of ½ + centred, an odd function; overwrites its argument."""
    z = _ratio(CENTRAL, CENTRE_SQUARED - centred * centred).mul_(centred)
    tails = torch.nonzero(centred.abs() > CENTRE).squeeze(1)
    q = centred[tails]
    r = _log(0.5 - q.abs()).neg_().sqrt_()
    size = _ratio(TAIL, r - 1.6)
    far = torch.nonzero(r > FAR).squeeze(1)
    if len(far):
        size[far] = _ratio(FAR_TAIL, r[far] - FAR)
    z[tails] = torch.where(q < 0, -size, size)
    return z


def _ratio(coefficients: tuple[Sequence[float], Sequence[float]], x: Tensor) -> Tensor:
    """Evaluate a rational function by Horner's rule; a product and a sum at a time, lest a device fuse them."""
    numerator, denominator = (_polynomial(each, x) for each in coefficients)
    return numerator.div_(denominator)


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    first, second, *others = coefficients
    total = (x * first).add_(second)
    for coefficient in others:
        total.mul_(x).add_(coefficient)
    return total


def _log(p: Tensor) -> Tensor:
    """Compute ln p for 0 < p < 1 as 2 artanh((m − 1)/(m + 1)) + e ln 2, with m in [√½, √2)."""
    mantissa, exponent = torch.frexp(p)
    small = mantissa < math.sqrt(0.5)
    mantissa, exponent = torch.where(small, 2 * mantissa, mantissa), (exponent - small.int()).double()
    s = (mantissa - 1) / (mantissa + 1)
    series = _polynomial([2 / (2 * n + 1) for n in range(LOG_TERMS - 1, -1, -1)], s * s)
    return series.mul_(s).add_(exponent.mul_(math.log(2)))
