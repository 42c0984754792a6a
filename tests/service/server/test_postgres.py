from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from support.forms import full
from support.service import until

from service.server.postgres import embedded_postgres

HOLD = """
import sys, time
from pathlib import Path
from service.server.postgres import embedded_postgres
with embedded_postgres(Path(sys.argv[1])):
    print("up", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not below pytest's folder, which is closed to the user that Postgres runs as when the tests run as root.
    with tempfile.TemporaryDirectory(prefix="wsb-test-") as name:
        yield Path(name)


def postmaster(folder: Path) -> int:
    return int((folder / "postgres" / "postmaster.pid").read_text().split()[0])


def answers(url: str) -> bool:
    try:
        with psycopg.connect(url) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False


def test_a_killed_server_is_back_under_the_same_address_with_its_data(folder: Path) -> None:
    with embedded_postgres(folder) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
        killed = postmaster(folder)
        os.kill(killed, signal.SIGKILL)
        until(lambda: answers(url))
        assert postmaster(folder) != killed
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT number FROM kept").fetchone() == (7,)


@pytest.mark.slow
def test_a_server_whose_backend_is_killed_is_back(folder: Path) -> None:
    with embedded_postgres(folder) as url:
        with psycopg.connect(url) as connection:
            os.kill(connection.info.backend_pid, signal.SIGKILL)
        until(lambda: answers(url))


@pytest.mark.slow
def test_what_a_killed_owner_has_left_running_is_ended(folder: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        owner.kill()
    left = postmaster(folder)
    with embedded_postgres(folder) as url:
        assert answers(url)
        assert postmaster(folder) != left


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", [full("{pid}\n"), full(""), "{pid}\n/somewhere\n1700000000\n5432\n/tmp\n\n 1 2\nready\n"]
)
def test_a_pid_file_that_names_another_process_by_now_does_not_matter(folder: Path, content: str) -> None:
    with embedded_postgres(folder):
        pass
    (folder / "postgres" / "postmaster.pid").write_text(content.format(pid=os.getpid()))
    with embedded_postgres(folder) as url:
        assert answers(url)


@pytest.mark.slow
def test_a_database_whose_creation_was_cut_off_is_created_anew(folder: Path) -> None:
    (folder / "postgres.new").mkdir()
    (folder / "postgres.new" / "PG_VERSION").write_text("18\n")
    with embedded_postgres(folder) as url:
        assert answers(url)


@pytest.mark.slow
def test_a_data_folder_may_have_a_long_name_with_spaces(folder: Path) -> None:
    with embedded_postgres(folder / ("a long name " * 10)) as url:
        assert answers(url)


@pytest.mark.slow
def test_nothing_runs_after_the_end(folder: Path) -> None:
    with embedded_postgres(folder) as url:
        pid = postmaster(folder)
    assert not answers(url)
    assert not Path(f"/proc/{pid}/cmdline").exists() or Path(f"/proc/{pid}/cmdline").read_bytes() == b""


@pytest.mark.slow
def test_a_server_that_can_not_start_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with embedded_postgres(folder):
        pass
    (folder / "postgres" / "postgresql.conf").write_text("no_such_setting = 1\n")
    monkeypatch.setattr("service.server.postgres._RETRY_SECONDS", 0.1)
    with pytest.raises(OSError, match="no_such_setting"), embedded_postgres(folder):
        pass
