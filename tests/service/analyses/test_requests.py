"""What a request with many errors costs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from service.analyses.baselines.comparison_schemas import ComparisonRequest
from service.analyses.schemas import AnalysisRequest
from service.errors import InvalidRequestError
from service.fields import MAX_ERRORS
from service.http.documents import parse

MANY = 9_000


def refused(schema: type[Any], document: dict[str, Any]) -> tuple[InvalidRequestError, ValidationError]:
    with pytest.raises(InvalidRequestError) as caught:
        parse(schema, json.dumps(document).encode())
    assert isinstance(caught.value.__cause__, ValidationError)
    return caught.value, caught.value.__cause__


def test_a_response_names_at_most_a_hundred_errors_and_says_how_many_more_there_are() -> None:
    error, cause = refused(AnalysisRequest, {"options": {str(number): 0 for number in range(200)}})
    assert len(error.errors) == MAX_ERRORS
    assert f"{cause.error_count() - MAX_ERRORS} errors more are not listed" in error.detail


@pytest.mark.parametrize("item", ["x", {}])
@pytest.mark.parametrize(
    ("schema", "names"),
    [
        (ComparisonRequest, ("candidate", "warnings")),
        (ComparisonRequest, ("candidate", "blocks")),
        (AnalysisRequest, ("options", "devices")),
        (AnalysisRequest, ("options", "parameters")),
    ],
)
def test_a_long_list_of_wrong_items_is_no_list_of_errors(schema: type[Any], names: tuple[str, str], item: Any) -> None:
    outer, inner = names
    _, cause = refused(schema, {outer: {inner: [item] * MANY}})
    assert cause.error_count() < MAX_ERRORS


def test_errors_do_not_copy_what_they_are_about() -> None:
    _, cause = refused(ComparisonRequest, {"candidate": {"warnings": [{}] * MANY}})
    of_candidate = [
        error
        for error in cause.errors()
        if error["type"] == "missing" and "candidate" in error["loc"] and "warnings" not in error["loc"]
    ]
    assert len(of_candidate) > 1
    assert len({id(error["input"]) for error in of_candidate}) == 1
