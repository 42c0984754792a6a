"""What people do on the pages, in a browser, with the real service and the real engine."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image
from playwright.sync_api import Page, expect
from support.external import external_mlp
from support.served import Served, served
from support.service import npz_batch, onnx_mlp
from support.visits import Visit

from service.keys import hash_key, new_key

OpenVisit = Callable[..., Visit]
Photograph = Callable[[Page, str], None]

KEY = new_key()
LIMIT = '[[rule]]\nmetric = "enclosure.lambda_max"\nop = "<="\nlimit = 50\n'


@pytest.fixture(scope="module")
def service() -> Iterator[Served]:
    with served(OMP_NUM_THREADS="1") as running:
        yield running


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    contents = {
        "small.onnx": onnx_mlp((4, 5, 3)),
        "small.npz": npz_batch(),
        "other.onnx": onnx_mlp((4, 5, 3), seed=1),
        "large.onnx": onnx_mlp((40, 120, 10)),
        "large.npz": npz_batch(features=40, classes=10, samples=64),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def analysed(visit: Visit, files: dict[str, Path], model: str = "small.onnx", labels: str = "") -> str:
    """Path of an analysis that has its report, asked for with the form."""
    page = visit.page
    page.goto("/")
    visit.choose(files[model], files["small.npz"])
    page.get_by_label("Labels").fill(labels)
    page.get_by_role("button", name="Analyse").click()
    expect(page.get_by_role("heading", name="Sharpness")).to_be_visible(timeout=60_000)
    return page.url


@pytest.mark.slow  # tests/service/web sends them with the form as well
def test_a_model_is_uploaded_with_its_data_files(
    service: Served, visit: OpenVisit, files: dict[str, Path], tmp_path: Path, photograph: Photograph
) -> None:
    model, data = external_mlp("m.onnx.data", "more.bin")
    for name, content in {"m.onnx": model, **data}.items():
        (tmp_path / name).write_bytes(content)
    page = visit(service.url).page
    page.goto("/")
    page.get_by_label("Model", exact=True).set_input_files(tmp_path / "m.onnx")
    page.get_by_label("Batch", exact=True).set_input_files(files["small.npz"])
    page.get_by_label("External data").set_input_files([tmp_path / name for name in data])
    photograph(page, "data-files")
    page.get_by_role("button", name="Analyse").click()
    expect(page.get_by_role("heading", name="Sharpness")).to_be_visible(timeout=60_000)
    expect(page.get_by_role("row", name="External data")).to_contain_text("m.onnx.data")
    expect(page.get_by_role("row", name="External data")).to_contain_text("more.bin")
    photograph(page, "data-files-report")


def shuts_somebody_out(page: Page, axe: str) -> list[str]:
    """What axe-core finds wrong in a page; the full form looks at all of them in test_accessibility."""
    return [violation["id"] for violation in page.evaluate(f"{axe}; axe.run()")["violations"]]


def test_a_model_is_uploaded_watched_and_its_report_read(
    service: Served, visit: OpenVisit, files: dict[str, Path], photograph: Photograph, axe: str
) -> None:
    opened = visit(service.url)
    page = opened.page
    page.goto("/")
    opened.choose(files["large.onnx"], files["large.npz"])
    page.get_by_label("Spectrum", exact=True).select_option("top")
    page.get_by_label("Labels").fill("run: watched\nepoch: 1")
    page.get_by_label("Policy", exact=True).fill(LIMIT)
    assert shuts_somebody_out(page, axe) == []
    page.get_by_role("button", name="Analyse").click()
    expect(page).to_have_url(re.compile(r"/analyses/[0-9a-f-]{36}$"))
    photograph(page, "progress")
    # The page turns into the report by itself.
    expect(page.get_by_role("heading", name="Verdict: Passed")).to_be_visible(timeout=90_000)
    expect(page.get_by_role("heading", name="Spectrum")).to_be_visible()
    expect(page.get_by_role("img", name="Both ends of the spectrum")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="JSON", exact=True).click()
    report = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert report["model"]["parameters"]["count"] == 6130
    assert shuts_somebody_out(page, axe) == []
    photograph(page, "report")
    page.get_by_role("link", name="Page").click()
    expect(page.get_by_role("heading", name="Sharpness report")).to_be_visible()


def test_progress_moves_without_loading_the_page_again_and_a_click_cancels(
    service: Served, visit: OpenVisit, files: dict[str, Path], photograph: Photograph
) -> None:
    opened = visit(service.url)
    page = opened.page
    page.goto("/")
    opened.choose(files["large.onnx"], files["large.npz"])
    page.get_by_label("Spectrum", exact=True).select_option("dense")
    page.get_by_role("button", name="Analyse").click()
    phase = page.locator("#phase")
    expect(phase).to_contain_text(re.compile(r"spectrum, \d+ %, \d+ Hessian-vector products"), timeout=60_000)
    bar = page.get_by_role("progressbar")
    assert float(bar.evaluate("bar => bar.value")) >= 0
    known = page.locator("#known")
    expect(known).to_have_text(re.compile(r"^So far: λ_max in \[[-0-9.e]+, [-0-9.e]+\] after \d+ products$"))
    shown = [float(text) for text in re.findall(r"[-0-9.e]+(?=[,\]])", known.inner_text())]
    identifier = page.url.rpartition("/")[2]
    interval = page.request.get(f"/v1/analyses/{identifier}").json()["progress"]["enclosure"]["lambda_max"]
    assert shown[0] <= interval["lower"] <= interval["upper"] <= shown[1]
    assert shown[1] - shown[0] <= 1.1 * (interval["upper"] - interval["lower"])
    expected = page.locator("#expected")
    expect(expected).to_have_text(re.compile(r"^Expected: about [\d.,]+ (h|min|s|ms) and [\d.,]+ [GM]iB$"))
    assert f'<p id="expected" class="quiet">{expected.inner_text()}</p>' in page.request.get(page.url).text()
    photograph(page, "running")
    page.get_by_role("button", name="Cancel the analysis").click()
    expect(page.get_by_role("heading", name="Cancelled")).to_be_visible(timeout=30_000)
    expect(page.get_by_role("status")).to_have_text("– Cancelled")
    expect(page.get_by_role("heading", name="Certified before it ended")).to_be_visible()
    photograph(page, "cancelled")


@pytest.mark.slow  # test_accessibility opens both pages, and tests/service/web chooses what they compare
def test_two_are_compared(service: Served, visit: OpenVisit, files: dict[str, Path], photograph: Photograph) -> None:
    opened = visit(service.url)
    first = analysed(opened, files, labels="run: compared\nepoch: 1")
    analysed(opened, files, "other.onnx", "run: compared\nepoch: 2")
    page = opened.page
    page.get_by_role("link", name="Compare with another").click()
    page.get_by_label("A, the baseline").select_option(first.rpartition("/")[2])
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", name=re.compile("is sharper"))).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("^Loss"))).to_be_visible()
    photograph(page, "compare")
    page.get_by_role("link", name="Series").click()
    page.get_by_role("checkbox", name="compared 2 checkpoints").check()
    page.get_by_role("checkbox", name="Loss").check()
    page.get_by_role("checkbox", name="Vertical").check()
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("img", name="max along compared")).to_be_visible()
    expect(page.get_by_role("img", name="Loss along compared")).to_be_visible()
    expect(page.get_by_role("row")).to_have_count(3)
    photograph(page, "series")
    # The address is all that another person needs.
    other = visit(service.url).page
    other.goto(page.url)
    expect(other.get_by_role("checkbox", name="Vertical")).to_be_checked()
    expect(other.get_by_role("img")).to_have_count(2)


@pytest.mark.slow
def test_plots_and_numbers_along_training_are_saved(
    service: Served, visit: OpenVisit, files: dict[str, Path], tmp_path: Path
) -> None:
    opened = visit(service.url)
    analysed(opened, files, labels="run: saved\nepoch: 1")
    page = opened.page
    page.goto("/series?label=run:saved")

    def saved(role: Literal["button", "link"], name: str) -> bytes:
        with page.expect_download() as download:
            page.get_by_role(role, name=name).click()
        download.value.save_as(tmp_path / download.value.suggested_filename)
        return (tmp_path / download.value.suggested_filename).read_bytes()

    pixels = saved("button", "PNG")
    with Image.open(tmp_path / "series-lambda_max.png") as picture:
        assert picture.format == "PNG"
        assert picture.width == 1600
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or ()}
    assert (0x00, 0x63, 0xA3) in colours  # that of the first run, so that the style sheet was applied
    assert len(pixels) > 5000
    assert saved("link", "SVG").startswith(b"<?xml")
    assert saved("link", "CSV").startswith(b"run,step,quantity,lower,upper,value")
    assert {path.name for path in tmp_path.iterdir()} == {
        "series-lambda_max.png",
        "series-lambda_max.svg",
        "series.csv",
    }


@pytest.mark.slow
def test_the_list_refreshes_itself_and_two_that_are_ticked_are_compared(
    service: Served, visit: OpenVisit, files: dict[str, Path], photograph: Photograph
) -> None:
    opened = visit(service.url)
    page, client = opened.page, service.client

    def listed(seed: int) -> str:
        request = json.dumps({"name": f"ticked {seed}", "options": {"seed": seed}})
        sent = {"model": files["small.onnx"].read_bytes(), "batch": files["small.npz"].read_bytes()}
        answer = client.post("/v1/analyses", files={**sent, "request": (None, request)}, headers={"Prefer": "wait=60"})
        assert answer.status_code == 201, answer.text
        return str(answer.headers["location"]).rpartition("/")[2]

    def refreshed() -> None:
        """Lets time pass until the list has been asked for once more."""
        count = page.evaluate("asked.length")
        while page.evaluate("asked.length") == count:
            page.clock.run_for(500)

    older, start = listed(1), datetime(2026, 1, 1, tzinfo=UTC)
    page.add_init_script("const ask = fetch; asked = []; fetch = (...all) => (asked.push(Date.now()), ask(...all));")
    page.clock.install(time=start)
    page.goto("/?name=ticked")
    page.clock.pause_at(start + timedelta(hours=1))
    compare = page.get_by_role("button", name="Compare the two that are ticked")
    page.get_by_label("Compare ticked 1").check()
    expect(compare).to_be_disabled()
    newer = listed(2)
    for _ in range(2):
        refreshed()
    expect(page.get_by_role("link", name="ticked 2")).to_be_visible()
    expect(page.get_by_label("Compare ticked 1")).to_be_checked()
    # What nobody sees is not asked for.
    hide = "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
    hide += " document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(hide, True)
    seen = page.evaluate("asked.length")
    page.clock.run_for(60_000)
    assert page.evaluate("asked.length") == seen
    page.evaluate(hide, False)
    refreshed()
    times = page.evaluate("asked")
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= 5000
    page.get_by_label("Compare ticked 2").check()
    expect(compare).to_be_enabled()
    photograph(page, "ticked")
    compare.click()
    expect(page).to_have_url(f"{service.url}/compare?a={older}&b={newer}")
    expect(page.get_by_role("heading", name="Not decided")).to_be_visible()


def test_the_main_path_needs_no_mouse(service: Served, visit: OpenVisit, files: dict[str, Path]) -> None:
    opened = visit(service.url)
    page = opened.page
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Model", exact=True)).to_be_focused()
    # Which file is chosen in a window of the system, out of reach of a test.
    opened.choose(files["small.onnx"], files["small.npz"])
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Analyse":
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Sharpness")).to_be_visible(timeout=60_000)
    page.get_by_text("Delete this analysis").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Delete permanently")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="New analysis")).to_be_visible()


def test_what_is_wrong_is_shown_at_its_field_and_focused(
    service: Served, visit: OpenVisit, files: dict[str, Path]
) -> None:
    opened = visit(service.url)
    page = opened.page
    page.goto("/")
    opened.choose(files["small.onnx"], files["small.npz"])
    page.get_by_label("Learning rate").fill("fast")
    page.get_by_role("button", name="Analyse").click()
    field = page.get_by_label("Learning rate")
    expect(field).to_be_focused()
    expect(field).to_have_value("fast")
    expect(field).to_have_accessible_description(re.compile("valid number"))
    field.fill("0.1")
    page.get_by_role("button", name="Analyse").click()  # the files are there still
    expect(page.get_by_role("heading", name="Sharpness")).to_be_visible(timeout=60_000)


@pytest.mark.slow  # tests/service/web looks for what loads the page again
def test_without_scripts_the_page_loads_itself_until_there_is_a_report(
    service: Served, visit: OpenVisit, files: dict[str, Path]
) -> None:
    opened = visit(service.url, java_script_enabled=False)
    analysed(opened, files, labels="scripts: off")
    assert opened.page.locator("meta[http-equiv=refresh]").count() == 0  # what has ended is not loaded again


def test_the_files_can_be_dropped_on_their_fields(service: Served, visit: OpenVisit, files: dict[str, Path]) -> None:
    opened = visit(service.url)
    page = opened.page
    page.goto("/")
    field = page.get_by_label("Model", exact=True)
    drop = """field => {
        const data = new DataTransfer()
        data.items.add(new File(['x'], 'dropped.onnx'))
        field.dispatchEvent(new DragEvent('dragenter', { dataTransfer: data, bubbles: true }))
        return field.closest('.drop').classList.contains('over')
    }"""
    assert field.evaluate(drop)
    assert field.evaluate("field => getComputedStyle(field).pointerEvents") != "none"


@pytest.mark.slow  # test_accessibility signs in as well, and tests/service/web looks at sessions without a browser
def test_one_signs_in_and_out_and_links_from_elsewhere_find_the_session(
    visit: OpenVisit, files: dict[str, Path], photograph: Photograph
) -> None:
    with served(OMP_NUM_THREADS="1", WSB_API_KEYS=f"vision-team:{hash_key(KEY)}") as locked:
        opened = visit(locked.url)
        page = opened.page
        page.goto("/series?label=run:a")
        photograph(page, "sign-in")
        page.get_by_label("API key").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_label("API key")).to_have_accessible_description(re.compile("This key is unknown"))
        page.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"{locked.url}/series?label=run:a")
        # The cookie is enough for the stream of events and the form.
        path = analysed(opened, files)
        elsewhere = visit("http://elsewhere.localhost", may_ask="http://")
        elsewhere.context.add_cookies(opened.context.cookies())
        elsewhere.page.route(
            "http://elsewhere.localhost/",
            lambda route: route.fulfill(body=f'<a href="{path}">go</a>', content_type="text/html"),
        )
        elsewhere.page.goto("/")
        elsewhere.page.get_by_role("link", name="go").click()
        expect(elsewhere.page.get_by_role("heading", name="Sharpness")).to_be_visible()
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        page.goto(path)
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


@pytest.mark.slow  # tests/service/web looks at every address below a prefix
def test_everything_works_below_a_prefix(visit: OpenVisit, files: dict[str, Path]) -> None:
    with served(OMP_NUM_THREADS="1", WSB_ROOT_PATH="/tools/wsb", WSB_API_KEYS=f"t:{hash_key(KEY)}") as below:
        opened = visit(f"{below.url}/tools/wsb/")
        page = opened.page
        page.goto("")
        page.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        opened.choose(files["small.onnx"], files["small.npz"])
        page.get_by_role("button", name="Analyse").click()
        expect(page.get_by_role("heading", name="Sharpness")).to_be_visible(timeout=60_000)
        page.get_by_role("link", name="Compare", exact=True).click()
        page.get_by_role("link", name="wsb", exact=True).click()
        expect(page.get_by_role("table")).to_contain_text("Done")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


@pytest.mark.slow  # to lay it out takes a browser longest of all pages
def test_the_specification_is_shown_and_can_be_tried_without_a_network(service: Served, visit: OpenVisit) -> None:
    page = visit(service.url).page
    page.goto("/docs")
    # Closed at first: to lay out all operations takes a browser many seconds.
    page.locator("#operations-tag-service").click()
    page.get_by_text("/v1/capabilities", exact=True).click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".responses-table .response .microlight").first).to_contain_text("report_schema")
