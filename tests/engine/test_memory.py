"""How much memory an analysis works in by default."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import wsb_engine as wsb
from wsb_engine.analysis.inputs import memory_limit
from wsb_engine.memory import SHARE, control_group_limits, total_memory

CPU = torch.device("cpu")


def groups(tmp_path: Path, own: str, limits: dict[str, str]) -> list[int]:
    """Limits found among control groups with these files."""
    for place, content in limits.items():
        path = tmp_path / "root" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "own").write_text(own)
    return list(control_group_limits(tmp_path / "root", tmp_path / "own"))


def test_every_group_on_the_way_up_limits_memory_in_version_2(tmp_path: Path) -> None:
    limits = {"memory.max": "max\n", "a/memory.max": "3000\n", "a/b/memory.max": "9000\n", "other/memory.max": "10\n"}
    assert groups(tmp_path, "0::/a/b\n", limits) == [9000, 3000]


def test_version_1_has_a_folder_of_its_controller(tmp_path: Path) -> None:
    name = "memory.limit_in_bytes"
    limits = {f"memory/{name}": "9223372036854771712\n", f"memory/jobs/{name}": "5000\n", f"cpu/jobs/{name}": "1\n"}
    assert min(groups(tmp_path, "4:memory,hugetlb:/jobs\n3:cpu:/jobs\n", limits)) == 5000


def test_a_container_that_sees_the_path_of_its_host_finds_its_own_group(tmp_path: Path) -> None:
    assert groups(tmp_path, "0::/system.slice/docker-1.scope\n", {"memory.max": "4096\n"}) == [4096]


@pytest.mark.parametrize("own", ["", "0::/\n", "0::/../../a\n", "7:name=systemd:/\n"])
def test_without_a_limit_there_is_none(tmp_path: Path, own: str) -> None:
    assert groups(tmp_path, own, {}) == []


def test_the_default_is_a_share_of_what_there_is_in_total_and_does_not_change() -> None:
    assert memory_limit(wsb.Options(), CPU) == memory_limit(wsb.Options(), CPU) == int(SHARE * total_memory(CPU))
    assert memory_limit(wsb.Options(memory_limit=1 << 20), CPU) == 1 << 20


def test_the_limits_of_the_process_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (1 << 28, 1 << 29))
    assert total_memory(CPU) == 1 << 28
