"""Children that break the protocol or die: each a crash with a code, none a hang."""

from __future__ import annotations

import json
import os
import signal
import struct

import pytest

from service.sandbox import JobLimits


def frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


RESULT = frame(b'{"type":"result","body":"{}"}')

VIOLATIONS = {
    "not JSON": frame(b"\x80garbage"),
    "a pickle": frame(b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07garbage\x94."),
    "a frame of no known type": frame(b'{"type":"exec"}'),
    "a longer frame than allowed": struct.pack(">I", 0xFFFFFFFF),
    "a second result": RESULT + RESULT,
    "progress after the result": RESULT + frame(b'{"type":"progress"}'),
    "half a frame after the result": RESULT + b"\0",
}


@pytest.mark.parametrize("data", VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_a_breach_of_the_protocol_is_a_crash(sandbox, data):
    outcome = sandbox.run(sandbox.job("write_bytes", hex=data.hex(), hang=True))

    assert (outcome.status, outcome.result) == ("crashed", None)
    assert outcome.error.code == "worker_protocol_violation"


def test_a_result_of_the_hostile_before_the_honest_one_is_a_crash(sandbox):
    outcome = sandbox.run(sandbox.job("write_bytes", hex=RESULT.hex()))

    assert outcome.error.code == "worker_protocol_violation"


def test_a_frame_over_the_limit_is_refused_by_its_header_alone(sandbox):
    header = struct.pack(">I", 1001)
    outcome = sandbox.run(sandbox.job("write_bytes", hex=header.hex(), hang=True, limits=JobLimits(frame_bytes=1000)))

    assert outcome.error.code == "worker_protocol_violation"
    assert "1001" in outcome.error.message


def test_half_a_frame_and_then_death_is_a_crash(sandbox):
    outcome = sandbox.run(sandbox.job("write_bytes", hex="000000", hang=False))

    assert outcome.status == "crashed"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGRTMIN])
def test_a_child_that_dies_of_a_signal_has_crashed(sandbox, number):
    outcome = sandbox.run(sandbox.job("kill_itself", signal=int(number)))

    assert (outcome.status, outcome.error.code) == ("crashed", "worker_child_killed")
    assert (outcome.exit_code, outcome.exit_signal) == (None, number)


def test_a_child_that_is_killed_from_outside_has_crashed(sandbox):
    def kill(fields):
        os.kill(fields["pid"], signal.SIGKILL)

    outcome = sandbox.scenario(lambda zygote: zygote.run(sandbox.job("hang"), kill))

    assert (outcome.status, outcome.error.code) == ("crashed", "worker_child_killed")
    assert outcome.error.details == {"signal": "SIGKILL"}


def test_a_segmentation_fault_leaves_a_traceback_in_the_log(sandbox):
    outcome = sandbox.run(sandbox.job("kill_itself", signal=int(signal.SIGSEGV)))

    assert "kill_itself" in outcome.log


@pytest.mark.parametrize("status", [0, 3])
def test_a_child_that_ends_without_a_result_has_crashed(sandbox, status):
    outcome = sandbox.run(sandbox.job("exit_early", status=status))

    assert (outcome.status, outcome.error.code) == ("crashed", "worker_child_exited")
    assert outcome.exit_code == status


def test_a_result_does_not_count_if_the_child_then_fails(sandbox):
    outcome = sandbox.run(sandbox.job("deliver_then_die"))

    assert (outcome.status, outcome.result, outcome.exit_code) == ("crashed", None, 9)


def test_a_crash_leaves_the_zygote_fit_for_the_next_job(sandbox):
    async def play(zygote):
        first = zygote.pid
        await zygote.run(sandbox.job("write_bytes", hex="ffffffff"))
        outcome = await zygote.run(sandbox.job("echo", text="still here"))
        return outcome, first == zygote.pid

    outcome, same_zygote = sandbox.scenario(play)

    assert json.loads(outcome.result)["text"] == "still here"
    assert same_zygote
