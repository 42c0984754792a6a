"""CITATION.cff is what readers of Citation File Format 1.2.0 expect, and says what the project says elsewhere."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

from wsb_engine.citations import SOURCES

ROOT = Path(__file__).resolve().parents[1]
TEXT = {"type": "string", "minLength": 1}
PERSON = {
    "type": "object",
    "properties": {"family-names": TEXT, "given-names": TEXT},
    "required": ["family-names"],
    "additionalProperties": False,
}
ENTITY = {"type": "object", "properties": {"name": TEXT}, "required": ["name"], "additionalProperties": False}
AUTHORS = {"type": "array", "items": {"oneOf": [PERSON, ENTITY]}, "minItems": 1, "uniqueItems": True}
IDENTIFIER = {
    "type": "object",
    "properties": {"type": {"enum": ["doi", "url", "swh", "other"]}, "value": TEXT},
    "required": ["type", "value"],
    "additionalProperties": False,
}
REFERENCE = {
    "type": "object",
    "properties": {
        "type": {"enum": ["article", "book"]},
        "title": TEXT,
        "authors": AUTHORS,
        "year": {"type": "integer"},
        "journal": TEXT,
        "volume": {"type": ["integer", "string"]},
        "start": {"type": ["integer", "string"]},
        "end": {"type": ["integer", "string"]},
        "doi": {"type": "string", "pattern": r"^10\.\d{4,9}(\.\d+)?/[A-Za-z0-9:/_;\-\.\(\)\[\]\\]+$"},
        "identifiers": {"type": "array", "items": IDENTIFIER, "minItems": 1},
        "url": {"type": "string", "pattern": "^(https|http|ftp|sftp)://.+"},
    },
    "required": ["type", "title", "authors"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {
        "cff-version": {"const": "1.2.0"},
        "message": TEXT,
        "title": TEXT,
        "type": {"enum": ["software", "dataset"]},
        "abstract": TEXT,
        "authors": AUTHORS,
        "version": TEXT,
        "license": {"const": "Apache-2.0"},
        "keywords": {"type": "array", "items": TEXT, "minItems": 1, "uniqueItems": True},
        "references": {"type": "array", "items": REFERENCE, "minItems": 1, "uniqueItems": True},
    },
    "required": ["cff-version", "message", "title", "authors"],
    "additionalProperties": False,
}
"""The keys of the format that the file uses."""


def cff() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    return found


def test_the_file_is_valid() -> None:
    Draft202012Validator(SCHEMA).validate(cff())


@pytest.mark.parametrize(
    "wrong", [{"cff-version": "1.3.0"}, {"authors": []}, {"authors": [{"nickname": "x"}]}, {"versoin": "1"}]
)
def test_a_file_that_is_not_valid_is_noticed(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Draft202012Validator(SCHEMA).validate({**cff(), **wrong})


def test_it_names_the_license_of_the_distribution_and_no_version_which_is_that_of_the_tag() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in cff()
    assert cff()["license"] == project["license"]


def test_its_references_are_those_of_the_bound_in_closed_form() -> None:
    urls = {source.key: source.url for source in SOURCES}
    paper, theorem = cff()["references"]
    assert paper["url"] == urls["omae_2026"]
    assert f"https://doi.org/{theorem['doi']}" == urls["wolkowicz_styan_1980"]
