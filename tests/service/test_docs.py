from __future__ import annotations

import inspect
import re
from pathlib import Path

import wsb_engine
from service.cli import outputs
from service.cli import plot as plot_module
from service.cli.batch import batch
from service.cli.plot import plot
from service.errors import every_error
from service.settings import Settings
from wsb_engine.analysis.checks import FAILURES
from wsb_engine.presentation import figures, plots
from wsb_engine.presentation.plots import PLOTS

DOCS = Path(__file__).parents[2] / "docs"


def test_every_setting_is_in_the_table() -> None:
    documented = set(
        re.findall(r"^\| `(WSB_\w+)` \|", (DOCS / "settings.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert documented == {f"WSB_{name.upper()}" for name in Settings.model_fields}


def test_every_code_of_a_problem_is_in_the_guide() -> None:
    guide = (DOCS / "api.md").read_text(encoding="utf-8")
    codes: set[str] = set()
    for error in every_error():
        codes |= set(error.possible_codes())
    assert [code for code in sorted(codes - {"http_error"}) if f"`{code}`" not in guide] == []


def test_every_check_is_in_the_table() -> None:
    _, _, section = (DOCS / "limitations.md").read_text(encoding="utf-8").partition("## When a check fails\n")
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(FAILURES)


def test_every_code_of_a_source_of_batches_is_in_the_guide() -> None:
    sources = Path(wsb_engine.__file__).parent / "sources"
    pattern = r'code(?:: str)?\s?=\s?"(\w+)"|"(np[yz]_invalid)"'
    found = [pair for path in sources.glob("*.py") for pair in re.findall(pattern, path.read_text(encoding="utf-8"))]
    codes = {one or other for one, other in found}
    assert len(codes) > 30
    guide = (DOCS / "batches.md").read_text(encoding="utf-8")
    assert [code for code in sorted(codes) if f"`{code}`" not in guide] == []


def test_every_flag_of_batch_is_in_the_guide() -> None:
    guide = (DOCS / "batches.md").read_text(encoding="utf-8")
    parameters = inspect.signature(batch).parameters
    assert [name for name in parameters if name != "out" and f"--{name.replace('_', '-')}" not in guide] == []


def test_every_flag_and_code_of_plot_is_in_the_guide() -> None:
    guide = (DOCS / "figures.md").read_text(encoding="utf-8")
    flags = [f"--{name.replace('_', '-')}" for name in inspect.signature(plot).parameters if name != "reports"]
    codes = re.findall(r"\[(\w+)\]\"", inspect.getsource(plot_module) + inspect.getsource(outputs.read_report))
    codes += re.findall(r'code="(\w+)"', inspect.getsource(plots) + inspect.getsource(figures))
    assert len(set(codes)) >= 8
    assert [each for each in [*flags, *PLOTS, *codes] if f"`{each}" not in guide] == []
