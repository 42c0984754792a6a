from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings


def test_every_setting_can_be_given_as_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSB_MAX_MODEL_BYTES", "1234")
    monkeypatch.setenv("WSB_LOG_FORMAT", "json")
    settings = Settings(_env_file=None)
    assert (settings.max_model_bytes, settings.log_format) == (1234, "json")


def test_a_dotenv_file_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("WSB_MAX_QUEUE=7\nOTHER=1\n")
    monkeypatch.chdir(tmp_path)
    assert Settings().max_queue == 7


def test_blobs_are_in_the_data_folder_unless_another_is_named(tmp_path: Path) -> None:
    assert Settings(_env_file=None, data_dir=tmp_path).blob_dir == tmp_path / "blobs"
    assert Settings(_env_file=None, blob_url="file:///srv/with%20space").blob_dir == Path("/srv/with space")
    assert Settings(_env_file=None, blob_url="/srv/blobs").blob_dir == Path("/srv/blobs")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("database_url", "mysql://host/name"),
        ("blob_url", "ftp://host/path"),
        ("max_queue", 0),
        ("job_seconds", 0),
        ("stalled_seconds", 1.0),
        ("database_reserved_connections", 15),
        ("log_format", "xml"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError):
        Settings(_env_file=None, **{name: value})
