"""A backup that is made while clients send, delete and read: what it contains is whole, and equal to what was there."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import psycopg
import pytest
from resilience.harness import Plan, Run, running
from support.command import wsb
from support.served import served
from support.service import onnx_mlp, until

from service.server.postgres import existing_postgres

REPORTS = "SELECT analysis::text, body FROM reports"


def churn(run: Run) -> None:
    """Upload models and delete them again."""
    seed = 1000
    with httpx.Client(base_url=run.tree.url, timeout=30) as client:
        while not run.over.is_set():
            seed += 1
            response = client.post("/v1/models", content=onnx_mlp(seed=seed))
            if response.status_code == 201 and seed % 4:
                client.delete(response.headers["location"])


@pytest.mark.slow
def test_backups_under_load_give_installations_with_every_report_and_file(say: Callable[[str], None]) -> None:
    with (
        running(Plan.make(1, analyses=60, kinds=()), say) as run,
        tempfile.TemporaryDirectory(prefix="wsb-test-") as name,
    ):
        Path(name).chmod(0o755)
        churning = threading.Thread(target=churn, args=(run,))
        churning.start()
        for number in range(3):
            until(lambda number=number: len(run.accepted) >= 10 * (number + 1))
            file = Path(name, f"backup-{number}")
            saved = wsb("backup", str(file), WSB_DATA_DIR=str(run.tree.data))
            assert saved.returncode == 0, saved.stderr
            say(f"{saved.stdout.strip()}; {len(run.accepted)} accepted")
        run.over.set()
        churning.join()
        with psycopg.connect(run.tree.database_url) as connection:
            reports = dict(connection.execute(REPORTS).fetchall())
        for number in range(3):
            check(Path(name, f"backup-{number}"), Path(name, f"data-{number}"), reports, say)


def check(file: Path, data: Path, reports: dict[str, str], say: Callable[[str], None]) -> None:
    restored = wsb("restore", str(file), WSB_DATA_DIR=str(data))
    assert restored.returncode == 0, restored.stderr
    examined = wsb("doctor", "--files", WSB_DATA_DIR=str(data))
    assert "files of models and batches are as they were sent" in examined.stdout, examined.stdout
    with existing_postgres(data) as url, psycopg.connect(url) as connection:
        found = dict(connection.execute(REPORTS).fetchall())
    assert found.items() <= reports.items()
    assert found
    url = f"postgresql://postgres:@/postgres?host={data}/postgres"
    with served(WSB_DATA_DIR=str(data)) as server, psycopg.connect(url, autocommit=True) as connection:
        live = "SELECT count(*) FROM analyses WHERE finished_at IS NULL"
        until(lambda: connection.execute(live).fetchone() == (0,))
        states = connection.execute("SELECT state, count(*) FROM analyses GROUP BY state").fetchall()
        assert [state for state, _ in states] == ["succeeded"]
        assert server.ready()
    say(f"{restored.stdout.strip()} Then {states}.")
