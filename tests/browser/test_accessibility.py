"""Every page in both themes and on a phone, as axe-core judges it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from support.served import Served, served
from support.service import npz_batch, onnx_mlp, until
from support.visits import Visit

from service.keys import hash_key, new_key
from service.series.quantities import TITLES

pytestmark = pytest.mark.slow

OpenVisit = Callable[..., Visit]

KEY = new_key()
PAGES = (
    "home",
    "form",
    "list",
    "report",
    "failed",
    "running",
    "cancelled",
    "compare",
    "compared",
    "series",
    "missing",
    "sign-in",
)


# What is wider than its card, and not in a region of it that scrolls.
CUT_OFF = """() => [...document.querySelectorAll("main section *")].filter(each => {
    if (each.closest(".scroll, .hidden") !== null || each.parentElement.closest("svg") !== null) return false
    const card = each.closest("section").getBoundingClientRect(), box = each.getBoundingClientRect()
    return box.width > 0 && (box.right > card.right + 1 || box.left < card.left - 1)
}).map(each => `cut off: ${each.outerHTML.slice(0, 100)}`)"""
# Height in pixels of the text of each plot as it is on the screen.
PLOT_TEXT = """() => [...document.querySelectorAll("svg.plot")].map(plot => {
    const scale = plot.getBoundingClientRect().width / plot.viewBox.baseVal.width
    return parseFloat(getComputedStyle(plot).fontSize) * scale
})"""


@dataclass
class Site:
    """A service with an analysis of each kind."""

    served: Served
    paths: dict[str, str]


def analysed(running: Served, model: bytes, batch: bytes, **request: Any) -> str:
    files = {"model": model, "batch": batch, "request": (None, json.dumps(request), "application/json")}
    return str(running.client.post("/v1/analyses", files=files).headers["location"].removeprefix("/v1"))


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with served(OMP_NUM_THREADS="1", WSB_API_KEYS=f"vision-team:{hash_key(KEY)}") as running:
        running.client.headers["Authorization"] = f"Bearer {KEY}"
        policy = {"rule": [{"metric": "enclosure.lambda_max", "op": "<=", "limit": 0.1}]}
        options = {"spectrum": "dense", "density": True, "learning_rate": 2.0}
        analysed(running, onnx_mlp(seed=3), npz_batch(), options=options, labels={"run": "wide", "epoch": "1"})
        bounds_only = {"enclosure": False, "learning_rate": 0.1}
        analysed(running, onnx_mlp(seed=4), npz_batch(), options=bounds_only, labels={"run": "bounded", "epoch": "2"})
        runs = [
            analysed(
                running,
                onnx_mlp(seed=epoch),
                npz_batch(),
                options=options,
                policy=policy,
                labels={"run": "digits", "epoch": str(epoch)},
            )
            for epoch in (1, 2)
        ]
        failed = analysed(running, onnx_mlp(), npz_batch(features=5))
        large = onnx_mlp((40, 120, 10)), npz_batch(features=40, classes=10)
        slow, cancelled = (analysed(running, *large, options={"spectrum": "dense", "seed": seed}) for seed in (0, 1))
        running.client.post(f"/v1{cancelled}/cancel")
        until(lambda: running.client.get(f"/v1{failed}").json()["finished_at"])
        # Stopped in its tracks: it runs as long as pages are looked at, and takes no time from them.
        until(lambda: running.client.get(f"/v1{slow}").json()["progress"])
        [worker] = running.workers()
        for process in worker.children(recursive=True):
            if not process.children():
                process.suspend()
        first, second = (run.rpartition("/")[2] for run in runs)
        paths = {
            "home": "/",
            "form": "/",
            "list": "/?state=succeeded&label=run",
            "report": runs[0],
            "failed": failed,
            "running": slow,
            "cancelled": cancelled,
            "compare": f"/compare?a={first}&b={second}&policy=%5B%5Brule%5D",
            "compared": f"/compare?a={first}&b={second}",
            "series": "/series?label=run:digits&label=run:wide&label=run:bounded"
            + "".join(f"&quantity={name}" for name in TITLES),
            "missing": "/nothing",
            "sign-in": "/sign-in",
        }
        yield Site(running, paths)
        running.client.post(f"/v1{slow}/cancel")


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)])
def test_no_page_shuts_anybody_out(site: Site, visit: OpenVisit, axe: str, theme: str, width: int) -> None:
    opened = visit(site.served.url, color_scheme=theme)
    page = opened.page
    page.set_viewport_size({"width": width, "height": 800})
    found: dict[str, list[str]] = {}
    for name in reversed(PAGES):  # the first is the one to sign in with
        page.goto(site.paths[name])
        if name == "form":
            page.get_by_text("More options").click()
            page.get_by_role("button", name="Analyse").click()
            page.get_by_role("alert").wait_for()
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        found[name] = [
            f"{violation['impact']} {violation['id']}: {violation['nodes'][0]['html'][:200]}"
            for violation in page.evaluate(f"{axe}; axe.run()")["violations"]
        ]
        if page.evaluate("document.documentElement.scrollWidth") > width:
            found[name].append("it is wider than the screen")
        found[name] += page.evaluate(CUT_OFF)
        found[name] += [f"text of {size:.1f} pixels in a plot" for size in page.evaluate(PLOT_TEXT) if size < 11]
        if name == "sign-in":
            page.get_by_label("API key").fill(KEY)
            page.keyboard.press("Enter")
            page.get_by_role("heading", name="New analysis").wait_for()
    assert {name: violations for name, violations in found.items() if violations} == {}


def test_axe_finds_what_is_wrong(visit: OpenVisit, axe: str) -> None:
    page = visit("about:", may_ask="").page
    page.set_content("<html lang='en'><title>x</title><main><h1>x</h1><input></main>")
    assert [violation["id"] for violation in page.evaluate(f"{axe}; axe.run()")["violations"]] == ["label"]
