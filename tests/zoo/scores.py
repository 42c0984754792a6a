"""Classifiers and pipelines of scikit-learn, exported by skl2onnx, against their formulas in float64.

Coefficients are drawn at random after the fit, which only shapes them: no fit is saturated. Constants of transformers
are rounded to numbers that float32 and its reciprocals hold, so that the file's features are exact.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from skl2onnx import to_onnx
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import (
    LogisticRegression,
    LogisticRegressionCV,
    PassiveAggressiveClassifier,
    Perceptron,
    RidgeClassifier,
    RidgeClassifierCV,
    SGDClassifier,
)
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    Binarizer,
    KBinsDiscretizer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor
from torch.nn import functional as F

import wsb_engine as wsb
from zoo.cell import FAILS, HOLDS, REFUSED, WRONG, Cell, disagreement, listed, sentence
from zoo.oracle import FLOOR

FEATURES = 5
ROWS = 60
SAMPLES = 24
"""Rows of the batch that is analysed."""
CLASSES = (2, 3)
FORMS: dict[str, dict[str, bool]] = {
    "default": {},
    "zipmap=False": {"zipmap": False},
    "raw_scores=True": {"raw_scores": True},
}
"""Column of the table → options of the conversion."""
NONLINEAR = {"tanh": torch.tanh, "relu": torch.relu, "logistic": torch.sigmoid, "identity": lambda a: a}
_MLP = {"max_iter": 30, "random_state": 0}

CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "LogisticRegression": LogisticRegression,
    "LogisticRegressionCV": lambda: LogisticRegressionCV(Cs=2, cv=2),
    "OneVsRestClassifier, LogisticRegression": lambda: OneVsRestClassifier(LogisticRegression()),
    "LinearSVC": LinearSVC,
    "RidgeClassifier": RidgeClassifier,
    "RidgeClassifierCV": RidgeClassifierCV,
    "SGDClassifier, hinge": lambda: SGDClassifier(random_state=0),
    "SGDClassifier, squared_hinge": lambda: SGDClassifier(loss="squared_hinge", random_state=0),
    "SGDClassifier, log_loss": lambda: SGDClassifier(loss="log_loss", random_state=0),
    "SGDClassifier, modified_huber": lambda: SGDClassifier(loss="modified_huber", random_state=0),
    "Perceptron": lambda: Perceptron(random_state=0),
    "PassiveAggressiveClassifier": lambda: PassiveAggressiveClassifier(random_state=0),
    "LinearDiscriminantAnalysis": LinearDiscriminantAnalysis,
    "MLPClassifier, tanh": lambda: MLPClassifier((6, 4), activation="tanh", **_MLP),
    "MLPClassifier, relu": lambda: MLPClassifier((6,), **_MLP),
    "MLPClassifier, logistic": lambda: MLPClassifier((6,), activation="logistic", **_MLP),
    "MLPClassifier, identity": lambda: MLPClassifier((6,), activation="identity", **_MLP),
    "StandardScaler, LogisticRegression": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
    "MinMaxScaler, LogisticRegression": lambda: make_pipeline(MinMaxScaler(), LogisticRegression()),
    "RobustScaler, LinearSVC": lambda: make_pipeline(RobustScaler(), LinearSVC()),
    "MaxAbsScaler, RidgeClassifier": lambda: make_pipeline(MaxAbsScaler(), RidgeClassifier()),
    "Normalizer, Perceptron": lambda: make_pipeline(Normalizer(), Perceptron(random_state=0)),
    "Normalizer l1, LogisticRegression": lambda: make_pipeline(Normalizer("l1"), LogisticRegression()),
    "Normalizer max, LogisticRegression": lambda: make_pipeline(Normalizer("max"), LogisticRegression()),
    "PolynomialFeatures, LogisticRegression": lambda: make_pipeline(PolynomialFeatures(2), LogisticRegression()),
    "SimpleImputer, StandardScaler, LogisticRegression": lambda: make_pipeline(
        SimpleImputer(), StandardScaler(), LogisticRegression()
    ),
    "KBinsDiscretizer, LogisticRegression": lambda: make_pipeline(
        KBinsDiscretizer(3, encode="onehot-dense", quantile_method="averaged_inverted_cdf"), LogisticRegression()
    ),
    "OneHotEncoder, LogisticRegression": lambda: make_pipeline(
        OneHotEncoder(sparse_output=False), LogisticRegression()
    ),
    "OrdinalEncoder, LogisticRegression": lambda: make_pipeline(OrdinalEncoder(), LogisticRegression()),
    "Binarizer, LogisticRegression": lambda: make_pipeline(Binarizer(), LogisticRegression()),
    "SelectKBest, LogisticRegression": lambda: make_pipeline(SelectKBest(k=3), LogisticRegression()),
    "PCA, LogisticRegression": lambda: make_pipeline(PCA(3), LogisticRegression()),
    "PCA whiten, LogisticRegression": lambda: make_pipeline(PCA(3, whiten=True), LogisticRegression()),
    "TruncatedSVD, LogisticRegression": lambda: make_pipeline(TruncatedSVD(3), LogisticRegression()),
    "ColumnTransformer, LogisticRegression": lambda: make_pipeline(
        ColumnTransformer([("a", StandardScaler(), [0, 1]), ("b", MinMaxScaler(), [4, 3])], remainder="passthrough"),
        LogisticRegression(),
    ),
    "StandardScaler, MLPClassifier": lambda: make_pipeline(
        StandardScaler(), MLPClassifier((6,), activation="tanh", **_MLP)
    ),
    "DecisionTreeClassifier": DecisionTreeClassifier,
    "RandomForestClassifier": lambda: RandomForestClassifier(3),
    "GradientBoostingClassifier": lambda: GradientBoostingClassifier(n_estimators=3),
    "KNeighborsClassifier": KNeighborsClassifier,
    "GaussianNB": GaussianNB,
    "SVC, rbf": SVC,
}
_ROWS_OF_TWO = (LogisticRegression, LogisticRegressionCV, LinearSVC, RidgeClassifier, RidgeClassifierCV)
"""Of two classes, their file has the rows −w and w; only ``raw_scores`` makes logits of both."""
_SCORES = (Perceptron, PassiveAggressiveClassifier)
_GRID = 8
"""Constants that are subtracted are rounded to multiples of 1/8, and those that scale to powers of 2."""

Output = Literal["logits", "one-vs-rest", "huber"]


@dataclass(frozen=True)
class Truth:
    """The parameters of a file, and the logits as a function of them."""

    layers: list[tuple[Tensor, Tensor | None]]
    """(W, b) in float64."""
    activation: str
    output: Output
    two_scores: bool
    """True if the logits are −s and s of one decision function s."""
    note: str = ""
    unused: int = 0
    """Numbers of the file that the logits do not depend on."""

    def loss(self, tensors: Sequence[Tensor], a: Tensor, y: Tensor) -> Tensor:
        """The mean cross-entropy for parameters in the order of the layers."""
        left = iter(tensors)
        for place, (_, bias) in enumerate(self.layers):
            a = a @ next(left).T
            a = a if bias is None else a + next(left)
            if bias is not None and place < len(self.layers) - 1:
                a = NONLINEAR[self.activation](a)
        if self.two_scores:
            return F.cross_entropy(torch.cat([-a, a], 1), y)
        if self.output == "logits" and a.shape[1] == 1:
            return F.binary_cross_entropy_with_logits(a[:, 0], y.double())
        if self.output != "logits":
            p = torch.sigmoid(a) if self.output == "one-vs-rest" else (a.clamp(-1, 1) + 1) / 2
            p = p / p.sum(1, keepdim=True) if a.shape[1] > 1 else torch.cat([1 - p, p], 1)
            return F.nll_loss(p.log(), y)
        return F.cross_entropy(a, y)

    def tensors(self) -> list[Tensor]:
        return [each for pair in self.layers for each in pair if each is not None]

    def lambda_max(self, features: Tensor, y: Tensor) -> tuple[float, float]:
        """The largest eigenvalue, and the error that a second computation with samples in reverse shows."""
        value, other = (self._lambda_max(each, of) for each, of in ((features, y), (features.flip(0), y.flip(0))))
        return value, max(2 * abs(value - other), FLOOR * abs(value))

    def _lambda_max(self, features: Tensor, y: Tensor) -> float:
        tensors = self.tensors()
        sizes = [each.numel() for each in tensors]

        def loss(flat: Tensor) -> Tensor:
            parts = [part.reshape(each.shape) for part, each in zip(flat.split(sizes), tensors, strict=True)]
            return self.loss(parts, features, y)

        H = torch.autograd.functional.hessian(loss, torch.cat([each.reshape(-1) for each in tensors]))
        return float(torch.linalg.eigvalsh(H)[-1])


def fit(name: str, classes: int) -> tuple[Any, NDArray[np.float32], NDArray[np.int64]]:
    """A classifier with random coefficients, features and labels."""
    generator = np.random.default_rng(5)
    x = generator.standard_normal((ROWS, FEATURES)).astype(np.float32)
    y = (x @ generator.standard_normal((FEATURES, classes)) + generator.standard_normal((ROWS, classes))).argmax(1)
    if name.startswith(("OneHotEncoder", "OrdinalEncoder")):
        x = x.round()
    classifier = CLASSIFIERS[name]().fit(x, y)
    for step in classifier[:-1] if hasattr(classifier, "steps") else []:
        _round(step)
    for linear in _parts(_last(classifier)):
        for attribute in ("coef_", "intercept_", "coefs_", "intercepts_"):
            if hasattr(linear, attribute):
                setattr(linear, attribute, _drawn(getattr(linear, attribute), generator))
    return classifier, x[:SAMPLES], y[:SAMPLES]


def observe(name: str, form: str, classes: int) -> Cell:
    """Fit, convert and compare."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier, x, y = fit(name, classes)
        try:
            options = {id(_last(classifier)): FORMS[form]} if FORMS[form] else None
            data = to_onnx(classifier, x[:1], options=options).SerializeToString()
        except Exception as error:
            return Cell(FAILS, note=sentence(error))
        try:
            read = wsb.load_model(data)
            batch = wsb.Batch({read.inputs[0].name: x}, y)
            report = wsb.analyze(read, batch, wsb.Options(moments="none", relative_gap=2e-7))
        except wsb.EngineError as error:
            return Cell(REFUSED, note=f"`{error.code}`: {error.message}")
    return _compare(truth(classifier, form), features(classifier, x), y, report)


