from __future__ import annotations

import base64
import hashlib
import itertools
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from service.rendering import render_html
from service.rendering.html import MAX_ROWS
from wsb_engine.presentation.text import MAX_NAME

VOID = {"meta", "link", "br", "img", "input", "hr"}
OURS = (
    *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "section", "div", "p", "h1", "h2"),
    *(
        "h3",
        "span",
        "sub",
        "a",
        "code",
        "pre",
        "dl",
        "dt",
        "dd",
        "ul",
        "li",
        "figure",
        "figcaption",
        "details",
        "summary",
    ),
    *("table", "caption", "thead", "tbody", "tr", "th", "td"),
    *("svg", "desc", "text", "tspan", "line", "path", "circle", "polygon", "rect"),
)


class Page(HTMLParser):
    """Elements with their attributes and text, and whether what was opened was closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[tuple[str, list[str]]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        text: list[str] = []
        self.elements.append((tag, dict(attrs), text))
        if tag not in VOID:
            self.open.append((tag, text))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, text in self.open:
            text.append(data)

    def all(self, *tags: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, "".join(text)) for tag, attributes, text in self.elements if tag in tags]


def page_of(case: Any, **arguments: Any) -> Page:
    return Page(render_html(case.report, case.verdict, **arguments))


def test_nothing_is_loaded_and_nothing_runs(case: Any) -> None:
    page = page_of(case)
    assert {tag for tag, _, _ in page.elements} <= set(OURS)
    names = {name for _, attributes, _ in page.elements for name in attributes}
    assert not {"src", "href", "srcset", "action", "style", "data", "poster"} & names
    assert not [name for name in names if name.startswith("on")]
    [(_, style)] = page.all("style")
    assert "url(" not in style
    assert "@import" not in style


def test_the_content_security_policy_allows_this_style_and_nothing_else(case: Any) -> None:
    page = page_of(case)
    [policy] = [str(a["content"]) for a, _ in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    [(_, style)] = page.all("style")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def test_every_plot_names_and_describes_itself(case: Any) -> None:
    page = page_of(case)
    texts = {attributes.get("id"): text for attributes, text in page.all("title", "desc")}
    for attributes, _ in page.all("svg"):
        assert attributes["role"] == "img"
        assert texts[attributes["aria-labelledby"]]
        assert texts[attributes["aria-describedby"]]


def test_a_full_report_has_every_plot(perceptron: Any) -> None:
    keys = [
        str(attributes["aria-labelledby"]).removesuffix("-title") for attributes, _ in page_of(perceptron).all("svg")
    ]
    assert keys == ["bounds", "convergence", "spectrum", "density", "blocks", "shares", "orthogonality"]


def test_no_two_elements_have_the_same_id(case: Any) -> None:
    ids = [attributes["id"] for _, attributes, _ in page_of(case).elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_headings_go_down_one_step_at_a_time(case: Any) -> None:
    levels = [int(tag[1]) for tag, _, _ in page_of(case).elements if tag in ("h1", "h2", "h3")]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_table_has_a_caption_and_scoped_headers(case: Any) -> None:
    page = page_of(case)
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attributes.get("scope") in ("row", "col") for attributes, _ in page.all("th"))


def test_regions_that_scroll_can_be_reached_by_keyboard(case: Any) -> None:
    boxes = [attributes for attributes, _ in page_of(case).all("div") if attributes.get("class") == "scroll"]
    assert all(box["tabindex"] == "0" and box["role"] == "region" and box["aria-label"] for box in boxes)


def test_the_headline_comes_first_and_then_the_verdict_which_says_each_rule(perceptron: Any) -> None:
    page = page_of(perceptron)
    assert [text for _, text in page.all("h2")[:2]] == ["Sharpness", "Verdict: ✗ Failed"]
    rows = [text.split() for _, text in page.all("tr")]
    assert any("enclosure.lambda_max.upper" in row and "Failed" in row for row in rows)
    assert any("bounds.wolkowicz_styan.lambda_max.upper" in row and "Warning" in row for row in rows)
    assert any("loss.accuracy" in row and "Passed" in row for row in rows)


def test_limits_of_the_policy_are_drawn(perceptron: Any) -> None:
    texts = [text for attributes, text in page_of(perceptron).all("text") if attributes.get("class") == "limit"]
    assert [text.split()[0] for text in texts] == ["fail", "warn"]


def test_the_headline_has_the_digits_that_are_certain(general: Any) -> None:
    [text] = [text for attributes, text in page_of(general).all("p") if attributes.get("class") == "hero"]
    assert text == "λmax = 2.39550897090 (certified except with probability 1e-9, ±\u00a05e-12)"


def test_text_of_strangers_stays_text(hostile: Any) -> None:
    page = page_of(hostile, title="</title><script>alert(1)</script>", reproduce="<b>run</b>")
    assert page.all("title")[0][1] == "</title><script>alert(1)</script>"
    assert page.all("pre")[0][1] == "<b>run</b>"
    assert "<script>alert(1)</script>" in [text for _, text in page.all("code")]


def test_nothing_invisible_is_left_in_names(hostile: Any) -> None:
    html = render_html(hostile.report, hostile.verdict)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]", html)
    assert "safe⟨U+202E⟩gnp.exe" in html
    assert f">{'n' * MAX_NAME}…<" in html


def test_long_lists_are_cut_and_say_so(hostile: Any) -> None:
    check = hostile.report.checks[0]
    report = hostile.report.model_copy(update={"checks": [check] * (MAX_ROWS + 7)})
    assert "… and 7 more" in render_html(report)


def test_many_layers_are_drawn_without_numbers_and_the_largest_kept(perceptron: Any) -> None:
    layer = perceptron.report.layers[0]
    layers = [layer.model_copy(update={"name": f"layer{i}", "frobenius_squared": float(i)}) for i in range(100)]
    report = perceptron.report.model_copy(update={"layers": layers, "blocks": [[1.0] * 100] * 100})
    html = render_html(report)
    assert "The 40 layers with the largest diagonal blocks, of 100." in html
    assert '<tr><th scope="row" class="named">61 <code>layer60</code>' in html


@pytest.mark.parametrize("blocks", [[], [[1.0]], [[1.0, 1.0]], [[1.0, 1.0, 1.0]] * 2])
def test_blocks_that_do_not_fit_the_layers_are_not_drawn(perceptron: Any, blocks: list[list[float]]) -> None:
    report = perceptron.report.model_copy(update={"blocks": blocks})
    assert 'id="blocks-title"' not in render_html(report)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(perceptron: Any, theme: int) -> None:
    [(_, style)] = page_of(perceptron).all("style")
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[theme]))
    pairs = [(ink, back) for ink in ("ink", "muted", "link") for back in ("page", "surface", "sunken")]
    pairs += [(kind, f"{kind}-back") for kind in ("pass", "warn", "fail", "error")]
    pairs += [("fail", "surface"), ("ink", "heat")]
    assert [pair for pair in pairs if contrast(*(colours[part] for part in pair)) < 4.5] == []
    lines = [(f"series-{i}", "surface") for i in (1, 2, 3)]
    assert all(contrast(colours[line], colours[back]) >= 3 for line, back in lines)


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
