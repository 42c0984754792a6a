"""How jobs end when the child plays by the rules, and what its parent then knows."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import pytest

from service.sandbox import Job, JobLimits
from service.sandbox.diagnosis import Evidence, Exit, diagnose


def test_a_job_returns_what_its_entry_returns(sandbox):
    outcome = sandbox.run(sandbox.job("echo", text="∂²L"))

    assert (outcome.status, outcome.error, outcome.exit_code) == ("succeeded", None, 0)
    assert json.loads(outcome.result)["text"] == "∂²L"


def test_a_request_of_megabytes_arrives_whole(sandbox):
    outcome = sandbox.run(sandbox.job("echo", text="x" * 5_000_000))

    assert len(json.loads(outcome.result)["text"]) == 5_000_000


def test_a_result_of_megabytes_arrives_whole(sandbox):
    outcome = sandbox.run(sandbox.job("big", characters=5_000_000))

    assert outcome.result == "é" * 5_000_000


def test_progress_arrives_in_order(sandbox):
    sandbox.run(sandbox.job("count", to=200))

    assert sandbox.progress == [{"phase": "load", "number": number} for number in range(200)]


def test_progress_is_awaited_where_the_callback_is_a_coroutine(sandbox):
    seen = []

    async def note(fields):
        seen.append(fields["number"])

    sandbox.scenario(lambda zygote: zygote.run(sandbox.job("count", to=3), note))

    assert seen == [0, 1, 2]


def test_an_error_with_a_code_arrives_in_its_own_words(sandbox):
    outcome = sandbox.run(sandbox.job("refuse"))

    assert (outcome.status, outcome.result) == ("failed", None)
    assert outcome.error.code == "unsupported_operator"
    assert outcome.error.message == "node 3 'Foo' is not supported"
    assert outcome.error.advice == "Export the model without it."
    assert outcome.error.details == {"domain": "evil"}


@pytest.mark.parametrize("function", ["refuse_with_strange_details", "refuse_at_length"])
def test_details_that_do_not_fit_a_frame_are_left_out_of_the_error(sandbox, function):
    outcome = sandbox.run(sandbox.job(function))

    assert outcome.error.code == "unsupported_operator"
    assert list(outcome.error.details) == ["omitted"]


def test_characters_that_no_database_stores_are_replaced(sandbox):
    outcome = sandbox.run(sandbox.job("refuse_with_null_characters"))

    assert outcome.error.details == {"name": "a\ufffdb?"}


@pytest.mark.parametrize("function", ["surprise", "leave", "return_a_number", "emit_nan", "no_such_function"])
def test_an_unforeseen_exception_is_an_internal_error(sandbox, function):
    outcome = sandbox.run(sandbox.job(function))

    assert (outcome.status, outcome.error.code) == ("failed", "internal_error")


def test_a_traceback_goes_to_the_log_and_nowhere_else(sandbox):
    job = sandbox.job("surprise")
    outcome = sandbox.run(job)

    assert "nobody expects this text" in (job.folder / "child.log").read_text()
    assert "nobody expects this text" in outcome.log
    assert "nobody expects this text" not in repr(outcome)


def test_the_log_has_what_the_child_wrote_even_if_it_hides_the_file(sandbox):
    job = sandbox.job("write_log")
    job.folder.chmod(0o777)
    outcome = sandbox.run(job, *sandbox.unsealed)

    assert sorted(outcome.log.splitlines()) == ["to stderr", "to stdout"]


def test_a_full_log_does_not_turn_a_failure_into_a_crash(sandbox):
    outcome = sandbox.run(sandbox.job("write_much", limits=JobLimits(file_bytes=50_000)))

    assert (outcome.status, outcome.error.code) == ("failed", "internal_error")


def test_the_log_is_capped(sandbox):
    job = sandbox.job("write_much", limits=JobLimits(file_bytes=50_000))
    sandbox.run(job)

    assert (job.folder / "child.log").stat().st_size <= 50_000


def test_running_out_of_memory_in_the_entry_is_told_apart(sandbox):
    outcome = sandbox.run(sandbox.job("exhaust_memory"))

    assert (outcome.status, outcome.error.code) == ("out_of_memory", "out_of_memory")


def test_a_result_over_the_frame_limit_is_an_error_with_advice(sandbox):
    outcome = sandbox.run(sandbox.job("big", characters=1000, limits=JobLimits(frame_bytes=1000)))

    assert (outcome.status, outcome.error.code) == ("failed", "result_too_large")


def test_a_child_that_the_kernel_killed_for_memory_is_out_of_memory():
    killed = Exit(status=signal.SIGKILL, peak_memory_bytes=1 << 30)

    status, error = diagnose(Evidence(exit=killed, oom_kills=True), seconds=1.0)

    assert (status, error.code) == ("out_of_memory", "out_of_memory")


def test_a_child_at_the_end_of_its_cpu_time_has_timed_out():
    status, error = diagnose(Evidence(exit=Exit(status=signal.SIGXCPU, peak_memory_bytes=1)), seconds=1.0)

    assert (status, error.code) == ("timed_out", "time_limit_exceeded")


def test_an_outcome_says_how_much_memory_and_time_the_child_took(sandbox):
    outcome = sandbox.run(sandbox.job("echo"))

    assert outcome.peak_memory_bytes > 1 << 20
    assert 0 < outcome.seconds < 60


@pytest.mark.parametrize(
    "change",
    [{"entry": "json.dumps"}, {"entry": "a b:c"}, {"seconds": 0.0}, {"seconds": float("nan")}, {"threads": 0}],
    ids=str,
)
def test_a_job_that_makes_no_sense_is_refused(sandbox, change):
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(sandbox.job("echo"), **change)


def test_a_request_that_is_not_finite_json_is_refused_before_the_fork(sandbox):
    with pytest.raises(ValueError, match="JSON"):
        sandbox.run(sandbox.job("echo", number=float("inf")))


def test_a_job_without_a_folder_is_refused(sandbox, tmp_path):
    job = Job(folder=tmp_path / "nowhere", entry="sandbox_entries:echo", request={}, seconds=1.0)

    with pytest.raises(FileNotFoundError):
        sandbox.run(job)
