"""tr G against Jacobians written out, and against the trace where they must be equal."""

from __future__ import annotations

import pytest
import torch
from support.golden import NAMES, Golden

import wsb_engine as wsb
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem, pose
from wsb_engine.curvature.gauss_newton import general_trace, mlp_trace


def posed(name: str, **options: object) -> Problem:
    case, chosen = Golden(name), wsb.Options(**options)
    return pose(wsb.load_model(case.onnx()), wsb.Batch(case.x, case.y), chosen, Monitor(chosen, None, 0.0))


def written_out(problem: Problem) -> float:
    objective = problem.objective
    rows = slice(0, len(objective.targets.weights))
    inputs = objective.chunk_inputs(rows)
    jacobian = torch.func.jacrev(lambda selected: objective.function({**objective.fixed, **selected}, inputs))(
        dict(objective.selected)
    )
    J = torch.cat([part.flatten(2) for part in jacobian.values()], dim=2)
    z = objective.logits(rows).double()
    p = torch.sigmoid(z) if z.shape[1] == 1 else torch.softmax(z, dim=1)
    S = (p * (1 - p)).unsqueeze(2) if z.shape[1] == 1 else torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    return objective.scale * float(torch.einsum("s,scp,scd,sdp->", objective.targets.weights, J, S, J))


@pytest.mark.parametrize("name", NAMES)
def test_both_methods_equal_the_jacobians_written_out(name: str) -> None:
    problem = posed(name)
    want = written_out(problem)
    assert problem.structure is not None
    weights = problem.objective.targets.weights
    assert mlp_trace(problem.structure.net, problem.tile, weights) == pytest.approx(want, rel=1e-11)
    assert general_trace(problem.objective, problem.logits.classes) == pytest.approx(want, rel=1e-11)


def test_a_subset_of_parameters_counts_alone() -> None:
    problem = posed("deep_tanh", parameters=("w1", "b2"))
    assert problem.structure is not None
    got = mlp_trace(problem.structure.net, problem.tile, problem.objective.targets.weights)
    assert got == pytest.approx(written_out(problem), rel=1e-11)


def test_without_hidden_layers_it_is_the_trace() -> None:
    case = Golden("linear_softmax")
    moments = wsb.analyze(wsb.load_model(case.onnx()), wsb.Batch(case.x, case.y)).moments
    assert moments is not None
    assert moments.gauss_newton_trace == pytest.approx(moments.trace, rel=1e-12)


def test_jacobians_that_are_too_many_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsb_engine.curvature.gauss_newton.WORK", 10)
    problem = posed("deep_tanh")
    assert general_trace(problem.objective, problem.logits.classes) is None
