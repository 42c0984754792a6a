"""deploy/kubernetes: valid by Kubernetes' own schemas, and confined as the guide says."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
from functools import cache
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


def kustomization(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text())
    return found


BASE = documents("base")
OVERLAYS = ["overlays/cpu", "overlays/gpu"]
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


@pytest.mark.parametrize("folder", ["base", "ingress", "keda"])
def test_every_file_is_applied(folder: str) -> None:
    made = kustomization(folder)
    files = {path.name for path in (FOLDER / folder).glob("*.yaml")} - {"kustomization.yaml"}
    assert {*made["resources"], *(patch["path"] for patch in made.get("patches", ()))} == files


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


@pytest.mark.parametrize("document", named(documents("ingress")))
def test_a_manifest_of_the_ingress_is_valid(document: dict[str, Any], schemas: Any) -> None:
    assert schemas.validate(document, VERSION, strict=True) == VERSION


@pytest.mark.parametrize("folder", OVERLAYS)
def test_an_overlay_is_made_of_what_there_is(folder: str) -> None:
    made = kustomization(folder)
    for place in (*made["resources"], *made["components"]):
        assert (FOLDER / folder / place / "kustomization.yaml").resolve().is_file()
    present = {(document["kind"], document["metadata"]["name"]) for document in documents("base", "ingress")}
    targets = {(patch["target"]["kind"], patch["target"]["name"]) for patch in made["patches"] if "target" in patch}
    files = documents(folder, "nvidia", "ingress")
    assert targets | {(each["kind"], each["metadata"]["name"]) for each in files} <= present
    scaled = {("Deployment", entry["name"]) for entry in made["replicas"]}
    assert scaled <= present - {target for target in targets if target[0] == "Deployment"}


@pytest.mark.parametrize("folder", OVERLAYS)
def test_an_overlay_names_every_image_of_its_pods(folder: str) -> None:
    made = kustomization(folder)
    removed = {patch["target"]["name"] for patch in made["patches"] if "$patch: delete" in patch.get("patch", "")}
    used = {container(each)["image"] for each in DEPLOYMENTS if each["metadata"]["name"] not in removed}
    assert {image["name"] for image in made["images"]} == used
    assert all(image["newTag"] not in ("", "latest") for image in made["images"])


def test_the_base_leaves_images_to_overlays() -> None:
    # After two images have got one name, an overlay can't tell them apart.
    assert "images" not in kustomization("base")


@cache
def rendered(folder: str) -> list[dict[str, Any]]:
    """What kubectl would apply."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, which renders overlays, is not installed")
    command = [kubectl, "kustomize", str(FOLDER / folder)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return list(yaml.safe_load_all(text))


def of_kind(folder: str, kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in rendered(folder) if each["kind"] == kind}


@pytest.mark.parametrize("folder", OVERLAYS)
def test_what_an_overlay_renders_is_valid(folder: str, schemas: Any) -> None:
    assert {schemas.validate(document, VERSION, strict=True) for document in rendered(folder)} == {VERSION}
    assert {each["metadata"].get("namespace", "wsb") for each in rendered(folder)} == {"wsb"}


@pytest.mark.parametrize("folder", OVERLAYS)
def test_the_ingress_leads_to_the_port_of_the_api_and_nothing_passes_it(folder: str) -> None:
    [ingress] = of_kind(folder, "Ingress").values()
    [rule] = ingress["spec"]["rules"]
    [path] = rule["http"]["paths"]
    service = of_kind(folder, "Service")[path["backend"]["service"]["name"]]
    assert path["backend"]["service"]["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}
    assert [rule["host"]] == ingress["spec"]["tls"][0]["hosts"]
    [admitted] = of_kind(folder, "NetworkPolicy")["wsb-api"]["spec"]["ingress"]
    # Anyone who could reach the API beside the controller could say which address a request came from.
    assert admitted["from"]
    assert of_kind(folder, "ConfigMap")["wsb-settings"]["data"]["FORWARDED_ALLOW_IPS"] == "*"


def test_each_overlay_has_the_workers_and_images_that_it_is_for() -> None:
    images = {
        folder: {
            name: container(deployment)["image"].rpartition("-")[2]
            for name, deployment in of_kind(folder, "Deployment").items()
        }
        for folder in OVERLAYS
    }
    assert images["overlays/cpu"] == {"wsb-api": "cpu", "wsb-cpu-worker": "cpu"}
    assert images["overlays/gpu"] == {"wsb-api": "cpu", "wsb-cpu-worker": "cpu", "wsb-gpu-worker": "cuda"}
    assert pod(of_kind("overlays/gpu", "Deployment")["wsb-gpu-worker"])["runtimeClassName"] == "nvidia"
    for folder in OVERLAYS:
        assert set(of_kind(folder, "PodDisruptionBudget")) == set(images[folder])
