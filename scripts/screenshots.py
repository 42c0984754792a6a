"""Photograph the pages after three training runs, on a desktop and a phone, in both themes.

    .venv/bin/python scripts/screenshots.py

All pictures are in build/screenshots, to look at; those of docs/web.md are renewed in docs/images. Needs chromium on
the path.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import numpy as np
import onnx
import torch
from demo import HELD_OUT, OUTPUT, export, service
from onnx import numpy_helper
from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from sklearn.datasets import load_digits
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
IMAGES, SCREENSHOTS = ROOT / "docs" / "images", ROOT / "build" / "screenshots"
POLICY = {"rule": [{"metric": "enclosure.lambda_max", "op": "<=", "limit": 2.3}]}
EPOCHS = 6
RUNS: dict[str, tuple[float, dict[str, Any]]] = {
    "sgd-0.5": (0.5, {"spectrum": "dense", "density": True}),
    "sgd-1": (1.0, {"spectrum": "top", "relative_gap": 0.2}),
    "sgd-2, only bounded": (2.0, {"enclosure": False}),
}
"""Runs by name: the learning rate, and options of the analyses."""
SERIES = {
    "label": [f"run:{name}" for name in RUNS],
    "quantity": ["lambda_max", "loss", "eigenvalues", "spectrum", "density"],
}
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
IN_DOCS = {"home": 1900, "report": 1000, "series": 1560}
"""Pictures of docs/web.md, from the desktop in the light theme, with their heights."""


def checkpoints(rate: float) -> Iterator[bytes]:
    """Train a small network on handwritten digits; yield it as ONNX after each epoch."""
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.from_numpy((digits.data / 16).astype(np.float32)), torch.from_numpy(digits.target.astype(np.int64))
    model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    path = OUTPUT / "epoch.onnx"
    if not path.exists():
        export(model, x.numpy(), path)
    exported = onnx.load(path)
    for _ in range(EPOCHS):
        for rows in torch.arange(HELD_OUT, len(y)).split(256):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        # Exporting once and replacing the weights is much faster.
        for tensor in exported.graph.initializer:
            weights = model.state_dict()[tensor.name].numpy()
            tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
        yield exported.SerializeToString()


def submit(url: str) -> list[str]:
    """Train the runs and post each checkpoint; return the identifiers of the analyses."""
    digits, batch, found = load_digits(), io.BytesIO(), []
    np.savez(batch, x=(digits.data[:HELD_OUT] / 16).astype(np.float32), y=digits.target[:HELD_OUT])
    for name, (rate, options) in RUNS.items():
        for epoch, model in enumerate(checkpoints(rate), start=1):
            labels = {"run": name, "epoch": str(epoch)}
            request: dict[str, Any] = {
                "name": f"{name}, epoch {epoch}",
                "labels": labels,
                "options": {"learning_rate": rate, **options},
            }
            if options.get("enclosure", True):
                request["policy"] = POLICY
            answer = httpx.post(
                f"{url}/v1/analyses",
                files={"model": (f"epoch-{epoch}.onnx", model), "batch": ("digits.npz", batch.getvalue())},
                data={"request": json.dumps(request)},
                headers={"Prefer": "wait=60"},
                timeout=90,
            )
            if answer.status_code != 201:
                raise SystemExit(answer.text)
            print(f"{name}, epoch {epoch}")
            found.append(answer.headers["Location"].rsplit("/", 1)[-1])
    return found


def photograph(browser: Browser, url: str, analyses: list[str]) -> None:
    """Take a picture of every page in every size and theme."""
    paths = {
        "home": "/",
        "report": f"/analyses/{analyses[2]}",
        "series": f"/series?{urlencode(SERIES, doseq=True)}",
        "compare": f"/compare?a={analyses[0]}&b={analyses[EPOCHS - 1]}",
    }
    for size, (width, height) in SIZES.items():
        for theme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
            for name, path in paths.items():
                page.goto(url + path)
                page.screenshot(path=SCREENSHOTS / f"{name}-{size}-{theme}.png", full_page=True)
            page.close()


def illustrate() -> None:
    """Renew the pictures of the documentation."""
    for name, height in IN_DOCS.items():
        with Image.open(SCREENSHOTS / f"{name}-desktop-light.png") as picture:
            shown = picture.crop((0, 0, picture.width, min(height, picture.height)))
            # Pages have few colours: a palette makes a third of the file.
            shown.convert("RGB").quantize(128).save(IMAGES / f"pages-{name}.png", optimize=True)


def main() -> None:
    for folder in (OUTPUT, SCREENSHOTS):
        folder.mkdir(parents=True, exist_ok=True)
    with service() as url, sync_playwright() as playwright:
        analyses = submit(url)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        photograph(browser, url, analyses)
        browser.close()
    illustrate()


if __name__ == "__main__":
    main()
