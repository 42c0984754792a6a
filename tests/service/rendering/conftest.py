"""Fixed reports: a real one, one of a model without a closed form, one with nothing in it, one made to do harm,
and one in which a check has failed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.policies.schemas import Verdict
from wsb_engine.report import Report

HERE = Path(__file__).parent
NAMES = ("perceptron", "general", "nothing", "hostile", "doubtful")


@dataclass(frozen=True)
class Case:
    name: str
    report: Report
    verdict: Verdict | None


def read(name: str) -> Case:
    content = json.loads((HERE / "cases" / f"{name}.json").read_text(encoding="utf-8"))
    verdict = content["verdict"]
    return Case(name, Report.model_validate(content["report"]), verdict and Verdict.model_validate(verdict))


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    return read(request.param)


@pytest.fixture
def perceptron() -> Case:
    return read("perceptron")


@pytest.fixture
def general() -> Case:
    return read("general")


@pytest.fixture
def hostile() -> Case:
    return read("hostile")


@pytest.fixture
def matches_snapshot() -> Callable[[str, str], None]:
    """Compares with the stored file; with WSB_UPDATE_SNAPSHOTS=1, and not in CI, stores it."""

    def compare(file: str, text: str) -> None:
        path = HERE / "snapshots" / file
        if os.environ.get("WSB_UPDATE_SNAPSHOTS") == "1" and os.environ.get("CI") != "true":
            path.write_bytes(text.encode())
        assert text == path.read_bytes().decode()

    return compare
