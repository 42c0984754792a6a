"""compose.yaml: what Compose makes of it, and what must be true of every container in it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

TEXT = (Path(__file__).parents[2] / "compose.yaml").read_text()
SECRETS = ("POSTGRES_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "WSB_API_KEYS")
OURS = ("api", "worker", "gpu-worker")


class MissingError(Exception):
    """A variable that has to be set is not."""


def interpolated(environment: dict[str, str]) -> dict[str, Any]:
    """The file with its variables filled in, as Compose fills them in."""

    def value(match: re.Match[str]) -> str:
        name, operator, rest = match["name"], match["operator"], match["rest"]
        if not environment.get(name) and operator == ":?":
            raise MissingError(name)
        return environment.get(name) or rest

    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: filled(item) for key, item in node.items()}
        if isinstance(node, list):
            return [filled(item) for item in node]
        return (
            re.sub(r"\$\{(?P<name>\w+)(?P<operator>:[-?])(?P<rest>[^}]*)\}", value, node)
            if isinstance(node, str)
            else node
        )

    document: dict[str, Any] = filled(yaml.safe_load(TEXT))
    return document


@pytest.fixture
def compose() -> dict[str, Any]:
    return interpolated(dict.fromkeys(SECRETS, "given"))


@pytest.fixture
def services(compose: dict[str, Any]) -> dict[str, Any]:
    services: dict[str, Any] = compose["services"]
    return services


def read_as_compose(document: dict[str, Any]) -> Any:
    if os.environ.get("CI") != "true":
        pytest.importorskip("compose_spec", reason="compose-spec is not installed")
    import compose_spec

    return compose_spec.PyCompose.from_json(json.dumps(document))


def test_the_file_is_valid(compose: dict[str, Any]) -> None:
    assert sorted(read_as_compose(compose).services) == sorted(compose["services"])


def test_a_misspelt_key_is_noticed(compose: dict[str, Any]) -> None:
    compose["services"]["api"]["comand"] = ["wsb"]
    with pytest.raises(ValueError, match="comand"):
        read_as_compose(compose)


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_has_a_default(name: str) -> None:
    with pytest.raises(MissingError, match=name):
        interpolated({other: "given" for other in SECRETS if other != name})


@pytest.mark.parametrize("name", OURS)
def test_our_containers_are_confined(services: dict[str, Any], name: str) -> None:
    service = services[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "user" not in service
    assert "privileged" not in service
    assert service["environment"]["WSB_SANDBOX"] == "require"


def test_workers_get_no_api_keys(services: dict[str, Any]) -> None:
    assert [name for name in OURS if "WSB_API_KEYS" in services[name]["environment"]] == ["api"]


def test_only_the_api_is_reached_from_outside_and_by_default_from_this_machine(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8000:8000"]}


def test_what_can_be_waited_for_has_a_health_check(services: dict[str, Any]) -> None:
    waited_for = {name for service in services.values() for name in service.get("depends_on", {})}
    assert waited_for == {"database", "store"}
    assert all(services[name]["healthcheck"]["test"][0] == "CMD" for name in waited_for)


def test_the_object_store_makes_the_bucket_that_the_service_uses(services: dict[str, Any]) -> None:
    store, api = services["store"]["environment"], services["api"]["environment"]
    assert api["WSB_BLOB_URL"].split("/")[2] == store["S3_BUCKET"]
    assert api["AWS_ACCESS_KEY_ID"] == store["AWS_ACCESS_KEY_ID"]
    assert api["AWS_SECRET_ACCESS_KEY"] == store["AWS_SECRET_ACCESS_KEY"]
