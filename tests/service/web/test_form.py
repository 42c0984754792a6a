"""The form that asks for an analysis: what it makes of its fields, and what it says is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.external import DATA, combined, external_mlp
from support.hostile import npz
from support.pages import Visitor, field_errors, value_of
from support.service import Service, StartService, npz_batch, onnx_mlp

Visit = Callable[..., Visitor]

POLICY = '[[rule]]\nmetric = "loss.value"\nop = "<="\nlimit = 0.4\n'


def test_it_makes_the_analysis_that_the_interface_would_make(service: Service, visit: Visit) -> None:
    analysis = visit(service).asked(
        spectrum="dense",
        density="on",
        dtype="float64",
        learning_rate="0.5",
        relative_gap="1e-4",
        parameters="w* !b0",
        seed="3",
        labels="run: tanh-64\r\nepoch:12\r\n\r\n",
        policy=POLICY,
        priority="5",
        timeout_s="60",
    )
    found = service.ended(analysis)
    assert found["labels"] == {"run": "tanh-64", "epoch": "12"}
    assert (found["priority"], found["timeout_s"], found["verdict"]["outcome"]) == (5, 60, "fail")
    wanted = {
        "spectrum": "dense",
        "density": True,
        "dtype": "float64",
        "learning_rate": 0.5,
        "relative_gap": 1e-4,
        "parameters": ["w*", "!b0"],
        "seed": 3,
        "enclosure": True,
    }
    assert {name: found["options"][name] for name in wanted} == wanted
    assert service.leftovers() == []


def test_a_switch_that_is_off_is_off(api: Service, visit: Visit) -> None:
    visitor = visit(api)
    parts = [("csrf", (None, "")), ("model", ("m", onnx_mlp())), ("batch", ("b", npz_batch()))]
    response = visitor.client.post("/analyses", files=parts)
    analysis = api.client.get(f"/v1{response.headers['location']}").json()
    assert (analysis["options"]["enclosure"], analysis["options"]["density"]) == (False, False)


@pytest.mark.parametrize(
    ("field", "typed", "told"),
    [
        ("top", "many", "valid integer"),
        ("learning_rate", "-1", "greater than 0"),
        ("device", "tpu", "match pattern"),
        ("labels", "no colon here", "has no colon"),
        ("labels", "bad key: x", "bad key: "),
        ("policy", '[[rule]]\nmetric = "loss.valu"\nop = "<="\nlimit = 1', "rule 1 (line 1), metric: loss has no"),
        ("policy", "[[rule]\n<b>", "It is no TOML"),
        ("policy", '[[rule]]\nmetric = "loss.value"\nmax_increase = 1', "needs a baseline"),
        ("baseline", "last week", "should match pattern"),
        ("timeout_s", "1e6", "limit is 3600 seconds"),
        ("stop", "decided", "There is no policy to decide"),
    ],
)
def test_what_is_wrong_is_told_at_its_field_and_what_was_typed_is_kept(
    api: Service, visit: Visit, field: str, typed: str, told: str
) -> None:
    response = visit(api).ask(**{"labels": "run: a & <b>", "seed": "77", field: typed})
    assert response.status_code == 422
    assert told in field_errors(response.text)[field]
    assert value_of(response.text, field).strip() == typed
    assert value_of(response.text, "seed") == ("77")
    assert f'aria-describedby="{field}' in response.text or f' {field}-error"' in response.text
    assert "<b>" not in response.text
    assert api.sql("SELECT count(*) FROM analyses") == [(0,)]


def test_good_files_of_a_bad_form_need_not_be_sent_again(api: Service, visit: Visit) -> None:
    visitor = visit(api)
    refused = visitor.ask(top="many").text
    kept = {name: value_of(refused, name) for name in ("model_id", "batch_id")}
    assert all(value.startswith("sha256:") for value in kept.values())
    analysis = visitor.asked(model=None, batch=None, top="5", **kept)
    found = api.client.get(f"/v1/analyses/{analysis}").json()
    assert (found["model"], found["batch"]) == (kept["model_id"], kept["batch_id"])
    assert api.leftovers() == []


@pytest.mark.parametrize(
    ("files", "errors"),
    [
        ({"model": None}, {"model": "Choose a model."}),
        ({"model": None, "batch": None}, {"model": "Choose a model.", "batch": "Choose a batch."}),
        ({"model": b"no model at all"}, {"model": "The file is neither an ONNX file"}),
        ({"batch": b"PK\x03\x04 cut off"}, {"batch": ""}),
    ],
)
def test_a_file_that_is_missing_or_none_is_told_at_its_field(
    api: Service, visit: Visit, files: dict[str, bytes | None], errors: dict[str, str]
) -> None:
    response = visit(api).ask(**files)
    found = field_errors(response.text)
    assert response.status_code in (415, 422)
    assert found.keys() == errors.keys()
    assert all(found[name].startswith(text) for name, text in errors.items())


def test_a_file_that_has_been_deleted_since_is_asked_for_again(api: Service, visit: Visit) -> None:
    visitor = visit(api)
    model = value_of(visitor.ask(top="many").text, "model_id")
    assert api.client.delete(f"/v1/models/{model}").status_code == 204
    response = visitor.ask(model=None, model_id=model)
    assert response.status_code == 404
    assert "There is no model sha256:" in response.text
    assert 'name="model_id"' not in response.text


def test_a_file_that_is_too_large_is_told_at_its_field(start_service: StartService, visit: Visit) -> None:
    service = start_service(worker=False, max_batch_bytes=2000)
    response = visit(service).ask(batch=npz(x=bytes(4000)), labels="run: a")
    assert response.status_code == 413
    assert field_errors(response.text)["batch"].startswith("The batch is larger than 2000 bytes.")
    assert service.stored() == service.leftovers() == []


def test_a_form_that_is_too_large_as_a_whole_is_a_page(start_service: StartService, visit: Visit) -> None:
    service = start_service(
        worker=False, max_batch_bytes=2000, max_model_bytes=2000, max_model_data_files=0, max_optimizer_state_bytes=2000
    )
    response = visit(service).ask(batch=bytes(4_000_000))
    assert (response.status_code, "body_too_large" in response.text) == (413, True)
    assert response.headers["content-type"].startswith("text/html")


def test_a_field_that_is_none_of_the_form_is_refused(api: Service, visit: Visit) -> None:
    response = visit(api).ask(tenant="other")
    assert (response.status_code, "unexpected_part" in response.text) == (422, True)


def test_a_full_queue_keeps_the_form(start_service: StartService, visit: Visit) -> None:
    service = start_service(worker=False, max_queue=1)
    visitor = visit(service)
    visitor.asked()
    response = visitor.ask(labels="run: second", fresh="on")
    assert response.status_code == 429
    assert "The limit on queued analyses, 1, is reached." in response.text
    assert value_of(response.text, "labels") == "run: second"
    assert value_of(response.text, "model_id").startswith("sha256:")


def test_the_baseline_has_to_be_an_analysis_of_ones_own(api: Service, visit: Visit) -> None:
    unknown = "11111111-1111-1111-1111-111111111111"
    response = visit(api).ask(policy=POLICY, baseline=unknown)
    assert response.status_code == 404
    assert field_errors(response.text)["baseline"] == f"There is no analysis {unknown}."


def test_the_files_of_an_analysis_can_be_analysed_again(api: Service, visit: Visit) -> None:
    visitor = visit(api)
    analysis = api.client.get(f"/v1/analyses/{visitor.asked()}").json()
    form = visitor.get("/", params={"model": analysis["model"], "batch": analysis["batch"]}).text
    again = visitor.asked(
        model=None, batch=None, spectrum="top", **{n: value_of(form, n) for n in ("model_id", "batch_id")}
    )
    assert api.client.get(f"/v1/analyses/{again}").json()["model"] == analysis["model"]


def test_what_is_no_identifier_in_the_address_is_no_file(api: Service, visit: Visit) -> None:
    text = visit(api).get("/", params={"model": '"><script>', "batch": "sha256:1"}).text
    assert 'name="model_id"' not in text
    assert "<script>" not in text


def test_data_files_are_sent_with_their_model_and_need_not_be_sent_again(api: Service, visit: Visit) -> None:
    model, data = external_mlp()
    visitor = visit(api)
    refused = visitor.ask(model=model, data=data, top="many").text
    kept = {name: value_of(refused, name) for name in ("model_id", "batch_id")}
    assert kept["model_id"] == combined(model, data)
    analysis = visitor.asked(model=None, batch=None, **kept)
    assert api.client.get(f"/v1/analyses/{analysis}").json()["model"] == combined(model, data)
    assert f"<code>{DATA}</code>" in visitor.get(f"/analyses/{analysis}").text
    assert api.leftovers() == []


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"data": {"..": b"x"}}, "A data file can't be called"),
        ({"model": None, "data": {"a": b"x"}}, "Choose the model together with its data files."),
    ],
)
def test_what_is_wrong_with_data_files_is_told_at_their_field(
    api: Service, visit: Visit, files: dict[str, Any], told: str
) -> None:
    response = visit(api).ask(**files)
    assert response.status_code == 422
    assert field_errors(response.text)["model_data"].startswith(told)
    assert api.leftovers() == []


def test_a_data_file_without_a_name_has_no_content(api: Service, visit: Visit) -> None:
    visitor = visit(api)
    parts = [("csrf", (None, "")), ("model", ("m", onnx_mlp())), ("batch", ("b", npz_batch()))]
    chosen = [*parts, ("model_data", ("", b""))]
    assert visitor.client.post("/analyses", files=chosen).status_code == 303
    assert visitor.client.post("/analyses", files=[*parts, ("model_data", (None, b"x" * 100))]).status_code == 413
    assert api.leftovers() == []
