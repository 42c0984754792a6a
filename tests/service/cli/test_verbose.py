"""With -v the terminal also lists the sources that the numbers of a report rest on."""

from __future__ import annotations

from pathlib import Path

from support.command import wsb_here as wsb
from support.service import npz_batch, onnx_mlp
from support.stored import stored_report

from service.cli.summary import MAX_SOURCES, summarize


def sources(text: str) -> list[str]:
    return [line.removeprefix("source").strip() for line in text.splitlines() if line.startswith("source")]


def test_each_source_has_a_line_with_its_address_and_what_rests_on_it() -> None:
    report = stored_report("perceptron")
    assert sources(summarize(report)) == []
    lines = sources(summarize(report, verbose=True))
    assert len(lines) == len(report.citations or []) == 6
    assert "https://doi.org/10.1016/0024-3795(80)90258-X (bounds_list.wolkowicz_styan, " in lines[1]


def test_a_report_of_an_earlier_schema_has_no_source() -> None:
    assert sources(summarize(stored_report("general"), verbose=True)) == []


def test_sources_of_a_stranger_are_cut_and_cleaned() -> None:
    hostile = stored_report("hostile")
    assert hostile.citations is not None
    citation = hostile.citations[0].model_copy(update={"reference": "a\x1b[31m\nb"})
    report = hostile.model_copy(update={"citations": [citation] * 1000})
    lines = sources(summarize(report, verbose=True))
    assert len(lines) == MAX_SOURCES
    assert "\x1b" not in lines[0]


def test_an_analysis_lists_them_if_asked(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(onnx_mlp())
    (tmp_path / "b.npz").write_bytes(npz_batch())
    result = wsb("analyze", "m.onnx", "b.npz", "-v", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "arXiv:2604.10202" in sources(result.stdout)[0]
    assert result.stdout.index("λ_max") < result.stdout.index("arXiv:2604.10202")
