"""From nothing to a report: train, export, start the service, post, print, stop."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

OUTPUT = Path(__file__).resolve().parent.parent / "build" / "demo"
HELD_OUT = 360
START_SECONDS = 120


def train() -> tuple[nn.Module, np.ndarray, np.ndarray, float]:
    """Train a 64-32-10 tanh network on handwritten digits; return it, the held-out batch and the training loss."""
    torch.manual_seed(0)
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0)).numpy()
    x, y = (digits.data[order] / 16).astype(np.float32), digits.target[order].astype(np.int64)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    inputs, labels = torch.from_numpy(x[HELD_OUT:]), torch.from_numpy(y[HELD_OUT:])
    for _ in range(300):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
    return model, x[:HELD_OUT], y[:HELD_OUT], loss.item()


def export(model: nn.Module, x: np.ndarray, path: Path) -> None:
    """Write the model as ONNX, without the exporter's log output."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model, (torch.from_numpy(x[:2]),), dynamo=True, dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False
        )
    if program is None:
        raise SystemExit("torch.onnx.export returned nothing")
    program.save(str(path))


@contextlib.contextmanager
def service() -> Iterator[str]:
    """Run `wsb serve` on a free port with a temporary data folder; yield its URL."""
    with tempfile.TemporaryDirectory(prefix="wsb-demo-") as folder, (OUTPUT / "service.log").open("w") as log:
        command = [sys.executable, "-m", "service.cli.commands", "serve", "--port", "0"]
        environment = {**os.environ, "WSB_DATA_DIR": folder}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process:
            try:
                line = process.stdout.readline() if process.stdout else ""
                if "http" not in line:
                    raise SystemExit(f"the service did not start; see {OUTPUT / 'service.log'}")
                yield line.split()[-1]
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(START_SECONDS)


def post(url: str, model: Path, batch: Path) -> dict[str, object]:
    """Request one analysis and return its report."""
    with model.open("rb") as model_file, batch.open("rb") as batch_file:
        response = httpx.post(
            f"{url}/v1/analyses",
            files={"model": model_file, "batch": batch_file},
            data={"request": json.dumps({"options": {"spectrum": "dense"}})},
            headers={"Prefer": "wait=60"},
            timeout=90,
        )
    if response.status_code != 201:
        raise SystemExit(f"the service answered {response.status_code}: {response.text}")
    report: dict[str, object] = response.json()
    return report


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    model_path, batch_path, report_path = (OUTPUT / name for name in ("model.onnx", "batch.npz", "report.json"))
    print("Training a 64-32-10 tanh network on handwritten digits …")
    model, x, y, loss = train()
    export(model.eval(), x, model_path)
    np.savez(batch_path, x=x, y=y)
    print(f"  training loss {loss:.4f}; exported to {model_path}")
    print("Starting the service …")
    with service() as url:
        print(f"  {url}\nPosting the network and {len(y)} held-out samples …\n")
        report = post(url, model_path, batch_path)
    report_path.write_text(json.dumps(report, indent=2) + "\n")

    from service.cli.summary import summarize
    from wsb_engine import Report

    print(summarize(Report.model_validate(report)))
    print(f"\nThe full report is in {report_path}")


if __name__ == "__main__":
    main()
