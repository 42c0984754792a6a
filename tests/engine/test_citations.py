"""A report cites the publications that its numbers rest on, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.golden import Golden

import wsb_engine as wsb
from wsb_engine.citations import SOURCES, citations
from wsb_engine.report import Report

DOCS = Path(__file__).parents[2] / "docs"


def analysed(name: str = "deep_tanh", **options: Any) -> Report:
    case = Golden(name)
    return wsb.analyze(wsb.load_model(case.onnx()), wsb.Batch(case.x, case.y), wsb.Options(**options))


def cited(report: Report) -> dict[str, list[str]]:
    assert report.citations is not None
    return {citation.key: citation.supports for citation in report.citations}


@pytest.fixture(scope="module")
def closed_form() -> Report:
    return analysed("paper_three_layer_tanh")


def test_a_certain_enclosure_in_closed_form_rests_on_two_traces(closed_form: Report) -> None:
    assert closed_form.enclosure is not None
    assert closed_form.enclosure.lambda_max.kind == "deterministic"
    found = cited(closed_form)
    assert list(found) == ["omae_2026", "wolkowicz_styan_1980", "pearlmutter_1994", "schraudolph_2002"]
    assert found["omae_2026"] == ["moments", "layers", "blocks", "orthogonality"]
    assert {"bounds_list.wolkowicz_styan", "enclosure.lambda_max", "layers"} <= set(found["wolkowicz_styan_1980"])


def test_an_enclosure_without_moments_rests_on_its_start_vector() -> None:
    found = cited(analysed(moments="none", max_products=12))
    assert found == {
        "van_dorsselaer_2000": ["enclosure.lambda_max", "enclosure.lambda_min"],
        "pearlmutter_1994": ["enclosure"],
    }


def test_moments_by_probes_rest_on_no_trace() -> None:
    found = cited(analysed(moments="probes", enclosure=False))
    assert "wolkowicz_styan_1980" not in found
    assert found["pearlmutter_1994"] == ["moments"]


def test_moments_of_the_whole_basis_are_not_those_of_the_closed_form() -> None:
    found = cited(analysed(moments="basis", enclosure=False))
    assert "omae_2026" not in found
    assert found["wolkowicz_styan_1980"] == ["bounds_list.wolkowicz_styan"]


def test_an_enclosure_in_float32_is_the_tighter_of_both_bounds() -> None:
    found = cited(analysed(dtype="float32", max_products=12))
    for source in ("wolkowicz_styan_1980", "van_dorsselaer_2000"):
        assert "enclosure.lambda_max" in found[source]


def test_three_vectors_leave_nothing_to_deflate() -> None:
    found = cited(analysed(basis="three_vectors", max_products=12))
    assert found["wolkowicz_styan_1980"] == ["bounds_list.wolkowicz_styan", "layers"]
    assert "enclosure.lambda_max" in found["van_dorsselaer_2000"]


def test_a_density_cites_its_quadrature_and_lists_no_eigenvalue() -> None:
    found = cited(analysed(moments="none", density=True, max_products=12))
    assert found["golub_meurant_2010"] == found["ghorbani_2019"] == ["spectrum.density"]
    assert "spectrum.eigenvalues" not in found["van_dorsselaer_2000"]


def test_the_largest_eigenvalues_are_complete_by_the_bound_of_the_start_vector() -> None:
    assert "spectrum.eigenvalues" in cited(analysed(moments="none", spectrum="top", top=2))["van_dorsselaer_2000"]


def test_what_a_citation_supports_is_in_the_report(closed_form: Report) -> None:
    for paths in cited(closed_form).values():
        for path in paths:
            found: Any = closed_form
            for part in path.split("."):
                found = {each.name: each for each in found} if isinstance(found, list) else found
                found = found[part] if isinstance(found, dict) else getattr(found, part)
            assert found is not None


def test_a_report_of_an_earlier_schema_has_none_and_its_sources_are_still_found() -> None:
    path = Path(__file__).parent / "reports" / "schema_1_0_dense.json"
    report = Report.model_validate_json(path.read_text(encoding="utf-8"))
    assert report.citations is None
    assert "wolkowicz_styan_1980" in {citation.key for citation in citations(report)}


def test_the_guide_names_every_source() -> None:
    _, _, rest = (DOCS / "mathematics.md").read_text(encoding="utf-8").partition("Sources: ")
    named = " ".join(rest.partition("\n## ")[0].split())
    for source in SOURCES:
        *authors, year = source.key.split("_")
        assert all(author in named.casefold() for author in authors)
        assert year in named


def test_every_source_has_an_address_that_stays() -> None:
    assert all(source.url.startswith(("https://doi.org/10.", "https://arxiv.org/abs/")) for source in SOURCES)
    assert len({source.key for source in SOURCES}) == len(SOURCES)
