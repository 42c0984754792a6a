"""deploy/kubernetes: valid by Kubernetes' own schemas, and confined as the guide says."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
VERSION = "1.30"


def documents(*folders: str) -> list[dict[str, Any]]:
    """What the files of these folders hold, the lists of files apart."""
    files = [path for folder in folders for path in sorted((FOLDER / folder).glob("*.yaml"))]
    return [
        document
        for path in files
        if path.name != "kustomization.yaml"
        for document in yaml.safe_load_all(path.read_text())
    ]


BASE = documents("base")
DEPLOYMENTS = [document for document in BASE if document["kind"] == "Deployment"]
WORKERS = [document for document in DEPLOYMENTS if "worker" in document["metadata"]["name"]]


def named(items: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(item, id=f"{item['kind']} {item['metadata']['name']}") for item in items]


def pod(deployment: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod(deployment)["containers"]
    return dict(only)


@pytest.fixture
def schemas() -> Any:
    """Kubernetes' own."""
    if os.environ.get("CI") != "true":
        pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    import kubernetes_validate

    return kubernetes_validate


@pytest.mark.parametrize("document", named(BASE))
def test_a_manifest_is_valid(document: dict[str, Any], schemas: Any) -> None:
    assert schemas.validate(document, VERSION, strict=True) == VERSION  # that of the schema, which may be older


def test_a_misspelt_field_is_noticed(schemas: Any) -> None:
    document = yaml.safe_load((FOLDER / "base" / "namespace.yaml").read_text())
    document["metadata"]["lables"] = {}
    with pytest.raises(schemas.ValidationError, match="lables"):
        schemas.validate(document, VERSION, strict=True)


@pytest.mark.parametrize("folder", ["base", "keda"])
def test_every_file_is_applied(folder: str) -> None:
    listed = yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text())["resources"]
    files = {path.name for path in (FOLDER / folder).glob("*.yaml")} - {"kustomization.yaml"}
    assert {entry for entry in listed if not entry.startswith("..")} == files


@pytest.mark.parametrize("deployment", named(DEPLOYMENTS))
def test_a_pod_fits_the_restricted_standard_and_writes_to_its_volumes_alone(deployment: dict[str, Any]) -> None:
    whole, own = pod(deployment)["securityContext"], container(deployment)["securityContext"]
    assert whole["runAsNonRoot"] is True
    assert whole["runAsUser"] == 10001
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["mountPath"] for mount in container(deployment)["volumeMounts"]}
    assert mounts == {"/var/lib/wsb", "/tmp"}  # noqa: S108 - in the pod
    assert pod(deployment)["automountServiceAccountToken"] is False


@pytest.mark.parametrize("deployment", named(DEPLOYMENTS))
def test_selectors_find_the_pods(deployment: dict[str, Any]) -> None:
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    (budget,) = [
        document
        for document in BASE
        if document["kind"] == "PodDisruptionBudget" and document["metadata"]["name"] == deployment["metadata"]["name"]
    ]
    for selector in (deployment["spec"]["selector"], budget["spec"]["selector"]):
        assert selector["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("deployment", named(DEPLOYMENTS))
def test_secrets_are_referred_to_and_never_written_down(deployment: dict[str, Any]) -> None:
    written = [entry["name"] for entry in container(deployment)["env"] if "valueFrom" not in entry]
    assert written == []
    assert not [document for document in BASE if document["kind"] == "Secret"]


@pytest.mark.parametrize("deployment", named(WORKERS))
def test_a_worker_may_finish_its_analysis_before_it_is_killed(deployment: dict[str, Any]) -> None:
    (settings,) = [document for document in BASE if document["kind"] == "ConfigMap"]
    assert pod(deployment)["terminationGracePeriodSeconds"] >= int(settings["data"]["WSB_SHUTDOWN_SECONDS"]) + 30


@pytest.mark.parametrize("deployment", named(WORKERS))
def test_a_worker_takes_as_many_threads_as_it_has_cores(deployment: dict[str, Any]) -> None:
    (threads,) = [entry for entry in container(deployment)["env"] if entry["name"] == "WSB_JOB_THREADS"]
    assert threads["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"
    limits = container(deployment)["resources"]["limits"]
    assert ("nvidia.com/gpu" in limits) == ("cuda" in " ".join(container(deployment)["args"]))


def test_the_probes_are_the_services() -> None:
    (api,) = [deployment for deployment in DEPLOYMENTS if deployment not in WORKERS]
    paths = {name: container(api)[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}


def test_the_patch_for_nvidias_runtime_is_one_of_the_gpu_worker(schemas: Any) -> None:
    (patch,) = documents("nvidia")
    (worker,) = [deployment for deployment in WORKERS if deployment["metadata"]["name"] == patch["metadata"]["name"]]
    patched = copy.deepcopy(worker)
    for key, value in pod(patch).items():
        pod(patched)[key] = {**pod(worker).get(key, {}), **value} if isinstance(value, dict) else value
    assert schemas.validate(patched, VERSION, strict=True) == VERSION
    assert pod(patched)["runtimeClassName"] == "nvidia"
    assert pod(patched)["securityContext"].items() >= pod(worker)["securityContext"].items()


def test_the_scaled_deployment_is_one_of_the_base() -> None:
    (scaled,) = documents("keda")
    assert scaled["spec"]["scaleTargetRef"]["name"] in {worker["metadata"]["name"] for worker in WORKERS}
    assert scaled["spec"]["minReplicaCount"] >= 1