def _compare(right: Truth, x: Tensor, y: NDArray[np.int64], report: wsb.Report) -> Cell:
    count = report.model.parameters.count
    expected = sum(each.numel() for each in right.tensors()) + right.unused
    if count != expected:
        names = listed(f"{tensor.name} {list(tensor.shape)}" for tensor in report.model.parameters.tensors)
        return Cell(WRONG, count, f"{expected} parameters are right, not {count}: {names}")
    if report.enclosure is None:
        return Cell(WRONG, count, f"no enclosure: {[warning.code for warning in report.warnings]}")
    labels = torch.tensor(y)
    loss = float(right.loss(right.tensors(), x, labels))
    wrong = disagreement(report.enclosure.lambda_max, *right.lambda_max(x, labels))
    if not abs(report.loss.value - loss) <= 1e-9 * loss:
        wrong.append(f"loss = {loss!r}, not {report.loss.value!r}")
    wrong += [f"check {check.name} failed" for check in report.checks if not check.passed]
    return Cell(WRONG if wrong else HOLDS, count, "; ".join(wrong) or right.note)


def truth(classifier: Any, form: str) -> Truth:
    """What the file of a fitted classifier has by the conventions of its conversion."""
    last, note = _last(classifier), ""
    binary, raw, one_vs_rest = len(last.classes_) == 2, form.startswith("raw"), isinstance(last, OneVsRestClassifier)
    layers: list[tuple[Tensor, Tensor | None]] = []
    projection = classifier[-2] if hasattr(classifier, "steps") else None
    if isinstance(projection, (PCA, TruncatedSVD)):
        layers.append((_tensor(projection.components_), None))
        note = "the projection `transform_matrix` counts as a parameter; leave it out by `parameters`"
    if isinstance(projection, Normalizer) and projection.norm == "max":
        note = "the file divides by max x, as ONNX defines it, and not by max \\|x\\|"
    if isinstance(last, MLPClassifier):
        layers += [
            (_tensor(weight.T), _tensor(bias)) for weight, bias in zip(last.coefs_, last.intercepts_, strict=True)
        ]
    else:
        weight = torch.cat([torch.atleast_2d(_tensor(each.coef_)) for each in _parts(last)])
        bias = torch.cat([_tensor(each.intercept_) for each in _parts(last)])
        if binary and (isinstance(last, LinearDiscriminantAnalysis) or (raw and isinstance(last, _ROWS_OF_TWO))):
            weight, bias = torch.cat([-weight, weight]), torch.cat([-bias, bias])
            note = note or "the rows −w and w count as two"
        layers.append((weight, bias))
    loss = last.loss if isinstance(last, SGDClassifier) else None
    scores = isinstance(last, _SCORES) or (loss is not None and (raw or "hinge" in loss)) or (raw and one_vs_rest)
    unused = sum(each.numel() for pair in layers for each in pair if each is not None) if raw and one_vs_rest else 0
    note = "the rows −w count and have no effect" if unused else note
    output: Output = "logits"
    if not raw and loss == "modified_huber":
        output = "huber"
    elif not raw and not binary and (loss == "log_loss" or one_vs_rest):
        output = "one-vs-rest"
    return Truth(layers, getattr(last, "activation", "identity"), output, binary and scores, note, unused)


