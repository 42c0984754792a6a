"""Draw the pictures of docs/web.md: the home page and a report, after six epochs of a training run.

    .venv/bin/python scripts/screenshots.py

Needs chromium on the path.
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import httpx
import numpy as np
import torch
from demo import HELD_OUT, OUTPUT, export, service
from playwright.sync_api import sync_playwright
from sklearn.datasets import load_digits
from torch import nn

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
POLICY = {"rule": [{"metric": "enclosure.lambda_max", "op": "<=", "limit": 2.3}]}
EPOCHS = 6


def submit(url: str) -> list[str]:
    """Train a small network and post it after each epoch; return the identifiers of the analyses."""
    torch.manual_seed(0)
    digits = load_digits()
    x, y = (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    inputs, labels, path, batch = torch.from_numpy(x), torch.from_numpy(y), OUTPUT / "epoch.onnx", io.BytesIO()
    np.savez(batch, x=x[:HELD_OUT], y=y[:HELD_OUT])
    found = []
    for epoch in range(1, EPOCHS + 1):
        for rows in torch.arange(HELD_OUT, len(y)).split(256):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()
        export(model, x, path)
        told = {"run": "digits", "epoch": str(epoch)}
        request = {"name": f"digits, epoch {epoch}", "labels": told, "policy": POLICY}
        answer = httpx.post(
            f"{url}/v1/analyses",
            files={"model": (f"epoch-{epoch}.onnx", path.read_bytes()), "batch": ("digits.npz", batch.getvalue())},
            data={"request": json.dumps(request)},
            headers={"Prefer": "wait=60"},
            timeout=90,
        )
        if answer.status_code != 201:
            raise SystemExit(answer.text)
        print(f"epoch {epoch}: λ_max ≤ {answer.json()['enclosure']['lambda_max']['upper']:.4f}")
        found.append(answer.headers["Location"].rsplit("/", 1)[-1])
    return found


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with service() as url, sync_playwright() as playwright:
        analyses = submit(url)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 1000})
        for name, path, whole in (("home", "/", True), ("report", f"/analyses/{analyses[2]}", False)):
            page.goto(url + path)
            page.screenshot(path=IMAGES / f"pages-{name}.png", full_page=whole)
        browser.close()


if __name__ == "__main__":
    main()
