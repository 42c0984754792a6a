"""Post a checkpoint of a training run to a server after every epoch, and print how λ_max develops.

wsb serve                                              # in another terminal
python examples/training_series.py [URL]               # default: http://127.0.0.1:8000

The server keeps the series: GET /v1/analyses?label=run:NAME lists it, and /series?label=run:NAME plots it.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

import httpx
import numpy as np
import torch
from torch import nn

EPOCHS = 5
WIDTH = 40


def blobs() -> tuple[torch.Tensor, torch.Tensor]:
    """Return 300 points around three centres, with labels."""
    y = torch.arange(300) % 3
    centres = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
    return centres[y] + 0.6 * torch.randn(300, 2, generator=torch.Generator().manual_seed(0)), y


def checkpoints(x: torch.Tensor, y: torch.Tensor) -> Iterator[bytes]:
    """Train, and yield the network after each epoch as ONNX."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 3))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2, momentum=0.9)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(y)).split(30):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()
            optimizer.step()
        yield exported(module, x)


def exported(module: nn.Module, x: torch.Tensor) -> bytes:
    """Export the module as ONNX, without the exporter's log output."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    dimensions = ({0: torch.export.Dim("n")},)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, (x[:2],), dynamo=True, dynamic_shapes=dimensions, verbose=False)
    if program is None:
        raise SystemExit("torch.onnx.export returned nothing")
    content: bytes = program.model_proto.SerializeToString()
    return content


def post(client: httpx.Client, run: str, epoch: int, model: bytes, batch: bytes) -> None:
    """Queue one checkpoint; training does not wait for its report."""
    request = {"labels": {"run": run, "epoch": str(epoch)}}
    files = {"model": model, "batch": batch, "request": json.dumps(request).encode()}
    client.post("/v1/analyses", files=files).raise_for_status()


def series(client: httpx.Client, run: str) -> list[tuple[int, dict[str, Any]]]:
    """Wait until every analysis of the run has ended; return (epoch, report) in order."""
    while True:
        analyses = client.get("/v1/analyses", params={"label": f"run:{run}", "limit": 200}).raise_for_status().json()
        if all(analysis["finished_at"] for analysis in analyses["items"]):
            break
        time.sleep(0.5)
    for analysis in analyses["items"]:
        if analysis["state"] != "succeeded":
            raise SystemExit(f"epoch {analysis['labels']['epoch']} {analysis['state']}: {analysis['error']}")
    reports = [
        (int(analysis["labels"]["epoch"]), client.get(analysis["links"]["report"]).raise_for_status().json())
        for analysis in analyses["items"]
    ]
    return sorted(reports, key=lambda each: each[0])


def chart(reports: list[tuple[int, dict[str, Any]]]) -> str:
    """Draw a bar for each epoch, proportional to λ_max."""
    largest = max(report["enclosure"]["lambda_max"]["upper"] for _, report in reports)
    lines = [f"{'epoch':>5}  {'λ_max':>10}  {'loss':>8}"]
    for epoch, report in reports:
        upper = report["enclosure"]["lambda_max"]["upper"]
        bar = "█" * max(round(WIDTH * upper / largest), 0) if largest > 0 else ""
        lines.append(f"{epoch:>5}  {upper:>10.4f}  {report['loss']['value']:>8.4f}  {bar}")
    return "\n".join(lines)


def main(url: str) -> None:
    x, y = blobs()
    batch = io.BytesIO()
    np.savez(batch, x=x.numpy(), y=y.numpy())
    run = f"series-{int(time.time())}"
    headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get("WSB_API_KEY")) else {}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        for epoch, model in enumerate(checkpoints(x, y), start=1):
            post(client, run, epoch, model, batch.getvalue())
        print(chart(series(client, run)))
        print(f"\nplotted at {url}/series?label=run:{run}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
