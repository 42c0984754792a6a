"""What a local evaluation says of how its child ended."""

from __future__ import annotations

import pytest

from service.cli import evaluate
from service.sandbox.job import JobError, Outcome


def outcome(code: str, log: str) -> Outcome:
    error = JobError(code=code, message="It failed.", advice="Ask the operator.", details={})
    return Outcome(
        status="failed",
        interrupted=False,
        result=None,
        error=error,
        exit_code=1,
        exit_signal=None,
        peak_memory_bytes=None,
        seconds=0.1,
        log=log,
    )


def test_an_unexpected_error_shows_what_the_child_wrote_without_its_control_characters() -> None:
    with pytest.raises(evaluate.NotEvaluatedError) as caught:
        evaluate._result(outcome("internal_error", "Traceback\nboom \x1b[2J"))
    assert str(caught.value).splitlines()[1:] == [
        "Report this, which the analysis wrote before it ended:",
        "Traceback",
        r"'boom \x1b[2J'",
    ]


def test_an_error_of_the_input_gives_its_advice_alone() -> None:
    with pytest.raises(Exception, match="Ask the operator") as caught:
        evaluate._result(outcome("model_invalid", "Traceback"))
    assert "Traceback" not in str(caught.value)
