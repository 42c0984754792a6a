from __future__ import annotations

import pytest

from service.http.headers import matches, preferred_wait


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("wait=10", 10),
        ("Wait = 10", 10),
        ('wait="10"', 10),
        ("respond-async, wait=10", 10),
        ("wait=10; strict", 10),
        ("wait=0", 0),
        ("wait=600", 60),
        ("wait=-1", None),
        ("wait=ten", None),
        ("wait", None),
        ("return=minimal", None),
    ],
)
def test_prefer_is_read_as_rfc_7240_has_it(header: str | None, seconds: float | None) -> None:
    assert preferred_wait(header, 60) == seconds


@pytest.mark.parametrize(
    ("header", "expected"),
    [(None, False), ('"a"', True), ('W/"a"', True), ('"b", "a"', True), ("*", True), ('"b"', False), ("a", False)],
)
def test_entity_tags_are_compared_weakly(header: str | None, expected: bool) -> None:
    assert matches(header, '"a"') is expected
