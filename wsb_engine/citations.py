"""The published theorems and methods that the numbers of a report rest on.

Only sources of what the report holds are cited. What follows from no publication is derived in mathematics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from wsb_engine.bounds.wolkowicz_styan import WOLKOWICZ_STYAN
from wsb_engine.optimizer import DESCENT
from wsb_engine.report import Citation, Enclosure, Kind, Report


class Source(NamedTuple):
    """A publication, and which parts of a report rest on it."""

    key: str
    """Stable identifier in reports."""
    reference: str
    url: str
    supports: Callable[[Report], list[str]]
    """Returns paths of the report, such as ``enclosure.lambda_max``; empty if it was not used."""


def citations(report: Report) -> list[Citation]:
    """List the sources of a report, those of the bounds first."""
    found = ((source, source.supports(report)) for source in SOURCES)
    return [
        Citation(key=source.key, reference=source.reference, url=source.url, supports=paths)
        for source, paths in found
        if paths
    ]


def _closed_form(report: Report) -> list[str]:
    """Mathematics.md, section 3, for any depth; the paper has networks of three layers."""
    moments = ["moments"] if report.moments is not None and report.moments.method == "closed_form" else []
    # These exist only in closed form.
    moments += ["scaled.moments"] if report.scaled is not None and report.scaled.moments is not None else []
    names = [name for name in ("blocks", "orthogonality") if getattr(report, name) is not None]
    return moments + (["layers"] if _has_bounds_of_layers(report) else []) + names


def _has_bounds_of_layers(report: Report) -> bool:
    return any(layer.wolkowicz_styan_upper is not None for layer in report.layers or [])


def _two_traces(report: Report) -> list[str]:
    """Mathematics.md, sections 2 and 5."""
    paths = [f"bounds_list.{bound.name}" for bound in report.named_bounds if bound.name == WOLKOWICZ_STYAN.name]
    deflates = report.moments is not None and report.moments.exact and not _spans_everything(report)
    if report.enclosure is not None and report.enclosure.basis != "three_vectors" and deflates:
        # In float64 an end by exact moments is certain; in float32 the tighter of both bounds is reported.
        certain: tuple[Kind, ...] = ("deterministic",)
        kinds = certain if report.engine.dtype == "float64" else (*certain, "probabilistic")
        paths += _ends(report.enclosure, kinds)
    if report.spectrum is not None and any(report.spectrum.upper_bounds or []) and deflates:
        paths.append("spectrum.upper_bounds")
    if report.scaled is not None and report.scaled.wolkowicz_styan is not None:
        paths.append("scaled.wolkowicz_styan")
        paths += ["scaled.lambda_max"] if report.scaled.lambda_max.kind == "deterministic" else []
    paths += ["layers"] if _has_bounds_of_layers(report) else []
    # Of other layers than those of an MLP no moments are known.
    layers = _certified(report, "deterministic", ("layers",))
    return paths if "layers" in paths else paths + layers


def _spans_everything(report: Report) -> bool:
    """Return whether a Krylov basis may have spanned the whole space, so that nothing was left to bound."""
    products = report.enclosure.hessian_vector_products if report.enclosure is not None else 0
    return products >= report.model.parameters.count


def _start_vector(report: Report) -> list[str]:
    """Mathematics.md, section 6; the search of section 7 for missing eigenvalues ends by the same bound."""
    paths = [] if report.enclosure is None else _ends(report.enclosure, ("probabilistic",))
    asked = {"scaled": report.scaled, "optimizer": report.optimizer}
    paths += [f"{name}.lambda_max" for name, part in asked.items() if part and part.lambda_max.kind == "probabilistic"]
    paths += _certified(report, "probabilistic", ("layers", "groups", "classes", "gauss_newton"))
    if _certain_cosines(report):
        paths.append("alignment")
    # A density alone lists no eigenvalue.
    searched = report.spectrum is not None and report.spectrum.method == "lanczos" and report.spectrum.eigenvalues
    return paths + (["spectrum.eigenvalues"] if searched else [])


def _ends(enclosure: Enclosure, kinds: Sequence[Kind]) -> list[str]:
    """Return the paths of the ends of these kinds."""
    ends = {"lambda_max": enclosure.lambda_max, "lambda_min": enclosure.lambda_min}
    return [f"enclosure.{name}" for name, end in ends.items() if end.kind in kinds]


def _certified(report: Report, kind: Kind, names: Sequence[str]) -> list[str]:
    """Return the parts among these that have a certified interval of this kind."""
    halves = [] if report.gauss_newton is None else [report.gauss_newton.lambda_max, report.gauss_newton.remainder]
    intervals = {
        "layers": [each.lambda_max for each in report.layers or []],
        "groups": [each.lambda_max for each in report.groups or []],
        "classes": [each.lambda_max for each in report.classes or []],
        "gauss_newton": halves,
    }
    return [name for name in names if any(each is not None and each.kind == kind for each in intervals[name])]


def _certain_cosines(report: Report) -> bool:
    found = [] if report.alignment is None else report.alignment.eigenvectors
    return any(each.cosine_error is not None for each in found)


def _cosines(report: Report) -> list[str]:
    """Mathematics.md, section 15."""
    return ["alignment"] if _certain_cosines(report) else []


def _focal(report: Report) -> list[str]:
    return ["loss"] if report.loss.kind == "focal" else []


def _products(report: Report) -> list[str]:
    """Mathematics.md, section 4."""
    moments = report.moments is not None and report.moments.method in ("basis", "probes")
    used = {
        "moments": moments,
        "enclosure": report.enclosure is not None,
        "spectrum": report.spectrum is not None,
        "scaled": report.scaled is not None,
        "optimizer": report.optimizer is not None,
        "layers": any(layer.lambda_max is not None for layer in report.layers or []),
        "groups": report.groups is not None,
        "classes": report.classes is not None,
        "gauss_newton": report.gauss_newton is not None,
        "alignment": report.alignment is not None,
    }
    return [name for name, is_used in used.items() if is_used]


def _gauss_newton(report: Report) -> list[str]:
    has_trace = report.moments is not None and report.moments.gauss_newton_trace is not None
    paths = ["moments.gauss_newton_trace"] if has_trace else []
    return paths + (["gauss_newton"] if report.gauss_newton is not None else [])


def _density(report: Report) -> list[str]:
    return ["spectrum.density"] if report.spectrum is not None and report.spectrum.density is not None else []


def _population(report: Report) -> list[str]:
    """Mathematics.md, section 14."""
    return [] if report.population is None else ["population"]


def _cross_fitting(report: Report) -> list[str]:
    return [] if report.population is None else ["population.lambda_max.lower", "population.cross_fitted"]


def _filters(report: Report) -> list[str]:
    return ["scaled"] if report.scaled is not None and report.scaled.scaling == "filter" else []


def _adaptive_sharpness(report: Report) -> list[str]:
    return ["scaled"] if report.scaled is not None and report.scaled.scaling == "elementwise" else []


def _edge(report: Report) -> list[str]:
    return ["optimizer"] if report.optimizer is not None and report.optimizer.kind in DESCENT else []


def _adaptive_edge(report: Report) -> list[str]:
    return ["optimizer"] if report.optimizer is not None and report.optimizer.kind not in DESCENT else []


SOURCES = (
    Source(
        "omae_2026",
        "Omae et al. (2026). Wolkowicz-Styan Upper Bound on the Hessian Eigenspectrum for Cross-Entropy Loss in "
        "Nonlinear Smooth Neural Networks. arXiv:2604.10202.",
        "https://arxiv.org/abs/2604.10202",
        _closed_form,
    ),
    Source(
        "wolkowicz_styan_1980",
        "Wolkowicz, H., Styan, G. P. H. (1980). Bounds for eigenvalues using traces. "
        "Linear Algebra and its Applications 29, 471–506.",
        "https://doi.org/10.1016/0024-3795(80)90258-X",
        _two_traces,
    ),
    Source(
        "van_dorsselaer_2000",
        "van Dorsselaer, J. L. M., Hochstenbach, M. E., van der Vorst, H. A. (2000). Computing probabilistic bounds "
        "for extreme eigenvalues of symmetric matrices with the Lanczos method. SIAM Journal on Matrix Analysis and "
        "Applications 22, 837–852.",
        "https://doi.org/10.1137/S0895479800366859",
        _start_vector,
    ),
    Source(
        "pearlmutter_1994",
        "Pearlmutter, B. A. (1994). Fast exact multiplication by the Hessian. Neural Computation 6, 147–160.",
        "https://doi.org/10.1162/neco.1994.6.1.147",
        _products,
    ),
    Source(
        "schraudolph_2002",
        "Schraudolph, N. N. (2002). Fast curvature matrix-vector products for second-order gradient descent. "
        "Neural Computation 14, 1723–1738.",
        "https://doi.org/10.1162/08997660260028683",
        _gauss_newton,
    ),
    Source(
        "davis_kahan_1970",
        "Davis, C., Kahan, W. M. (1970). The rotation of eigenvectors by a perturbation. III. "
        "SIAM Journal on Numerical Analysis 7, 1–46.",
        "https://doi.org/10.1137/0707001",
        _cosines,
    ),
    Source(
        "lin_2017",
        "Lin, T.-Y., Goyal, P., Girshick, R., He, K., Dollár, P. (2017). Focal Loss for Dense Object Detection. "
        "IEEE International Conference on Computer Vision, 2980–2988.",
        "https://arxiv.org/abs/1708.02002",
        _focal,
    ),
    Source(
        "golub_meurant_2010",
        "Golub, G. H., Meurant, G. (2010). Matrices, Moments and Quadrature with Applications. "
        "Princeton University Press.",
        "https://doi.org/10.1515/9781400833887",
        _density,
    ),
    Source(
        "ghorbani_2019",
        "Ghorbani, B., Krishnan, S., Xiao, Y. (2019). An Investigation into Neural Net Optimization via Hessian "
        "Eigenvalue Density. International Conference on Machine Learning, 2232–2241.",
        "https://arxiv.org/abs/1901.10159",
        _density,
    ),
    Source(
        "hall_1992",
        "Hall, P. (1992). On the Removal of Skewness by Transformation. "
        "Journal of the Royal Statistical Society, Series B 54, 221–228.",
        "https://doi.org/10.1111/j.2517-6161.1992.tb01876.x",
        _population,
    ),
    Source(
        "bayle_2020",
        "Bayle, P., Bayle, A., Janson, L., Mackey, L. (2020). Cross-validation Confidence Intervals for Test Error. "
        "Advances in Neural Information Processing Systems 33, 16339–16350.",
        "https://arxiv.org/abs/2007.12671",
        _cross_fitting,
    ),
    Source(
        "li_2018",
        "Li, H., Xu, Z., Taylor, G., Studer, C., Goldstein, T. (2018). Visualizing the Loss Landscape of Neural Nets. "
        "Advances in Neural Information Processing Systems 31.",
        "https://arxiv.org/abs/1712.09913",
        _filters,
    ),
    Source(
        "kwon_2021",
        "Kwon, J., Kim, J., Park, H., Choi, I. K. (2021). ASAM: Adaptive Sharpness-Aware Minimization for "
        "Scale-Invariant Learning of Deep Neural Networks. International Conference on Machine Learning, 5905–5914.",
        "https://arxiv.org/abs/2102.11600",
        _adaptive_sharpness,
    ),
    Source(
        "cohen_2021",
        "Cohen, J. M., Kaur, S., Li, Y., Kolter, J. Z., Talwalkar, A. (2021). Gradient Descent on Neural Networks "
        "Typically Occurs at the Edge of Stability. International Conference on Learning Representations.",
        "https://arxiv.org/abs/2103.00065",
        _edge,
    ),
    Source(
        "cohen_2022",
        "Cohen, J. M., Ghorbani, B., Krishnan, S., et al. (2022). Adaptive Gradient Methods at the Edge of Stability. "
        "arXiv:2207.14484.",
        "https://arxiv.org/abs/2207.14484",
        _adaptive_edge,
    ),
)
"""Every source, in the order of reports."""