def features(classifier: Any, x: NDArray[np.float32]) -> Tensor:
    """What the first layer gets, in float64."""
    a = x.astype(np.float64)
    for step in classifier[:-1] if hasattr(classifier, "steps") else []:
        if isinstance(step, (PCA, TruncatedSVD)):
            a = a - getattr(step, "mean_", 0)
        elif isinstance(step, Normalizer) and step.norm == "max":
            a = a / a.max(1, keepdims=True)
        else:
            a = step.transform(a)
    return torch.tensor(a)


def _last(classifier: Any) -> Any:
    return classifier[-1] if hasattr(classifier, "steps") else classifier


def _parts(last: Any) -> list[Any]:
    return list(getattr(last, "estimators_", [last]))


def _tensor(values: Any) -> Tensor:
    return torch.tensor(np.atleast_1d(values), dtype=torch.float64)


def _drawn(values: Any, generator: np.random.Generator) -> Any:
    if isinstance(values, list):
        return [_drawn(each, generator) for each in values]
    return (0.15 * generator.standard_normal(np.shape(values))).astype(np.float32).astype(np.float64)


def _round(step: Any) -> None:
    """Give a transformer constants that lose nothing in the file."""
    for inner in getattr(step, "transformers_", []):
        _round(inner[1])
    for name in ("mean_", "center_", "min_", "statistics_"):
        if isinstance(getattr(step, name, None), np.ndarray):
            setattr(step, name, np.round(getattr(step, name) * _GRID) / _GRID)
    for name, base in (("scale_", 2.0), ("explained_variance_", 4.0)):
        if isinstance(getattr(step, name, None), np.ndarray):
            setattr(step, name, base ** np.round(np.log(getattr(step, name)) / np.log(base)))
    if hasattr(step, "components_"):
        step.components_ = step.components_.astype(np.float32).astype(np.float64)
