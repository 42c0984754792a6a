"""Both clients against a live server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.service import Service, StartService

from service.keys import hash_key, new_key
from wsb import AsyncClient, Client, ClientError, Options

POLICY = {"rule": [{"metric": "loss.value", "op": "<=", "limit": 0.6}]}


def test_from_files_to_verdicts(service: Service, model_bytes: bytes, batch_bytes: bytes, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text('[[rule]]\nmetric = "loss.value"\nop = "<="\nlimit = 0.4\n')
    (tmp_path / "model.onnx").write_bytes(model_bytes)
    with Client(service.url, http=service.client) as client:
        report = client.analyze(tmp_path / "model.onnx", batch_bytes, labels={"run": "a"})
        assert report.model.parameters.count == len(model_bytes)
        failing = client.submit(
            model_bytes, batch_bytes, Options(seed=3), tmp_path / "policy.toml", labels={"run": "b"}
        )
        ended = client.wait(failing)
        assert (ended.state, ended.verdict and ended.verdict.outcome) == ("succeeded", "fail")
        events = list(client.events(ended))
        assert [event.name for event in events] == ["state", "end"]
        assert client.report(ended).engine.version == "0"
        assert client.compare(ended, report, POLICY).outcome == "pass"
        with pytest.raises(ClientError) as caught:
            client.cancel(ended)
        assert (caught.value.code, caught.value.status) == ("analysis_final", 409)
    assert service.sql("SELECT count(*) FROM blobs WHERE uploaded_at > created_at") == [(0,)]
    assert service.sql("SELECT count(*) FROM analyses") == [(2,)]


@pytest.mark.slow
def test_asynchronously_with_a_key(start_service: StartService, model_bytes: bytes, batch_bytes: bytes) -> None:
    key = new_key()
    service = start_service(api_keys=f"ci:{hash_key(key)}")

    async def act() -> tuple[str, str, list[str]]:
        async with AsyncClient(service.url, key) as client:
            slow = await client.submit(model_bytes, batch_bytes, {"output": "sleep:60"})
            names = []
            async for event in client.events(slow):
                if "progress" not in names and event.data.get("state") in ("running", None):
                    await client.cancel(slow)
                names.append(event.name)
            report = await client.analyze(f"{slow.model}", f"{slow.batch}")
            return (await client.get(slow)).state, report.loss.kind, names

    state, loss, names = asyncio.run(act())
    assert (state, loss, names[-1]) == ("cancelled", "cross_entropy", "end")
    with Client(service.url, http=service.client) as anonymous, pytest.raises(ClientError) as caught:
        anonymous.analyze(model_bytes, batch_bytes)
    assert (caught.value.code, caught.value.status) == ("unauthorized", 401)
    assert "WSB_API_KEY" in caught.value.advice
