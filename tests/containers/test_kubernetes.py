"""The manifests of docker/k8s, rendered by kubectl's own kustomize.

Every object passes the JSON schema of the Kubernetes API, strictly: no unknown or misspelt field, no wrong type. That
proves their form, not that a cluster would schedule them; what has to agree between objects is asserted below.
"""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from typing import Any

import pytest
import yaml

from service.settings import Settings
from tests.containers.stack import ROOT

kubernetes_validate = pytest.importorskip("kubernetes_validate")

OLDEST, NEWEST = "1.29", "1.37"


@cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl here")
    command = ["kubectl", "kustomize", ROOT / "docker" / "k8s" / "overlays" / overlay]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "a deprecated field"
    return list(yaml.safe_load_all(done.stdout))


def the(overlay: str, kind: str) -> dict[str, Any]:
    [found] = [manifest for manifest in rendered(overlay) if manifest["kind"] == kind]
    return found


@pytest.mark.parametrize("overlay", ["cpu", "gpu"], ids=["cpu-overlay", "gpu-overlay"])
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_fits_its_schema(overlay: str, version: str) -> None:
    kinds = {manifest["kind"] for manifest in rendered(overlay)}
    assert {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "NetworkPolicy"} <= kinds
    for manifest in rendered(overlay):
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("overlay", ["cpu", "gpu"], ids=["cpu-overlay", "gpu-overlay"])
def test_the_objects_agree(overlay: str) -> None:
    deployment = the(overlay, "Deployment")["spec"]
    pod, labels = deployment["template"]["spec"], deployment["template"]["metadata"]["labels"]
    [container] = pod["containers"]
    selectors = [
        deployment["selector"]["matchLabels"],
        the(overlay, "Service")["spec"]["selector"],
        the(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        the(overlay, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    assert container["image"] == {"cpu": "tcm-service:cpu", "gpu": "tcm-service:cuda"}[overlay]
    assert "replicas" not in deployment, "or every `kubectl apply` undoes the autoscaler"
    [config] = [source["configMapRef"]["name"] for source in container["envFrom"] if "configMapRef" in source]
    assert the(overlay, "ConfigMap")["metadata"]["name"] == config
    known = {"TCM_" + name.upper() for name in Settings.model_fields}
    assert the(overlay, "ConfigMap")["data"].keys() <= known
    for probe, path in (("startupProbe", "/startupz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")):
        assert container[probe]["httpGet"] == {"path": path, "port": "http"}
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert pod["securityContext"]["runAsNonRoot"] is True
    longest = Settings.model_fields["timeout_ms"].default / 1000 + Settings.model_fields["drain_seconds"].default
    assert pod["terminationGracePeriodSeconds"] > longest + int(container["lifecycle"]["preStop"]["exec"]["command"][1])


@pytest.mark.parametrize("overlay", ["cpu", "gpu"], ids=["cpu-overlay", "gpu-overlay"])
def test_the_tool_has_the_claims_of_the_replicas_and_may_write(overlay: str) -> None:
    def mounts(pod: dict[str, Any]) -> dict[str, str]:
        claims = {v["name"]: v["persistentVolumeClaim"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
        return {
            m["mountPath"]: claims[m["name"]]["claimName"]
            for m in pod["containers"][0]["volumeMounts"]
            if m["name"] in claims
        }

    replica = the(overlay, "Deployment")["spec"]["template"]["spec"]
    tool = yaml.safe_load((ROOT / "docker" / "k8s" / "tool.yaml").read_text())
    for version in (OLDEST, NEWEST):
        kubernetes_validate.validate(tool, version, strict=True)
    assert mounts(tool["spec"]) == mounts(replica) == {"/models": "tcm-models", "/data/store": "tcm-store"}
    claims = {m["metadata"]["name"] for m in rendered(overlay) if m["kind"] == "PersistentVolumeClaim"}
    assert claims == set(mounts(replica).values())
    told = {e["name"]: e["value"] for e in tool["spec"]["containers"][0]["env"]}
    assert told.items() <= the(overlay, "ConfigMap")["data"].items()
    for pod, writes in ((replica, False), (tool["spec"], True)):
        assert pod["securityContext"] == replica["securityContext"]
        assert pod["containers"][0]["securityContext"] == replica["containers"][0]["securityContext"]
        [models] = [m for m in pod["containers"][0]["volumeMounts"] if m["mountPath"] == "/models"]
        assert models.get("readOnly", False) != writes


def test_prometheus_finds_the_pods_under_the_name_that_alerts_use() -> None:
    [job] = yaml.safe_load((ROOT / "docker" / "k8s" / "prometheus.yaml").read_text())["scrape_configs"]
    assert f'up{{job="{job["job_name"]}"}}' in (ROOT / "docker" / "prometheus" / "alerts.yml").read_text()
    rules = job["relabel_configs"]
    kept = {tuple(rule["source_labels"]): rule["regex"] for rule in rules if rule.get("action") == "keep"}
    template = the("cpu", "Deployment")["spec"]["template"]
    name, port = template["metadata"]["labels"]["app.kubernetes.io/name"], template["spec"]["containers"][0]["ports"][0]
    assert kept == {
        ("__meta_kubernetes_pod_label_app_kubernetes_io_name",): name,
        ("__meta_kubernetes_pod_container_port_name",): port["name"],
    }
    assert {"namespace", "pod"} <= {rule.get("target_label") for rule in rules}


def test_the_autoscaler_and_its_adapter_name_one_metric_of_ours() -> None:
    [metric] = the("cpu", "HorizontalPodAutoscaler")["spec"]["metrics"]
    adapter = yaml.safe_load((ROOT / "docker" / "k8s" / "prometheus-adapter.yaml").read_text())
    [rule] = adapter["rules"]["custom"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    assert "tcm_queue_wait_seconds_sum" in rule["metricsQuery"]
    assert '"tcm_queue_wait_seconds"' in (ROOT / "service" / "metrics.py").read_text()
