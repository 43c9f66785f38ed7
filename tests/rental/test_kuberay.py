"""cluster/kuberay.yaml against KubeRay's own schema, and its application against ours."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.ray_up.cluster_file import ARCH_LABEL, ARCHITECTURES
from serve_app.launcher.checks import plan_start

ROOT = Path(__file__).resolve().parents[2]
CRD = ROOT.parent / "shared" / "specs" / "kuberay-rayservice-crd-1.7.0.yaml"
Values = dict[str, Any]


@pytest.fixture(scope="module")
def validator() -> Any:
    if not CRD.exists():
        pytest.skip(f"KubeRay's schema is not there: {CRD}")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a megabyte
    crd = yaml.load(CRD.read_text(), Loader=loader)
    [version] = [one for one in crd["spec"]["versions"] if one["name"] == "v1"]
    return jsonschema.Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))


@pytest.fixture
def service() -> Values:
    found: Values = yaml.safe_load((ROOT / "cluster" / "kuberay.yaml").read_text())
    return found


def strict(schema: Values) -> Values:
    """Return the schema without room for unknown keys, as the API server prunes them silently."""
    made = copy.deepcopy(schema)
    _close(made)
    # What every object of Kubernetes has beside the part that the schema describes.
    made["properties"]["metadata"] = {"type": "object"}
    return made


def _close(part: Any) -> None:
    if isinstance(part, list):
        for one in part:
            _close(one)
    if not isinstance(part, dict):
        return
    is_open = part.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in part
    if part.get("type") == "object" and "properties" in part and not is_open:
        part["additionalProperties"] = False
    if part.pop("x-kubernetes-int-or-string", False):
        part.pop("type", None)
    for one in part.values():
        _close(one)


def test_the_file_is_a_ray_service(validator: Any, service: Values) -> None:
    assert [error.message for error in validator.iter_errors(service)] == []


@pytest.mark.parametrize("key", ["autoscalerOption", "workerGroupSpec"])
def test_an_unknown_key_is_noticed(validator: Any, service: Values, key: str) -> None:
    service["spec"]["rayClusterConfig"][key] = {}
    [error] = validator.iter_errors(service)
    assert key in error.message


def test_each_architecture_has_a_worker_group_that_starts_from_zero(service: Values) -> None:
    groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert [group["labels"][ARCH_LABEL] for group in groups] == list(ARCHITECTURES)
    assert {group["minReplicas"] for group in groups} == {0}


def test_its_application_is_the_one_of_the_shipped_configuration(
    service: Values, tmp_path: Path
) -> None:
    text = service["spec"]["serveConfigV2"]
    shipped = ROOT / "serve_config.cluster.yaml"
    assert yaml.safe_load(text) == yaml.safe_load(shipped.read_text())
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    start = plan_start(file, {"RAY_ADDRESS": "auto"}).start
    assert {pool.arch for pool in start.args.pools} == set(ARCHITECTURES)
    assert {pool.replicas for pool in start.args.pools} == {0}
