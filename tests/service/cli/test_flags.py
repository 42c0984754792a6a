"""From the flags of a command to options."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from service.cli.flags import with_options
from wsb_engine.options import Options


def parsed(*flags: str) -> tuple[int, Options | None]:
    found: list[Options] = []
    app = typer.Typer()

    @app.command()
    @with_options
    def run(*, options: Options) -> None:
        found.append(options)

    result = CliRunner().invoke(app, list(flags))
    return result.exit_code, found[0] if found else None


@pytest.mark.parametrize(
    ("flags", "devices"),
    [
        ((), None),
        (("--devices", "all"), "all"),
        (("--devices", "cuda:0,cuda:1"), ("cuda:0", "cuda:1")),
        (("--devices", "cuda:0", "--devices", "cpu"), ("cuda:0", "cpu")),
    ],
)
def test_devices_are_all_or_a_list(flags: tuple[str, ...], devices: Any) -> None:
    code, options = parsed(*flags)
    assert code == 0
    assert options is not None
    assert options.devices == devices
    assert options.parameters == ("*",)


@pytest.mark.parametrize("wrong", ["gpu", "cuda:0,all", "cuda"])
def test_other_devices_are_refused(wrong: str) -> None:
    assert parsed("--devices", wrong) == (2, None)
