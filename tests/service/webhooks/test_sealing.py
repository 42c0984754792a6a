"""Secrets of webhooks at rest: sealing, opening, and the rotation of keys."""

from __future__ import annotations

import base64
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import SecretStr, ValidationError
from support.receiver import SECRET, receiver
from support.service import Files, Service, StartService, running_service, submit, until

from service.settings import Settings
from service.webhooks.sealing import SealedError, opened, resealed, sealed

OLD, NEW = "o" * 32, "n" * 32


def keys(*texts: str) -> tuple[SecretStr, ...]:
    return tuple(map(SecretStr, texts))


@pytest.mark.parametrize("size", [24, 64])
def test_a_sealed_secret_opens_with_its_key(size: int) -> None:
    secret, webhook = f"whsec_{base64.b64encode(bytes(range(size))).decode()}", uuid4()
    stored = sealed(secret, keys(OLD), webhook)
    assert secret not in stored
    assert opened(stored, keys(OLD), webhook) == secret


def test_equal_secrets_are_stored_differently() -> None:
    webhook = uuid4()
    assert sealed(SECRET, keys(OLD), webhook) != sealed(SECRET, keys(OLD), webhook)


def test_nothing_but_its_key_opens_a_sealed_secret_and_only_where_it_was_stored() -> None:
    webhook = uuid4()
    stored = sealed(SECRET, keys(OLD), webhook)
    changed = stored[:-10] + ("A" if stored[-10] != "A" else "B") + stored[-9:]
    for text, given, place in (
        (stored, (), webhook),
        (stored, keys(NEW), webhook),
        (stored, keys(OLD), uuid4()),
        (changed, keys(OLD), webhook),
        ("no token", keys(OLD), webhook),
    ):
        with pytest.raises(SealedError, match="WSB_WEBHOOKS_KEY"):
            opened(text, given, place)


def test_what_was_stored_without_a_key_stays_readable() -> None:
    webhook = uuid4()
    assert sealed(SECRET, (), webhook) == SECRET
    assert opened(SECRET, keys(OLD), webhook) == SECRET


def test_the_first_key_seals_and_all_keys_open() -> None:
    webhook = uuid4()
    old, new = sealed(SECRET, keys(OLD, NEW), webhook), sealed(SECRET, keys(NEW, OLD), webhook)
    for each in (old, new):
        assert opened(each, keys(OLD, NEW), webhook) == opened(each, keys(NEW, OLD), webhook) == SECRET
    assert opened(new, keys(NEW), webhook) == SECRET
    with pytest.raises(SealedError):
        opened(old, keys(NEW), webhook)


def test_only_what_is_not_sealed_with_the_first_key_is_sealed_again() -> None:
    webhook = uuid4()
    both, old = keys(NEW, OLD), sealed(SECRET, keys(OLD), webhook)
    for stored in (SECRET, old):
        again = resealed(stored, both, webhook)
        assert again is not None
        assert opened(again, keys(NEW), webhook) == SECRET
        assert resealed(again, both, webhook) is None
    with pytest.raises(SealedError):
        resealed(old, keys(NEW), webhook)


def test_keys_are_separated_by_commas_and_none_may_be_short() -> None:
    settings = Settings(_env_file=None, webhooks_key=f"{NEW}, {OLD}")
    assert [key.get_secret_value() for key in settings.webhooks_key] == [NEW, OLD]
    assert Settings(_env_file=None).webhooks_key == ()
    for wrong in ("short", f"{NEW},short", f"{NEW},"):
        with pytest.raises(ValidationError, match="32"):
            Settings(_env_file=None, webhooks_key=wrong)


def stored(service: Service) -> list[str]:
    return [secret for (secret,) in service.sql("SELECT secret FROM webhooks ORDER BY created_at")]


@pytest.mark.slow
def test_a_service_that_starts_with_a_new_key_seals_everything_with_it_and_goes_on_signing(
    database_url: str, tmp_path: Path, files: Files
) -> None:
    with receiver() as there:
        body = {"url": there.url, "secret": SECRET}

        def settings(*key: str) -> Settings:
            values = {"database_url": database_url, "data_dir": tmp_path, "webhooks_private": True, "poll_seconds": 0.2}
            return Settings(_env_file=None, webhooks_key=key, **values)

        # One after the other: any that runs delivers.
        with running_service(settings(), worker=False) as open_:
            open_.client.post("/v1/webhooks", json=body).raise_for_status()
        with running_service(settings(OLD), worker=False) as old:
            [in_old] = stored(old)
            old.client.post("/v1/webhooks", json=body).raise_for_status()
        assert SECRET not in in_old
        with running_service(settings(NEW, OLD), worker=False) as both:
            assert in_old not in stored(both)
        with running_service(settings(NEW), worker=False) as new:
            new.client.post(f"/v1/analyses/{submit(new, files)}/cancel")
            until(lambda: len(there.received) == 2)
            # A slow receiver has answered before the success is noted.
            until(lambda: all(each["failures"] == 0 for each in new.client.get("/v1/webhooks").json()["items"]))
            assert all(SECRET not in secret for secret in stored(new))


def test_a_secret_that_no_key_opens_is_a_failure_that_retries(start_service: StartService, files: Files) -> None:
    with receiver() as there:
        soon = {"webhooks_private": True, "webhook_retry_seconds": (0.01,) * 3}
        service = start_service(worker=False, webhooks_key=NEW, **soon)
        service.client.post("/v1/webhooks", json={"url": there.url, "secret": SECRET}).raise_for_status()
        webhook = service.sql("SELECT id FROM webhooks")[0][0]
        service.sql("UPDATE webhooks SET secret = %s", sealed(SECRET, keys(OLD), webhook))
        service.client.post(f"/v1/analyses/{submit(service, files)}/cancel")
        until(lambda: service.client.get("/v1/webhooks").json()["items"][0]["failures"] == 4)
        assert there.received == []
