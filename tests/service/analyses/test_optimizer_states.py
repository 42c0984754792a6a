"""States of optimizers over HTTP, on the command line and by the client, with a real server and child."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from support.command import wsb_here as command
from support.served import Served, served
from support.service import Service, npz_batch, onnx_mlp, until

import wsb

MODEL, BATCH = onnx_mlp(), npz_batch()
RNG = np.random.default_rng(0)
MOMENTS = {
    f"{name}.exp_avg_sq": RNG.random(tensor.shape) * 1e-4 for name, tensor in wsb.load_model(MODEL).parameters.items()
}
STATE: bytes = safetensors.numpy.save({**MOMENTS, "step": np.array(100.0)})
IDENTIFIER = f"sha256:{hashlib.sha256(STATE).hexdigest()}"
ADAM = {"kind": "adam", "learning_rate": 0.01}


def form(state: bytes | None, optimizer: dict[str, Any] | None) -> dict[str, bytes]:
    files = {"model": MODEL, "batch": BATCH, "request": json.dumps({"options": {"optimizer": optimizer}}).encode()}
    return files if state is None else {**files, "optimizer_state": state}


def expected() -> float:
    """λ_max of P^(−½) H P^(−½), of the matrix itself."""
    classifier, batch = wsb.load_model(MODEL), wsb.load_batch(BATCH)
    model = classifier.resolve()
    parts = [tensor.double() for tensor in model.parameters.values()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        pieces = flat.split([part.numel() for part in parts])
        named = {name: piece.view_as(part) for name, piece, part in zip(model.parameters, pieces, parts, strict=True)}
        return torch.nn.functional.cross_entropy(model.function(named, batch.x), torch.as_tensor(batch.y))

    H = torch.autograd.functional.hessian(loss, torch.cat([part.flatten() for part in parts]))
    v = torch.cat([torch.from_numpy(MOMENTS[f"{name}.exp_avg_sq"]).flatten() for name in model.parameters])
    P = (1 - 0.9**100) * ((v / (1 - 0.999**100)).sqrt() + 1e-8)
    return float(torch.linalg.eigvalsh(H / torch.outer(P.sqrt(), P.sqrt()))[-1])


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as found:
        yield found


def test_a_state_that_is_sent_with_an_analysis_scales_its_hessian(server: Served) -> None:
    created = server.client.post("/v1/analyses", files=form(STATE, ADAM)).json()
    assert created["options"]["optimizer"]["state"] == IDENTIFIER
    address = f"/v1/analyses/{created['id']}"
    until(lambda: server.client.get(address).json()["finished_at"])
    found = server.client.get(f"{address}/report").json()["optimizer"]
    want = expected()
    assert found["lambda_max"]["lower"] <= want * (1 + 1e-12)
    assert want * (1 - 1e-12) <= found["lambda_max"]["upper"] <= want * (1 + 2e-6)
    assert (found["step"], f"sha256:{found['state_sha256']}") == (100, IDENTIFIER)
    page = server.client.get(f"{address}/report", headers={"Accept": "text/html"}).text
    assert "largest stable learning rate" in page.lower()


def test_the_client_sends_a_state_once_and_a_report_is_used_again_for_the_same_state_only(server: Served) -> None:
    options = wsb.Options(optimizer=ADAM, seed=3)
    with wsb.Client(server.url) as client:
        first = client.wait(client.submit(MODEL, BATCH, options, optimizer_state=STATE))
        again = client.submit(MODEL, BATCH, options, optimizer_state=IDENTIFIER)
        other = safetensors.numpy.save({**MOMENTS, "step": np.array(7.0)})
        different = client.submit(MODEL, BATCH, options, optimizer_state=other)
        assert (again.reused_from, different.reused_from) == (first.id, None)
        assert client.report(client.wait(different)).optimizer.step == 7


@pytest.mark.slow
def test_a_hostile_state_ends_the_analysis_with_a_code(server: Served) -> None:
    endless = dict(MOMENTS, **{"w0.exp_avg_sq": np.full_like(MOMENTS["w0.exp_avg_sq"], np.inf)}, step=np.array(1.0))
    lying = (8).to_bytes(8, "little") + b'{"a":1}}' + bytes(16)
    for state, code in (
        (safetensors.numpy.save(endless), "optimizer_state_invalid"),
        (lying, "optimizer_state_invalid"),
        (safetensors.numpy.save({"step": np.array(1.0)}), "optimizer_state_incomplete"),
    ):
        sent = server.client.post("/v1/analyses", files=form(state, ADAM), headers={"Prefer": "wait=60"})
        assert (sent.status_code, sent.json()["code"]) == (422, code)


def test_the_form_takes_a_state(server: Served) -> None:
    fields = {"csrf": "", "optimizer": json.dumps(ADAM), "spectrum": "none", "seed": "11", "enclosure": "on"}
    files = {"model": MODEL, "batch": BATCH, "optimizer_state": STATE}
    assert 'name="optimizer_state" type="file"' in server.client.get("/", headers={"Accept": "text/html"}).text
    sent = server.client.post("/analyses", data=fields, files=files)
    found = server.client.get("/v1" + sent.headers["location"]).json()
    assert found["options"]["optimizer"]["state"] == IDENTIFIER


def test_a_state_can_be_uploaded_listed_and_deleted(api: Service) -> None:
    created = api.client.post("/v1/optimizer_states", content=STATE)
    path = f"/v1/optimizer_states/{IDENTIFIER}"
    assert (created.status_code, created.headers["location"]) == (201, path)
    assert created.json()["format"] == "safetensors"
    assert [item["id"] for item in api.client.get("/v1/optimizer_states").json()["items"]] == [IDENTIFIER]
    files = {"model": MODEL, "batch": BATCH}
    request = json.dumps({"options": {"optimizer": {**ADAM, "state": IDENTIFIER}}}).encode()
    sent = api.client.post("/v1/analyses", files={**files, "request": request})
    assert sent.status_code == 202
    in_use = api.client.delete(path)
    assert (in_use.status_code, in_use.json()["code"]) == (409, "blob_in_use")
    api.client.post(f"/v1/analyses/{sent.json()['id']}/cancel")
    assert api.client.delete(path).status_code == 204
    assert len(api.stored()) == 2


def test_a_state_that_is_missing_or_of_no_use_is_refused_at_once(api: Service) -> None:
    for state, optimizer, pointer in (
        (None, ADAM, "/options/optimizer/state"),
        (STATE, None, "/options/optimizer"),
        (STATE, {"kind": "sgd"}, "/options/optimizer"),
        (STATE, {**ADAM, "state": "sha256:" + "0" * 64}, "/options/optimizer/state"),
        (None, {"kind": "lion"}, "/options/optimizer"),
    ):
        sent = api.client.post("/v1/analyses", files=form(state, optimizer))
        assert (sent.status_code, [item["pointer"] for item in sent.json()["errors"]]) == (422, [pointer])
    unknown = api.client.post("/v1/analyses", files=form(None, {**ADAM, "state": "sha256:" + "0" * 64}))
    assert (unknown.status_code, unknown.json()["code"]) == (404, "blob_not_found")


def test_a_file_that_is_no_state_is_refused(api: Service) -> None:
    assert api.client.post("/v1/optimizer_states", content=b"PK\x03\x04").json()["code"] == "unknown_format"
    cut = api.client.post("/v1/optimizer_states", content=(1000).to_bytes(8, "little") + b"{")
    assert cut.json()["code"] == "truncated_file"


def test_a_state_has_a_limit(start_service: Any) -> None:
    small = start_service(worker=False, max_optimizer_state_bytes=100)
    assert small.client.post("/v1/optimizer_states", content=STATE).status_code == 413
    assert small.client.post("/v1/analyses", files=form(STATE, ADAM)).status_code == 413


def test_an_idempotency_key_counts_the_state(api: Service) -> None:
    headers = {"Idempotency-Key": "k"}
    first = api.client.post("/v1/analyses", files=form(STATE, ADAM), headers=headers)
    again = api.client.post("/v1/analyses", files=form(STATE, ADAM), headers=headers)
    other = safetensors.numpy.save({**MOMENTS, "step": np.array(7.0)})
    different = api.client.post("/v1/analyses", files=form(other, ADAM), headers=headers)
    assert again.json()["id"] == first.json()["id"]
    assert (different.status_code, different.json()["code"]) == (422, "idempotency_mismatch")


def test_the_command_reads_a_state(tmp_path: Path) -> None:
    for name, content in (("m.onnx", MODEL), ("b.npz", BATCH), ("s.safetensors", STATE)):
        (tmp_path / name).write_bytes(content)
    asked = ("analyze", "m.onnx", "b.npz", "--scaling", "filter", "--optimizer", json.dumps(ADAM))
    done = command(*asked, "--optimizer-state", "s.safetensors", "--json", "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = wsb.Report.model_validate_json((tmp_path / "r.json").read_text())
    assert found.optimizer.lambda_max.upper == pytest.approx(expected(), rel=2e-6)
    assert found.scaled.scaling == "filter"
    assert "scaled" in done.stdout
    assert "largest stable" in done.stdout


@pytest.mark.slow
def test_the_command_says_that_a_state_is_missing(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(MODEL)
    (tmp_path / "b.npz").write_bytes(BATCH)
    missing = command("analyze", "m.onnx", "b.npz", "--optimizer", json.dumps(ADAM), cwd=tmp_path)
    assert missing.returncode == 2
    assert "optimizer_state_missing" in missing.stderr
