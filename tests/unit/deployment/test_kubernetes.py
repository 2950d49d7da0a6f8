"""
What compose/kubernetes/ says exists in the code, and fits together.
"""

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from everbus.gateway.health.probe_routes import probe_routes
from tests.unit.deployment.image import environment
from tests.unit.deployment.manifests import (
    FOLDERS,
    KUBERNETES,
    OVERLAYS,
    Manifest,
    built,
    kustomization,
    loaded,
    named,
    of_kind,
    targets,
)
from tests.unit.deployment.reachability import selects
from tests.unit.deployment.settings import commands, settings_of, told_secrets

ROLES = {"everbus-manager", "everbus-archiver", "everbus-edge"}
PROBES = {
    "startupProbe": "/startupz",
    "readinessProbe": "/readyz",
    "livenessProbe": "/livez",
}
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@pytest.fixture(params=("everbus", *OVERLAYS))
def objects(request) -> list[Manifest]:
    return built(request.param)


def deployments(objects: list[Manifest]) -> list[Manifest]:
    found = list(of_kind(objects, "Deployment"))
    assert {one["metadata"]["name"] for one in found} == ROLES

    return found


def container_of(deployment: Manifest) -> Manifest:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]

    return container


def environ_of(deployment: Manifest, objects: list[Manifest]) -> dict[str, str]:
    """
    The variables of its process: the image's, the ConfigMap's and its own.
    """
    container = container_of(deployment)
    environ = environment()
    for source in container["envFrom"]:
        environ |= named(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    for variable in container["env"]:
        secret = variable.get("valueFrom", {}).get("secretKeyRef")
        if secret:
            assert secret["name"] == deployment["metadata"]["name"]
        known = {"EVERBUS_S3_ENDPOINT": "https://s3.example"}
        fallback = known.get(variable["name"], "a value")
        environ[variable["name"]] = variable.get("value", fallback)

    return environ


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_kustomization_lists_the_files_that_there_are(folder):
    said = kustomization(folder)
    listed = {path for path in said["resources"] if not path.startswith("..")}
    listed |= {patch["path"] for patch in said.get("patches", ())}

    assert listed == {
        path.name
        for path in (KUBERNETES / folder).iterdir()
        if path.name != "kustomization.yaml" and path.is_file()
    }


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_object_has_a_kind_and_a_name_of_its_own(folder):
    objects = built(folder)

    names = Counter((one["kind"], one["metadata"]["name"]) for one in objects)

    assert all(one["apiVersion"] for one in objects)
    assert set(names.values()) == {1}


def test_a_patch_that_meets_nothing_is_an_error():
    """
    The other tests rest on it: renamed, an object would silently lose its patch.
    """
    with pytest.raises(AssertionError, match="no object is"):
        targets(built("everbus"), {"kind": "Deployment", "name": "everbus-gone"})


def test_there_are_three_managers_two_archivers_and_two_edges():
    base = built("everbus")

    counts = {d["metadata"]["name"]: d["spec"]["replicas"] for d in deployments(base)}

    assert counts == {"everbus-manager": 3, "everbus-archiver": 2, "everbus-edge": 2}


def test_development_has_one_of_each_and_scales_nothing():
    objects = built("overlays/development")

    assert {d["spec"]["replicas"] for d in deployments(objects)} == {1}
    assert not [*of_kind(objects, "ScaledObject")]
    assert not [*of_kind(objects, "HorizontalPodAutoscaler")]


def test_a_deployment_selects_its_own_pods_and_no_others(objects):
    for deployment in deployments(objects):
        selector = deployment["spec"]["selector"]
        chosen = [
            other["metadata"]["name"]
            for other in deployments(objects)
            if selects(selector, other["spec"]["template"]["metadata"]["labels"])
        ]
        assert chosen == [deployment["metadata"]["name"]]


def test_budgets_and_services_select_the_deployment_of_their_name(objects):
    selecting = {
        ("PodDisruptionBudget", m["metadata"]["name"]): m["spec"]["selector"]
        for m in of_kind(objects, "PodDisruptionBudget")
    } | {
        ("Service", m["metadata"]["name"]): {"matchLabels": m["spec"]["selector"]}
        for m in of_kind(objects, "Service")
    }
    for (_, name), selector in selecting.items():
        chosen = [
            deployment["metadata"]["name"]
            for deployment in deployments(objects)
            if selects(selector, deployment["spec"]["template"]["metadata"]["labels"])
        ]
        assert chosen == [name]
    assert {name for kind, name in selecting if kind == "PodDisruptionBudget"} == ROLES


def test_a_service_leads_to_a_port_that_its_pods_name(objects):
    for service in of_kind(objects, "Service"):
        deployment = named(objects, "Deployment", service["metadata"]["name"])
        names = {port["name"] for port in container_of(deployment)["ports"]}

        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


def test_the_command_of_each_deployment_exists(objects):
    for deployment in deployments(objects):
        (command,) = container_of(deployment)["args"]

        assert command in commands()
        assert deployment["metadata"]["name"] == f"everbus-{command}"


def test_the_settings_of_each_deployment_are_accepted(objects, tmp_path):
    """
    A name that is no setting, or a value that is unfit, would end the process.
    """
    for deployment in deployments(objects):
        settings_of(environ_of(deployment, objects), tmp_path)


def test_secrets_come_as_files_and_their_values_are_nowhere(objects):
    assert not [*of_kind(objects, "Secret")]
    for deployment in deployments(objects):
        assert not told_secrets(environ_of(deployment, objects))
        (mount,) = (
            mount
            for mount in container_of(deployment)["volumeMounts"]
            if mount["name"] == "secrets"
        )
        assert mount["readOnly"]
        for name, value in environ_of(deployment, objects).items():
            if name.endswith("_FILE"):
                assert Path(value).parent == Path(mount["mountPath"])
                setting = name.removeprefix("EVERBUS_").removesuffix("_FILE")
                assert Path(value).name == setting.lower()


def test_each_role_has_a_secret_of_its_own_and_the_archiver_judges_nobody(objects):
    names = {}
    for deployment in deployments(objects):
        volumes = deployment["spec"]["template"]["spec"]["volumes"]
        (secret,) = (volume["secret"] for volume in volumes if "secret" in volume)
        names[deployment["metadata"]["name"]] = secret["secretName"]
        # Readable to the group that the process is in, and to nobody else.
        assert secret["defaultMode"] == 0o440
    archiver = environ_of(named(objects, "Deployment", "everbus-archiver"), objects)

    assert names == {name: name for name in ROLES}
    assert not {"EVERBUS_JWT_KEYS_FILE", "EVERBUS_GRANT_KEY_FILE"} & set(archiver)


def test_probes_ask_what_the_process_serves_where_it_serves_it(objects, tmp_path):
    served = {route.path for route in probe_routes(None)}
    for deployment in deployments(objects):
        container = container_of(deployment)
        settings = settings_of(environ_of(deployment, objects), tmp_path)
        port = settings.health_port
        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        for probe, path in PROBES.items():
            asked = container[probe]["httpGet"]
            assert asked["path"] == path
            assert path in served
            assert ports[asked["port"]] == port
        annotations = deployment["spec"]["template"]["metadata"]["annotations"]
        assert annotations["prometheus.io/path"] in served
        assert annotations["prometheus.io/port"] == str(port)
        for host in (settings.health_host, settings.edge_host):
            assert host == "0.0.0.0"  # noqa: S104 - a pod's own addresses


def test_pods_meet_the_restricted_profile(objects):
    for deployment in deployments(objects):
        pod = deployment["spec"]["template"]["spec"]

        assert container_of(deployment)["securityContext"] == RESTRICTED
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert pod["automountServiceAccountToken"] is False
        account = named(objects, "ServiceAccount", pod["serviceAccountName"])
        assert account["automountServiceAccountToken"] is False
    (namespace,) = of_kind(objects, "Namespace")
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_no_service_injects_variables_that_would_be_refused(objects):
    """
    A Service everbus-edge would make EVERBUS_EDGE_PORT=tcp://… in every pod.
    """
    for deployment in deployments(objects):
        assert deployment["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_a_pod_asks_for_its_share_and_is_bounded(objects):
    for deployment in deployments(objects):
        resources = container_of(deployment)["resources"]

        assert set(resources["requests"]) == {"cpu", "memory"}
        assert "memory" in resources["limits"]


def test_a_pod_has_the_time_to_end_in_order(objects, tmp_path):
    for deployment in deployments(objects):
        pod = deployment["spec"]["template"]["spec"]
        settings = settings_of(environ_of(deployment, objects), tmp_path)
        hook = container_of(deployment).get("lifecycle", {}).get("preStop", {})
        before_s = hook.get("sleep", {}).get("seconds", 0)

        needed_s = before_s + settings.edge_drain_s + 5
        assert pod["terminationGracePeriodSeconds"] > needed_s


def test_replicas_are_spread_over_zones_and_hosts(objects):
    for deployment in deployments(objects):
        pod = deployment["spec"]["template"]
        spread = pod["spec"]["topologySpreadConstraints"]

        assert [one["topologyKey"] for one in spread] == [
            "topology.kubernetes.io/zone",
            "kubernetes.io/hostname",
        ]
        for one_spread in spread:
            assert selects(one_spread["labelSelector"], pod["metadata"]["labels"])


def test_in_production_each_host_has_one_and_scalers_say_how_many():
    objects = built("overlays/production")
    base = built("everbus")
    scaled = {}
    for scaler in (
        *of_kind(objects, "HorizontalPodAutoscaler"),
        *of_kind(objects, "ScaledObject"),
    ):
        spec = scaler["spec"]
        target = named(objects, "Deployment", spec["scaleTargetRef"]["name"])
        assert "replicas" not in target["spec"]
        least = spec.get("minReplicas") or spec["minReplicaCount"]
        scaled[target["metadata"]["name"]] = least

    assert scaled == {
        name: named(base, "Deployment", name)["spec"]["replicas"]
        for name in ("everbus-manager", "everbus-edge")
    }
    for deployment in deployments(objects):
        _, hosts = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert hosts["whenUnsatisfiable"] == "DoNotSchedule"


def test_there_are_never_more_managers_than_partitions():
    objects = built("overlays/production")
    config = named(objects, "ConfigMap", "everbus")["data"]

    scaler = named(objects, "ScaledObject", "everbus-manager")["spec"]

    assert scaler["maxReplicaCount"] <= int(config["EVERBUS_PARTITIONS"])


@pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl here")
@pytest.mark.parametrize("folder", FOLDERS)
def test_kubectl_makes_the_same_of_it(folder, tmp_path):
    rendered = tmp_path / "rendered.yaml"
    ran = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / folder)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    rendered.write_text(ran.stdout)

    assert _plain(loaded(rendered)) == _plain(built(folder))


def _plain(objects: list[Manifest]) -> dict[tuple[str, str], object]:
    """
    The specs, without what ours does not do: hashes in names, tags, added labels.
    """
    found: dict[tuple[str, str], object] = {}
    for manifest in objects:
        name = manifest["metadata"]["name"]
        if manifest["kind"] == "ConfigMap":
            found["ConfigMap", "everbus"] = manifest["data"]
            continue
        spec = manifest.get("spec")
        if manifest["kind"] == "Deployment":
            del spec["template"]["metadata"]
            (container,) = spec["template"]["spec"]["containers"]
            del container["image"]
            del container["envFrom"]
        found[manifest["kind"], name] = spec

    return found
