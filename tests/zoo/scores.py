"""Classifiers and pipelines of scikit-learn, exported by skl2onnx, against their formulas in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression, Perceptron, RidgeClassifier, SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, Normalizer, RobustScaler, StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor
from torch.nn import functional as F

import wsb_engine as wsb
from zoo.cell import FAILS, HOLDS, REFUSED, RELATIVE, WRONG, Cell, listed, sentence

FEATURES = 5
ROWS = 60
SAMPLES = 24
"""Rows of the batch that is analysed."""
CLASSES = (2, 3)
FORMS: dict[str, dict[str, bool]] = {
    "default": {},
    "zipmap=False": {"zipmap": False},
    "raw_scores=True": {"raw_scores": True, "zipmap": False},
}
"""Column of the table → options of the conversion."""
NONLINEAR = {"tanh": torch.tanh, "relu": torch.relu, "logistic": torch.sigmoid, "identity": lambda a: a}

CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "LogisticRegression": lambda: LogisticRegression(),
    "LinearSVC": lambda: LinearSVC(),
    "RidgeClassifier": lambda: RidgeClassifier(),
    "SGDClassifier, hinge": lambda: SGDClassifier(random_state=0),
    "SGDClassifier, log_loss": lambda: SGDClassifier(loss="log_loss", random_state=0),
    "SGDClassifier, modified_huber": lambda: SGDClassifier(loss="modified_huber", random_state=0),
    "Perceptron": lambda: Perceptron(random_state=0),
    "MLPClassifier, tanh": lambda: MLPClassifier((6, 4), activation="tanh", max_iter=30, random_state=0),
    "MLPClassifier, relu": lambda: MLPClassifier((6,), max_iter=30, random_state=0),
    "MLPClassifier, logistic": lambda: MLPClassifier((6,), activation="logistic", max_iter=30, random_state=0),
    "StandardScaler, LogisticRegression": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
    "MinMaxScaler, LogisticRegression": lambda: make_pipeline(MinMaxScaler(), LogisticRegression()),
    "RobustScaler, LinearSVC": lambda: make_pipeline(RobustScaler(), LinearSVC()),
    "MaxAbsScaler, RidgeClassifier": lambda: make_pipeline(MaxAbsScaler(), RidgeClassifier()),
    "Normalizer, Perceptron": lambda: make_pipeline(Normalizer(), Perceptron(random_state=0)),
    "StandardScaler, MLPClassifier": lambda: make_pipeline(
        StandardScaler(), MLPClassifier((6,), activation="tanh", max_iter=30, random_state=0)
    ),
}


@dataclass(frozen=True)
class Fitted:
    """A classifier with data, and what is right for it."""

    classifier: Any
    x: NDArray[np.float32]
    y: NDArray[np.int64]

    def layers(self) -> list[tuple[Tensor, Tensor]]:
        """(W, b) of each layer in float64, as the file rounds them."""
        last = self.last()
        if isinstance(last, MLPClassifier):
            pairs = [(weight.T, bias) for weight, bias in zip(last.coefs_, last.intercepts_, strict=True)]
        else:
            pairs = [(last.coef_, last.intercept_)]
        rounded = [[torch.tensor(np.atleast_1d(each), dtype=torch.float32).double() for each in pair] for pair in pairs]
        return [(weight, bias) for weight, bias in rounded]

    def last(self) -> Any:
        return self.classifier[-1] if hasattr(self.classifier, "steps") else self.classifier

    def logits(self, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
        scaled = (
            self.classifier[:-1].transform(self.x.astype(np.float64)) if self.last() is not self.classifier else self.x
        )
        a = torch.tensor(scaled, dtype=torch.float64)
        for weight, bias in layers[:-1]:
            a = NONLINEAR[self.last().activation](a @ weight.T + bias)
        weight, bias = layers[-1]
        return a @ weight.T + bias

    def lambda_max(self) -> float:
        """The largest eigenvalue, by double backward of the mean cross-entropy."""
        tensors = [each for pair in self.layers() for each in pair]
        sizes = [each.numel() for each in tensors]
        y = torch.tensor(self.y)

        def loss(flat: Tensor) -> Tensor:
            parts = [each.reshape(shape.shape) for each, shape in zip(flat.split(sizes), tensors, strict=True)]
            z = self.logits(list(zip(parts[::2], parts[1::2], strict=True)))
            if z.shape[1] == 1:
                return F.binary_cross_entropy_with_logits(z[:, 0], y.double())
            return F.cross_entropy(z, y)

        H = torch.autograd.functional.hessian(loss, torch.cat([each.reshape(-1) for each in tensors]))
        return float(torch.linalg.eigvalsh(H)[-1])


def fit(name: str, classes: int) -> Fitted:
    generator = np.random.default_rng(5)
    x = generator.standard_normal((ROWS, FEATURES)).astype(np.float32) * np.arange(1, FEATURES + 1, dtype=np.float32)
    y = (x @ generator.standard_normal((FEATURES, classes)) + generator.standard_normal((ROWS, classes))).argmax(1)
    return Fitted(CLASSIFIERS[name]().fit(x, y), x[:SAMPLES], y[:SAMPLES])


def observe(name: str, form: str, classes: int) -> Cell:
    """Fit, convert and compare."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = fit(name, classes)
        try:
            options = {id(fitted.last()): FORMS[form]} if FORMS[form] else None
            data = to_onnx(fitted.classifier, fitted.x[:1], options=options).SerializeToString()
        except Exception as error:
            return Cell(FAILS, note=sentence(error))
        try:
            return _compare(fitted, wsb.load_model(data))
        except wsb.EngineError as error:
            return Cell(REFUSED, note=f"`{error.code}`: {error.message}")


def _compare(fitted: Fitted, classifier: wsb.Classifier) -> Cell:
    batch = wsb.Batch({classifier.inputs[0].name: fitted.x}, fitted.y)
    report = wsb.analyze(classifier, batch, wsb.Options(moments="none", relative_gap=2e-7))
    count, right = report.model.parameters.count, sum(each.numel() for pair in fitted.layers() for each in pair)
    if count != right:
        names = listed(f"{tensor.name} {list(tensor.shape)}" for tensor in report.model.parameters.tensors)
        return Cell(WRONG, count, f"{right} parameters are right, not {count}: {names}")
    if report.enclosure is None:
        return Cell(WRONG, count, f"no enclosure: {[warning.code for warning in report.warnings]}")
    interval, truth = report.enclosure.lambda_max, fitted.lambda_max()
    if not max(abs(truth - interval.lower), abs(interval.upper - truth)) <= RELATIVE * truth:
        return Cell(WRONG, count, f"λ_max = {truth!r}, not in [{interval.lower!r}, {interval.upper!r}]")
    return Cell(HOLDS, count)
