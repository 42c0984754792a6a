"""The digest of a model is that of its file, or of the manifest of all its files."""

import hashlib

import pytest

from wsb_engine.formats.digest import File, manifest, model_digest

MODEL = File(3, hashlib.sha256(b"abc").hexdigest())
FIRST = File(1, hashlib.sha256(b"x").hexdigest())
SECOND = File(0, hashlib.sha256(b"").hexdigest())


def test_without_parts_the_digest_is_that_of_the_file():
    assert model_digest(MODEL, {}) == hashlib.sha256(b"abc").hexdigest()


def test_with_parts_it_is_that_of_lines_with_the_model_first_and_the_parts_sorted():
    text = f"model 3 {MODEL.sha256}\na.data 0 {SECOND.sha256}\nm.onnx.data 1 {FIRST.sha256}\n".encode()
    parts = {"m.onnx.data": FIRST, "a.data": SECOND}
    assert manifest(MODEL, parts) == text
    assert model_digest(MODEL, parts) == hashlib.sha256(text).hexdigest()
    assert model_digest(MODEL, dict(reversed(parts.items()))) == model_digest(MODEL, parts)


def test_a_part_called_model_is_not_the_model():
    assert model_digest(MODEL, {"model": FIRST}) != model_digest(FIRST, {"model": MODEL})


@pytest.mark.parametrize("name", ["", "a\nb", "a\r"])
def test_names_that_would_make_two_lines_are_refused(name):
    with pytest.raises(ValueError, match="can't name"):
        manifest(MODEL, {name: FIRST})
