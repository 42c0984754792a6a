"""Losses of every kind against double backward of torch's own losses, with the reductions that people log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.forms import full
from torch import Tensor, nn

import wsb_engine as wsb
from wsb_engine.analysis.monitor import Monitor
from wsb_engine.analysis.problem import Problem, pose

SAMPLES = 6
CHEAP = wsb.Options(moments="none", enclosure=False)
Criterion = Callable[[Tensor], Tensor]


class Tokens(nn.Module):
    """A tiny language model: each position sees those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(7, 3), nn.Linear(3, 4), nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embed(x)).cumsum(1)))


class Pixels(nn.Module):
    """A classifier of pixels, with the classes on axis 1."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def perceptron(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs))


@dataclass
class Case:
    """A module, a batch, options, and torch's loss of the module's output."""

    module: nn.Module
    x: Tensor
    y: Tensor
    criterion: Criterion
    options: dict[str, object] = field(default_factory=dict)
    weights: Tensor | None = None


def focal(z: Tensor, y: Tensor, gamma: float) -> Tensor:
    """The focal loss of each sample as written by Lin et al."""
    p = z.softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)
    return -((1 - p) ** gamma) * p.log()


def case(name: str) -> Case:
    torch.manual_seed(1)
    x, images = torch.randn(SAMPLES, 4), torch.randn(3, 1, 4, 5)
    y, tokens, pixels = torch.arange(SAMPLES) % 3, torch.randint(7, (SAMPLES, 5)), torch.randint(3, (3, 4, 5))
    v, samples = torch.tensor([0.5, 2.0, 0.0]).double(), torch.rand(SAMPLES).double()
    text = torch.randint(7, (SAMPLES, 5))
    soft = torch.rand(SAMPLES, 3).double().softmax(1)
    three, one = perceptron(3), perceptron(1)
    CE, BCE = nn.CrossEntropyLoss, nn.BCEWithLogitsLoss
    marked, padded, masked = y.clone(), tokens.clone(), pixels.clone()
    marked[2], padded[0], padded[2, 3:], masked[0, 0] = -1, -100, -100, 255
    many, numbers = (torch.rand(SAMPLES, 3) > 0.5).double(), torch.randn(SAMPLES, 3).double()
    u = torch.rand(7).double()

    def of_tokens(labels: Tensor, **settings: object) -> Criterion:
        return lambda z: CE(**settings)(z.flatten(0, 1), labels.flatten())

    def by_hand(z: Tensor) -> Tensor:
        each = CE(weight=v, reduction="none")(z, y)
        return (samples * each).sum() / (samples * v[y]).sum()

    def weighted_tokens(z: Tensor) -> Tensor:
        each = CE(reduction="none")(z.flatten(0, 1), padded.flatten()).view_as(padded)
        return (samples[:, None] * each).sum() / (samples[:, None] * (padded >= 0)).sum()

    cases = {
        "smoothed": Case(three, x, y, lambda z: CE(label_smoothing=0.3)(z, y), {"label_smoothing": 0.3}),
        "smoothed to nearly nothing": Case(
            three, x, y, lambda z: CE(label_smoothing=0.999)(z, y), {"label_smoothing": 0.999}
        ),
        "class weights": Case(three, x, y, lambda z: CE(v)(z, y), {"class_weights": v.tolist()}),
        "class weights and smoothing": Case(
            three,
            x,
            y,
            lambda z: CE(v, label_smoothing=0.1)(z, y),
            {"class_weights": v.tolist(), "label_smoothing": 0.1},
        ),
        "class weights and samples": Case(three, x, y, by_hand, {"class_weights": v.tolist()}, samples),
        "class weights of distributions": Case(
            three,
            x,
            soft,
            lambda z: CE(v, label_smoothing=0.2)(z, soft),
            {"class_weights": v.tolist(), "label_smoothing": 0.2},
        ),
        "ignored": Case(three, x, marked, lambda z: CE(ignore_index=-1)(z, marked), {"ignore_index": -1}),
        "tokens": Case(Tokens(), text, padded, of_tokens(padded)),
        "tokens and samples": Case(Tokens(), text, padded, weighted_tokens, {}, samples),
        "tokens, weighted and smoothed": Case(
            Tokens(),
            text,
            padded,
            of_tokens(padded, weight=u, label_smoothing=0.1),
            {"class_weights": u.tolist(), "label_smoothing": 0.1},
        ),
        "pixels": Case(Pixels(), images, masked, lambda z: CE(ignore_index=255)(z, masked), {"ignore_index": 255}),
        "flat pixels": Case(Pixels(), images, pixels.flatten(1), lambda z: CE()(z, pixels)),
        "binary": Case(
            one, x, y % 2, lambda z: BCE(pos_weight=torch.tensor([3.0]))(z[:, 0], (y % 2).double()), {"pos_weight": 3}
        ),
        "focal": Case(three, x, y, lambda z: focal(z, y, 2.0).mean(), {"loss": "focal"}),
        "focal, weighted, and samples": Case(
            three,
            x,
            y,
            lambda z: (samples * v[y] * focal(z, y, 1.5)).sum() / samples.sum(),
            {"loss": "focal", "focal_gamma": 1.5, "class_weights": v.tolist()},
            samples,
        ),
        "focal, ignored": Case(
            three,
            x,
            marked,
            lambda z: focal(z[marked >= 0], marked[marked >= 0], 0.5).mean(),
            {"loss": "focal", "focal_gamma": 0.5, "ignore_index": -1},
        ),
        "multilabel": Case(
            three,
            x,
            many.long(),
            lambda z: BCE(pos_weight=u[:3])(z, many),
            {"loss": "multilabel", "pos_weight": u[:3].tolist()},
        ),
        "multilabel and samples": Case(
            three,
            x,
            many,
            lambda z: (BCE(reduction="none")(z, many).mean(1) * samples).sum() / samples.sum(),
            {"loss": "multilabel"},
            samples,
        ),
        "pixels of one class": Case(
            Pixels(1),
            images,
            (pixels > 0).double(),
            lambda z: BCE()(z[:, 0], (pixels > 0).double()),
            {"loss": "multilabel"},
        ),
        "numbers": Case(three, x, numbers, lambda z: nn.MSELoss()(z, numbers), {"loss": "squared_error"}),
        "one number": Case(
            one, x, numbers[:, 0], lambda z: nn.MSELoss()(z[:, 0], numbers[:, 0]), {"loss": "squared_error"}
        ),
        "images": Case(
            Pixels(1), images, images * 2, lambda z: nn.MSELoss()(z, 2 * images.double()), {"loss": "squared_error"}
        ),
    }
    return cases[name]


NAMES = (
    *("smoothed", "smoothed to nearly nothing", "class weights", "class weights and smoothing"),
    *("class weights and samples", "class weights of distributions", "ignored", "tokens", "tokens and samples"),
    *("tokens, weighted and smoothed", "pixels", "flat pixels", "binary", "multilabel", "multilabel and samples"),
    *("pixels of one class", "numbers", "one number", "images"),
    *("focal", "focal, weighted, and samples", "focal, ignored"),
)
PRODUCTS_ALONE = {
    *("smoothed", "smoothed to nearly nothing", "class weights", "tokens", "tokens and samples", "flat pixels"),
    *("multilabel", "one number", "images", "focal", "focal, ignored"),
}
"""Variants of which the short form tries the products and not the whole report, which it tries of all others."""


def hessian(given: Case) -> tuple[Tensor, float]:
    """H and the loss by torch alone."""
    module = given.module.double()
    x = given.x.double() if given.x.is_floating_point() else given.x
    theta = nn.utils.parameters_to_vector(module.parameters()).detach()

    def loss(flat: Tensor) -> Tensor:
        pieces = flat.split([p.numel() for p in module.parameters()])
        values = {n: v.view_as(p) for (n, p), v in zip(module.named_parameters(), pieces, strict=True)}
        return given.criterion(torch.func.functional_call(module, values, (x,)))

    return torch.autograd.functional.hessian(loss, theta), loss(theta).item()


def batch_of(given: Case) -> wsb.Batch:
    return wsb.Batch(given.x, given.y, given.weights)


def cheap(given: Case) -> wsb.Options:
    """For the loss alone."""
    return wsb.Options(**given.options, moments="none", enclosure=False)


def posed(given: Case) -> Problem:
    options = wsb.Options(**given.options)
    return pose(wsb.from_module(given.module.double()), batch_of(given), options, Monitor(options, None, 0.0))


@pytest.mark.parametrize("name", [full(name) if name in PRODUCTS_ALONE else name for name in NAMES])
def test_the_report_has_the_loss_moments_and_largest_eigenvalue_of_torch(name: str) -> None:
    given = case(name)
    H, value = hessian(given)
    options = wsb.Options(**given.options, spectrum="dense", moments="auto")
    report = wsb.analyze(wsb.from_module(given.module.double()), batch_of(given), options)
    assert report.loss.value == pytest.approx(value, rel=1e-12)
    assert report.moments is not None
    assert report.moments.trace == pytest.approx(float(H.trace()), rel=1e-10)
    assert report.moments.frobenius_squared == pytest.approx(float(H.square().sum()), rel=1e-10)
    largest = float(torch.linalg.eigvalsh(H)[-1])
    assert report.spectrum is not None
    assert report.spectrum.eigenvalues[0] == pytest.approx(largest, rel=1e-10)
    assert report.enclosure is not None
    ends, rounded = report.enclosure.lambda_max, 1e-14 * float(H.norm())
    assert ends.lower - rounded <= largest <= ends.upper + rounded
    assert not report.failed_checks


@pytest.mark.parametrize("name", [name if name in PRODUCTS_ALONE else full(name) for name in NAMES])
def test_every_product_is_that_of_double_backward(name: str) -> None:
    given = case(name)
    H, _ = hessian(given)
    problem = posed(given)
    scale, V = problem.objective.scale, torch.randn(len(H), 3, generator=torch.Generator().manual_seed(0)).double()
    want = scale * (H @ V)
    for product in (problem.hessian_product(), problem.from_scratch(problem.objective, columns=3)):
        torch.testing.assert_close(product(V), want, rtol=1e-10, atol=1e-12 * float(want.abs().max()))
    twice = torch.stack([problem.objective.twice_backward(v) for v in V.T], dim=1)
    torch.testing.assert_close(twice, want, rtol=1e-10, atol=1e-12 * float(want.abs().max()))


@pytest.mark.parametrize("name", ["tokens", "tokens, weighted and smoothed", "class weights", "pixels of one class"])
def test_chunks_of_any_size_add_up_to_the_mean_of_the_whole_batch(name: str) -> None:
    given = case(name)
    problem = posed(given)
    v = torch.ones(problem.objective.parameters, dtype=torch.float64)
    whole = problem.objective.twice_backward(v)
    parts = problem.objective.twice_backward(v, size=1)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-14 * float(whole.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tokens", "class weights and samples", full("multilabel and samples")])
def test_repeating_the_batch_changes_nothing(name: str) -> None:
    given = case(name)
    options = wsb.Options(**given.options, moments="none", ends="largest")
    once = wsb.analyze(wsb.from_module(given.module.double()), batch_of(given), options)
    twice = wsb.Batch(
        torch.cat([given.x] * 2),
        torch.cat([given.y] * 2),
        None if given.weights is None else torch.cat([given.weights] * 2),
    )
    again = wsb.analyze(wsb.from_module(given.module.double()), twice, options)
    assert again.loss.value == pytest.approx(once.loss.value, rel=1e-13)
    assert again.loss.accuracy == pytest.approx(once.loss.accuracy, rel=1e-13)
    assert once.enclosure is not None
    assert again.enclosure is not None
    assert again.enclosure.lambda_max.upper == pytest.approx(once.enclosure.lambda_max.upper, rel=1e-6)


@pytest.mark.parametrize("name", ["smoothed", "class weights and smoothing", "binary", "multilabel", "numbers"])
def test_a_perceptron_has_a_closed_form_and_proven_rounding_whatever_the_loss(name: str) -> None:
    given = case(name)
    report = wsb.analyze(wsb.from_module(given.module.double()), batch_of(given), wsb.Options(**given.options))
    assert report.moments is not None
    assert report.moments.method == "closed_form"
    assert report.enclosure is not None
    assert report.enclosure.rounding is not None
    assert report.enclosure.rounding.how == "proven"


@pytest.mark.parametrize("name", ["focal", "focal, weighted, and samples"])
def test_a_focal_loss_has_a_closed_form_and_measured_rounding(name: str) -> None:
    given = case(name)
    report = wsb.analyze(wsb.from_module(given.module.double()), batch_of(given), wsb.Options(**given.options))
    assert report.moments is not None
    assert (report.moments.method, report.moments.gauss_newton_trace) == ("closed_form", None)
    assert report.enclosure is not None
    assert report.enclosure.rounding is not None
    assert report.enclosure.rounding.how == "measured"
    assert report.loss.focal_gamma == given.options.get("focal_gamma", 2.0)


def test_the_exponent_of_a_focal_loss_is_refused_for_others() -> None:
    given = case("smoothed")
    with pytest.raises(wsb.OptionsError) as error:
        wsb.analyze(wsb.from_module(given.module.double()), batch_of(given), wsb.Options(focal_gamma=1.0))
    assert error.value.code == "option_not_of_loss"


def test_the_report_says_how_the_loss_was_set_and_what_was_ignored() -> None:
    given = case("tokens, weighted and smoothed")
    report = wsb.analyze(wsb.from_module(given.module.double()), batch_of(given), cheap(given))
    loss = report.loss
    assert (loss.kind, loss.label_smoothing, loss.ignore_index, loss.ignored) == ("token_cross_entropy", 0.1, -100, 7)
    assert loss.class_weights == given.options["class_weights"]
    assert (report.batch.samples, report.batch.positions, report.batch.classes) == (SAMPLES, 5, 7)
    z = given.module(given.x)
    counted = given.y >= 0
    assert loss.accuracy == pytest.approx(float((z.argmax(2) == given.y)[counted].double().mean()))


def test_accuracy_follows_labels_and_not_what_weights_make_of_them() -> None:
    """With these weights and this smoothing, the largest target of each row is the last class, whatever the label."""
    z = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 2.0, 0.0]]).double()
    layer = nn.Linear(3, 3, bias=False).double()
    layer.weight.data.copy_(torch.eye(3))
    options = CHEAP.model_copy(update={"class_weights": (0.01, 0.01, 100.0), "label_smoothing": 0.9})
    assert wsb.analyze(wsb.from_module(layer), wsb.Batch(z, [0, 1, 0]), options).loss.accuracy == pytest.approx(2 / 3)


def test_a_regressor_has_no_accuracy_and_no_classes() -> None:
    given = case("numbers")
    report = wsb.analyze(wsb.from_module(given.module.double()), batch_of(given), cheap(given))
    assert (report.loss.accuracy, report.batch.classes) == (None, None)


@pytest.mark.slow
def test_several_devices_share_tokens_as_one_computes_them() -> None:
    given = case("tokens, weighted and smoothed")
    module = given.module.double()
    one, two = (
        wsb.analyze(
            wsb.from_module(module),
            batch_of(given),
            wsb.Options(**given.options, devices=devices, moments="none", ends="largest"),
        )
        for devices in (None, ("cpu", "cpu"))
    )
    assert one.enclosure is not None
    assert two.enclosure is not None
    assert two.enclosure.lambda_max.lower == pytest.approx(one.enclosure.lambda_max.lower, rel=1e-10)


def test_an_estimate_counts_tokens_though_the_first_samples_are_ignored() -> None:
    given = case("tokens")
    labels = given.y.clone()
    labels[:4] = -100
    estimate = wsb.estimate(wsb.from_module(given.module.double()), wsb.Batch(given.x, labels))
    assert estimate.operations > 0


def test_a_square_output_has_its_classes_last_and_a_warning_says_so() -> None:
    layer = nn.Linear(4, 5).double()
    data = wsb.Batch(torch.randn(2, 5, 4).double(), torch.randint(5, (2, 5)))
    report = wsb.analyze(wsb.from_module(layer), data, CHEAP)
    assert "class_axis_assumed" in [warning.code for warning in report.warnings]
    want = nn.CrossEntropyLoss()(layer(data.x["x"]).flatten(0, 1), torch.from_numpy(data.y).flatten())
    assert report.loss.value == pytest.approx(want.item(), rel=1e-12)


@pytest.mark.parametrize("end", [nn.LogSoftmax(1), nn.Softmax(1), nn.LogSoftmax(2), nn.Softmax(2)])
def test_a_softmax_of_positions_is_taken_off_and_tells_the_axis_of_classes(end: nn.Module) -> None:
    torch.manual_seed(0)
    body = nn.Linear(4, 5).double()
    axis = int(end.dim)  # type: ignore[arg-type]
    x, y = torch.randn(2, 5, 4).double(), torch.randint(5, (2, 5))
    report = wsb.analyze(wsb.from_module(nn.Sequential(body, end)), wsb.Batch(x, y), CHEAP)
    z = body(x) if axis == 2 else body(x).transpose(1, 2)
    assert report.loss.value == pytest.approx(nn.CrossEntropyLoss()(z.flatten(0, 1), y.flatten()).item(), rel=1e-12)


@pytest.mark.parametrize("opaque", [False, True])
def test_probabilities_of_tokens_that_underflow_are_not_read_as_logits(opaque: bool) -> None:
    class Ended(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            p = super().forward(x).softmax(2)
            return p if not opaque or p.sum() > 0 else -p  # tracing can't follow

    torch.manual_seed(1)
    module = Ended(4, 3).double()
    x, y = torch.randn(3, 5, 4, dtype=torch.float64) * 5000, torch.randint(0, 3, (3, 5))
    assert (module(x) == 0).any()
    if opaque:
        assert code_of(module, x, y) == "logits_not_finite"
        return
    report = wsb.analyze(wsb.from_module(module), wsb.Batch(x, y), wsb.Options(moments="none", enclosure=False))
    expected = nn.CrossEntropyLoss()(nn.functional.linear(x, module.weight, module.bias).transpose(1, 2), y)
    assert report.loss.value == pytest.approx(expected.item(), rel=1e-12)


def test_a_sigmoid_of_each_label_is_taken_off() -> None:
    given = case("multilabel and samples")
    _, value = hessian(given)
    ended = nn.Sequential(*given.module.double(), nn.Sigmoid())
    report = wsb.analyze(wsb.from_module(ended), batch_of(given), cheap(given))
    assert report.model.head == "sigmoid"
    assert report.loss.value == pytest.approx(value, rel=1e-12)


def test_a_softmax_at_the_end_of_a_regressor_is_part_of_it() -> None:
    given = case("numbers")
    ended = Case(nn.Sequential(*given.module, nn.Softmax(1)), given.x, given.y, given.criterion, given.options)
    H, value = hessian(ended)
    options = wsb.Options(**ended.options, moments="basis", enclosure=False)
    report = wsb.analyze(wsb.from_module(ended.module), batch_of(ended), options)
    assert report.loss.value == pytest.approx(value, rel=1e-12)
    assert report.moments is not None
    assert report.moments.trace == pytest.approx(float(H.trace()), rel=1e-10)


def code_of(module: nn.Module, x: object, y: object, **options: object) -> str:
    with pytest.raises(wsb.EngineError) as caught:
        wsb.analyze(wsb.from_module(module.double()), wsb.Batch(x, y), wsb.Options(**options))
    assert caught.value.advice
    return caught.value.code


X = np.random.default_rng(0).standard_normal((3, 4))
T = np.random.default_rng(0).standard_normal((3, 2, 4))


@pytest.mark.parametrize(
    ("outputs", "x", "y", "options", "code"),
    [
        (3, X, [0, 1, 2], {"class_weights": (1, 2)}, "class_weights_mismatch"),
        (3, X, [0, 1, 2], {"class_weights": (0, 0, 0)}, "labels_ignored"),
        (3, X, [0, 0, 1], {"class_weights": (0, 0, 1)}, "labels_ignored"),
        (3, X, [7, 7, 7], {"ignore_index": 7}, "labels_ignored"),
        (3, T, np.full((3, 2), -100), {}, "labels_ignored"),
        (3, T, np.array([[0, 1], [2, -1], [0, 1]]), {}, "labels_out_of_range"),
        (3, T, np.array([[0, 1], [2, 3], [0, 1]]), {}, "labels_out_of_range"),
        (3, T, np.zeros((3, 4), int) + 2, {}, "labels_shape"),
        (3, T, np.full((3, 2), 0.5), {"loss": "token_cross_entropy"}, "labels_not_classes"),
        (3, T, [0, 1, 2], {}, "per_token_output"),
        (3, X, np.array([[1, 1, 0]] * 3), {}, "labels_shape"),
        (3, X, np.array([[0.5, 0.6, 0.0]] * 3), {}, "labels_not_probabilities"),
        (3, X, np.array([[1.5, -0.5, 0.0]] * 3), {}, "labels_not_probabilities"),
        (3, X, np.zeros((3, 2, 2)), {}, "labels_shape"),
        (1, X, np.array([0.5, 1.5, 0.2]), {}, "labels_not_probabilities"),
        (3, X, [0, 1, 2], {"pos_weight": 2}, "option_not_of_loss"),
        (1, X, [0, 1, 1], {"class_weights": (1, 2)}, "option_not_of_loss"),
        (1, X, [0, 1, 1], {"pos_weight": (1, 2)}, "pos_weight_mismatch"),
        (1, X, [0, 1, 1], {"loss": "cross_entropy"}, "loss_mismatch"),
        (3, X, [0, 1, 1], {"loss": "binary_cross_entropy"}, "loss_mismatch"),
        (3, X, [0, 1, 1], {"loss": "multilabel"}, "label_classes_mismatch"),
        (3, X, np.full((3, 3), 2.0), {"loss": "multilabel"}, "labels_not_probabilities"),
        (3, X, np.full((3, 2), 2.0), {"loss": "squared_error"}, "label_classes_mismatch"),
        (3, X, np.full((3, 3), 2.0), {"loss": "squared_error", "label_smoothing": 0.1}, "option_not_of_loss"),
        (3, X, np.full((3, 3), 0.0), {"loss": "squared_error", "head": "probabilities"}, "unsupported_head"),
        (3, T, np.zeros((3, 2), int) + 2, {"head": "binary_logit"}, "unsupported_head"),
    ],
)
def test_what_does_not_fit_the_loss_is_refused(
    outputs: int, x: np.ndarray, y: object, options: dict[str, object], code: str
) -> None:
    assert code_of(nn.Linear(4, outputs), x, y, **options) == code


def test_a_softmax_does_not_go_with_labels_by_themselves() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))
    assert code_of(module, X, np.ones((3, 3)), loss="multilabel") == "unsupported_head"


def test_rows_of_probabilities_are_rescaled_to_sum_one_exactly() -> None:
    y = np.array([[0.3, 0.7], [0.1, 0.9], [0.5, 0.5]], dtype=np.float32)
    problem = posed(Case(nn.Linear(4, 2), torch.from_numpy(X), torch.from_numpy(y), torch.sum))
    assert float((problem.objective.targets.rows(slice(None)).sum(dim=1) - 1).abs().max()) < 1e-15


def test_outputs_between_zero_and_one_are_logits_with_a_warning() -> None:
    class Shares(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(super().forward(x)) * 1

    module = Shares(4, 3).double()
    options = CHEAP.model_copy(update={"loss": "multilabel"})
    report = wsb.analyze(wsb.from_module(module), wsb.Batch(X, np.ones((3, 3))), options)
    assert "head_assumed" in [warning.code for warning in report.warnings]
    told = options.model_copy(update={"head": "binary_probability"})
    report = wsb.analyze(wsb.from_module(module), wsb.Batch(X, np.ones((3, 3))), told)
    p = module(torch.from_numpy(X))
    assert report.loss.value == pytest.approx(nn.BCELoss()(p, torch.ones_like(p)).item(), rel=1e-12)


def test_lists_are_taken_from_strict_json_and_from_words() -> None:
    given = '{"class_weights": [1, 2.5], "pos_weight": 3, "devices": ["cpu", "cpu"]}'
    options = wsb.Options.model_validate_json(given, strict=True)
    assert (options.class_weights, options.pos_weight, options.devices) == ((1, 2.5), (3,), ("cpu", "cpu"))
    assert wsb.Options.model_validate({"class_weights": ["1,2.5", "3"]}).class_weights == (1, 2.5, 3)


@pytest.mark.parametrize(
    ("form", "scale"),
    [
        *(("classes", 1e-100), ("tokens", 1e99), full("classes", 1e99), full("tokens", 1e-100)),
        *(full(form, scale) for form in ("classes", "tokens") for scale in (1e-20, 7.0)),
    ],
)
def test_weights_of_classes_count_only_beside_each_other(form: str, scale: float) -> None:
    torch.manual_seed(3)
    module = nn.Linear(4, 3).double()
    x = torch.randn(9, 4, dtype=torch.float64) if form == "classes" else torch.randn(9, 2, 4, dtype=torch.float64)
    y = torch.arange(9) % 3 if form == "classes" else torch.arange(18).reshape(9, 2) % 3
    loss = "cross_entropy" if form == "classes" else "token_cross_entropy"
    reports = [
        wsb.analyze(
            wsb.from_module(module),
            wsb.Batch(x, y),
            wsb.Options(loss=loss, moments="none", class_weights=tuple(factor * w for w in (1, 2, 5))),
        )
        for factor in (1.0, scale)
    ]
    first, second = (report.enclosure.lambda_max for report in reports if report.enclosure is not None)
    assert reports[1].loss.value == pytest.approx(reports[0].loss.value, rel=1e-14)
    assert max(first.lower, second.lower) <= min(first.upper, second.upper)
    assert second.upper == pytest.approx(first.upper, rel=1e-9)


@pytest.mark.parametrize("weight", [5e-324, 1e-320, 1e-101, 1e101, 1e308])
def test_a_weight_that_arithmetic_cannot_carry_is_refused(weight: float) -> None:
    for name in ("class_weights", "pos_weight"):
        with pytest.raises(ValidationError, match="from 1e-100 to 1e\\+100"):
            wsb.Options.model_validate({name: [weight, 1.0]})


def test_labels_that_count_for_next_to_nothing_are_refused() -> None:
    batch = wsb.Batch(X, torch.tensor([0, 0, 0]), weights=[1e-150, 1e-150, 1e-150])
    weighted = wsb.Batch(X, torch.tensor([0, 0, 1]), weights=[1.0, 1.0, 1e-150])
    assert wsb.analyze(wsb.from_module(nn.Linear(X.shape[1], 3).double()), batch, CHEAP).loss.value > 0
    with pytest.raises(wsb.BatchError) as caught:
        wsb.analyze(
            wsb.from_module(nn.Linear(X.shape[1], 3).double()),
            weighted,
            CHEAP.model_copy(update={"class_weights": (0, 1, 1)}),
        )
    assert caught.value.code == "weights_too_small"


@pytest.mark.parametrize("loss", ["multilabel", "squared_error"])
def test_labels_with_other_axes_than_the_output_are_refused(loss: str) -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3))).double()
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.rand(5, 2, 3, dtype=torch.float64)
    options = CHEAP.model_copy(update={"loss": loss})
    values = {
        wsb.analyze(wsb.from_module(module), wsb.Batch(x, given), options).loss.value for given in (y, y.reshape(5, 6))
    }
    assert len(values) == 1
    with pytest.raises(wsb.BatchError) as caught:
        wsb.analyze(wsb.from_module(module), wsb.Batch(x, y.transpose(1, 2)), options)
    assert caught.value.code == "labels_shape"


@pytest.mark.parametrize("y", [np.array([1e19, 2e19, 3e19]), np.array([2**63 + 2**62] * 3, dtype=np.uint64)])
def test_numbers_beyond_integers_stay_what_they_are(y: np.ndarray) -> None:
    module = nn.Linear(X.shape[1], 1).double()
    found = wsb.analyze(wsb.from_module(module), wsb.Batch(X, y), CHEAP.model_copy(update={"loss": "squared_error"}))
    expected = nn.functional.mse_loss(module(torch.as_tensor(X).double())[:, 0], torch.as_tensor(y.astype(float)))
    assert found.loss.value == pytest.approx(expected.item(), rel=1e-12)


def test_probabilities_cannot_be_ignored() -> None:
    y = torch.tensor([[0.5, 0.5, 0], [1, 0, 0], [0.2, 0.3, 0.5]])
    with pytest.raises(wsb.BatchError) as caught:
        wsb.analyze(wsb.from_module(nn.Linear(X.shape[1], 3).double()), wsb.Batch(X, y), wsb.Options(ignore_index=1))
    assert caught.value.code == "labels_not_classes"
