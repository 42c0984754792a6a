"""No file makes a reader fail in a way that it does not name; the long form is scripts/fuzz."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest
from support.forms import full

import wsb_engine as wsb
from fuzz.corpus import BATCHES, FOUND, MODELS, pairs
from fuzz.deployed import attack
from fuzz.mutations import mutated
from wsb_engine.memory import ran_out

IN_PROCESS, IN_FULL, DEPLOYED = 6, 30, 4
KINDS = (*MODELS, *BATCHES)


def read(content: bytes, other: bytes, kind: str) -> None:
    """Raises what a reader leaves unnamed."""
    model, batch = (other, content) if kind in BATCHES else (content, other)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            classifier, rows = wsb.load_model(model), wsb.load_batch(batch)
            wsb.analyze(classifier, rows, wsb.Options(moments="none", max_products=2, device="cpu"))
        except wsb.EngineError as error:
            assert (bool(error.code), bool(error.advice)) == (True, True)  # noqa: PT017
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise


@pytest.mark.parametrize(
    ("kind", "seeds"), [*((kind, IN_PROCESS) for kind in KINDS), *(full(kind, IN_FULL) for kind in KINDS)]
)
def test_a_changed_file_is_read_or_refused(kind: str, seeds: int) -> None:
    for seed in range(seeds):
        source = random.Random(f"{kind} {seed}")
        content, other = source.choice(pairs(kind))
        read(mutated(content, kind, source), other, kind)


@pytest.mark.parametrize("path", sorted(FOUND.glob("*")), ids=lambda path: path.name)
def test_what_was_found_once_stays_mended(path: Path) -> None:
    kind = path.suffix[1:]
    for _, other in pairs(kind):
        read(path.read_bytes(), other, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_file_ends_with_a_code_in_the_sandbox(kind: str) -> None:
    assert attack(kind, runs=DEPLOYED, seed="short") == (DEPLOYED, [])
