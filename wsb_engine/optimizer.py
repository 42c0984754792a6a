"""Settings of a training's optimizer, by the names that torch gives them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

OptimizerKind = Literal["sgd", "momentum", "nesterov", "adam", "amsgrad", "adamw", "nadam", "rmsprop"]
"""Classes of ``torch.optim`` in lower case; ``momentum`` and ``nesterov`` are SGD, ``amsgrad`` is Adam."""
DESCENT = ("sgd", "momentum", "nesterov")
"""Kinds whose steps are not scaled."""
IMPLIED = {"nesterov": "nesterov", "amsgrad": "amsgrad"}
"""Settings that a kind turns on."""

STATE = r"^sha256:[0-9a-f]{64}$"
LARGEST = 1e100
"""Largest learning rate and weight decay: quotients and products of them stay within the range of numbers."""

_FIELDS: dict[str, frozenset[str]] = {
    "sgd": frozenset({"momentum", "dampening", "nesterov"}),
    "momentum": frozenset({"momentum", "dampening"}),
    "nesterov": frozenset({"momentum", "nesterov"}),
    "adam": frozenset({"betas", "eps", "amsgrad", "state"}),
    "amsgrad": frozenset({"betas", "eps", "amsgrad", "state"}),
    "adamw": frozenset({"betas", "eps", "amsgrad", "state"}),
    "nadam": frozenset({"betas", "eps", "momentum_decay", "state"}),
    "rmsprop": frozenset({"momentum", "eps", "state"}),
}
"""Settings of each kind besides the learning rate and the weight decay, which all have."""
_SPECIAL = frozenset[str]().union(*_FIELDS.values())

Beta = Annotated[float, Field(ge=0, lt=1)]


def _pair(given: Any) -> Any:
    """Take a list for a tuple, which strict validation does only in JSON itself."""
    return tuple(given) if isinstance(given, list) else given


class Optimizer(BaseModel):
    """Optimizer of the training, whose largest stable learning rate a report gives.

    Second moments are no setting: ``analyze`` takes them as ``optimizer_state``.

    Raises:
        pydantic.ValidationError: for an unknown name, a value outside its range, or a setting that the kind lacks.

    Examples:
        >>> import wsb
        >>> wsb.Options(optimizer={"kind": "sgd", "learning_rate": 0.1, "momentum": 0.9}).optimizer.momentum
        0.9
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={"description": "Optimizer of the training."},
    )

    kind: OptimizerKind = Field(
        description="Class of torch.optim, in lower case; momentum and nesterov are SGD, amsgrad is Adam."
    )
    learning_rate: float | None = Field(
        None, gt=0, le=LARGEST, description="Learning rate, to compare with the largest stable one."
    )
    momentum: float = Field(0.0, ge=0, lt=1, description="Momentum of sgd and rmsprop; momentum and nesterov need it.")
    dampening: float = Field(0.0, ge=0, lt=1, description="Dampening of sgd's momentum.")
    nesterov: bool = Field(False, description="Nesterov's momentum, of sgd.")
    weight_decay: float = Field(
        0.0,
        ge=0,
        le=LARGEST,
        description="Weight decay: added to the gradient, but in adamw, whose weights decay apart from it.",
    )
    betas: Annotated[tuple[Beta, Beta], BeforeValidator(_pair)] = Field(
        (0.9, 0.999), description="Decay of the averages of the gradient and of its square, of adam, adamw and nadam."
    )
    eps: float = Field(1e-8, ge=0, le=LARGEST, description="Number added to the root of second moments.")
    amsgrad: bool = Field(False, description="AMSGrad: step by the largest second moments so far, of adam and adamw.")
    momentum_decay: float = Field(4e-3, ge=0, le=LARGEST, description="Momentum decay of nadam.")
    state: str | None = Field(
        None,
        pattern=STATE,
        description="Identifier of the state's file, sha256: and a hex digest; a service fills it in for a part "
        "optimizer_state. A state that is given has to be this one.",
    )

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        kind, known = given.get("kind") if isinstance(given, dict) else None, get_args(OptimizerKind)
        if isinstance(kind, str) and kind not in known:
            raise PydanticCustomError(
                "optimizer_unsupported",
                "no largest stable learning rate is known for the optimizer {kind}; kinds are {known}",
                {"kind": repr(kind[:40]), "known": ", ".join(known)},
            )
        setting = IMPLIED.get(str(kind))
        return given if setting is None else {setting: True, **given}

    @model_validator(mode="after")
    def _consistent(self) -> Optimizer:
        foreign = [
            name
            for name in sorted(_SPECIAL - _FIELDS[self.kind])
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if foreign:
            raise PydanticCustomError(
                "optimizer_setting_foreign",
                "{kind} has no {names}; leave it out",
                {"kind": self.kind, "names": ", ".join(foreign)},
            )
        setting = IMPLIED.get(self.kind)
        if setting is not None and not getattr(self, setting):
            raise PydanticCustomError(
                "optimizer_setting_foreign", "{kind} has {kind}: leave it out, or set it to true", {"kind": self.kind}
            )
        if self.kind == "momentum" and self.momentum == 0:
            raise PydanticCustomError("optimizer_setting_missing", "momentum needs the setting momentum, such as 0.9")
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise PydanticCustomError(
                "optimizer_unsupported", "Nesterov's momentum needs a momentum and no dampening, as in torch"
            )
        if self.dampening and not self.momentum:
            raise PydanticCustomError(
                "optimizer_setting_foreign", "dampening has no effect without momentum; leave it out"
            )
        return self

    @property
    def needs_state(self) -> bool:
        """True if steps are scaled by second moments."""
        return self.kind not in DESCENT

    @property
    def decouples(self) -> bool:
        """True if weights decay apart from the gradient."""
        return self.kind == "adamw"
