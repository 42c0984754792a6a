"""docs/ci.md says what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import service.policies
from service.cli.commands import Exit
from service.policies.policy import Mismatch, Policy, Rule, parse_toml

GUIDE = (Path(__file__).parents[3] / "docs" / "ci.md").read_text(encoding="utf-8")


def rows(head: str) -> set[str]:
    """Names in the first column of the table with this first head."""
    table = GUIDE.split(f"| {head} |", 1)[1].split("\n\n", 1)[0]
    return {name for row in table.splitlines()[2:] for name in re.findall(r"`?(\w+)`?", row.split("|")[1])}


def test_every_key_is_in_its_table() -> None:
    assert rows("key of a rule") == set(Rule.model_fields)
    assert rows("key of the policy") == set(Policy.model_fields)


def test_every_exit_code_is_in_the_table() -> None:
    assert rows("exit code") == {str(int(code)) for code in Exit}


def test_every_difference_that_can_be_allowed_is_named() -> None:
    assert [name for name in get_args(Mismatch) if f"`{name}`" not in GUIDE] == []


def test_every_code_of_a_verdict_is_named() -> None:
    source = "".join(path.read_text() for path in Path(service.policies.__file__).parent.glob("*.py"))
    codes = set(re.findall(r'code="(\w+)"', source)) | set(re.findall(r'(?:report|baseline), "(\w+)"', source))
    assert {"undecided", "missing", "baseline_mismatch", "failed_check"} <= codes
    assert [code for code in sorted(codes) if f"`{code}`" not in GUIDE] == []


def test_its_first_policy_is_one() -> None:
    block = re.search(r"(?:^    .*\n|^\n)+", GUIDE[GUIDE.index("    [[rule]]") :], re.MULTILINE)
    assert block is not None
    assert len(parse_toml(re.sub(r"^    ", "", block[0], flags=re.MULTILINE).encode()).rule) == 2
