"""
The image, compose.yaml and Prometheus's files: what they name exists in the code.

No engine runs where these tests do; kubernetes/ is looked at in deployment/.
"""

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from everbus.gateway.health.indicators import INDICATORS
from everbus.gateway.health.probe_routes import probe_routes
from tests.unit.deployment.image import environment, instructions, runtime
from tests.unit.deployment.manifests import (
    COMPOSE,
    ROOT,
    Manifest,
    built,
    loaded,
    named,
)
from tests.unit.deployment.queries import check_expression, labels_of
from tests.unit.deployment.settings import commands, settings_of, told_secrets

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
ROOMS = sorted(link.name for link in (ROOT / "everbus").iterdir() if link.is_symlink())
(STACK,) = loaded(COMPOSE / "compose.yaml")
OURS = {name for name, one in STACK["services"].items() if "build" in one}


# The image.


def test_the_image_runs_everbus_and_not_as_root():
    said = {one.name: one.said for one in runtime()}

    (program,) = json.loads(said["ENTRYPOINT"])
    assert program in PYPROJECT["project"]["scripts"]
    user, group = said["USER"].split(":")
    # Numbers, or Kubernetes' runAsNonRoot refuses the image.
    assert int(user) > 0
    assert int(group) > 0
    assert said["STOPSIGNAL"] == "SIGTERM"


def test_the_image_gets_every_package_and_the_extras_that_there_are():
    copied = [one.said.split() for one in instructions() if one.name == "COPY"]
    sources = {source for *files, _ in copied for source in files}
    runs = " ".join(one.said for one in instructions() if one.name == "RUN")

    assert {*PACKAGES, *ROOMS} <= sources
    (extras,) = re.findall(r"everbus-\*\.whl\)\[([a-z,]+)\]", runs)
    assert set(extras.split(",")) <= set(PYPROJECT["project"]["optional-dependencies"])
    # Its builder, which is installed apart from the build.
    (builder,) = PYPROJECT["build-system"]["requires"]
    assert builder in runs


def test_the_image_holds_what_was_built_and_not_how():
    """
    No compiler, no pip, no source in the last stage: it only copies.
    """
    copied = [one.said for one in runtime() if one.name == "COPY"]

    assert copied == ["--from=build /opt/everbus /opt/everbus"]
    assert not [one for one in runtime() if one.name == "RUN" and "pip" in one.said]


def test_the_image_installs_pinned_wheels_and_says_which():
    """
    Others only by their hash; everbus itself, which was built beside, without more.
    """
    runs = [one.said for one in instructions() if one.name == "RUN"]
    (installs,) = [said for said in runs if "--require-hashes" in said]
    (lists,) = [said for said in runs if "bill_of_materials" in said]
    (extras,) = re.findall(r"everbus-\*\.whl\)\[([a-z,]+)\]", " ".join(runs))

    assert re.findall(r"everbus/bin/python install +(.+?) +&&", installs) == [
        "--require-hashes --requirement constraints.txt",
        "--no-deps /wheels/everbus-*.whl",
    ]
    assert extras.replace(",", " ") in lists
    for script in ("pinned_wheels", "bill_of_materials"):
        assert (COMPOSE / f"{script}.py").is_file()


def test_the_build_names_no_package_index():
    for one_instruction in instructions():
        assert "://" not in one_instruction.said
        assert "index" not in one_instruction.said


def test_nothing_reaches_the_build_that_is_not_let_in():
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    let_in = {rule.strip("!").removesuffix("/**") for rule in rules if rule[0] == "!"}

    assert rules[0] == "*"
    files = {"LICENSE", "README.md", "pyproject.toml", "constraints.txt"}
    assert let_in == {*files, *PACKAGES, *ROOMS}
    # Databases and secrets of `everbus dev` and of compose.yaml.
    assert "**/.*" in rules


def test_what_the_image_sets_are_settings(tmp_path):
    settings = settings_of(environment(), tmp_path)
    said = {one.name: one.said for one in runtime()}

    assert settings.health_host == settings.edge_host == "0.0.0.0"  # noqa: S104
    assert said["EXPOSE"].split() == ["8080", "8081"]
    assert settings.edge_port == 8080


# compose.yaml.


def test_the_roles_are_commands_of_one_image():
    assert {"manager", "archiver", "edge"} == OURS
    for name in OURS:
        assert STACK["services"][name]["command"] == [name]
        assert name in commands()


@pytest.mark.parametrize("name", sorted(OURS))
def test_the_settings_of_a_service_are_accepted(name, tmp_path):
    service = STACK["services"][name]
    files = {value for key, value in service["environment"].items() if "_FILE" in key}

    settings = settings_of(environment() | service["environment"], tmp_path)

    assert files == {f"/run/secrets/{secret}" for secret in service["secrets"]}
    assert not told_secrets(service["environment"])
    (asked,) = re.findall(
        r"127\.0\.0\.1:(\d+)(/\w+)", service["healthcheck"]["test"][3]
    )
    assert asked == (str(settings.health_port), "/readyz")
    assert "/readyz" in {route.path for route in probe_routes(None)}
    assert _seconds(service["stop_grace_period"]) > settings.edge_drain_s + 5


@pytest.mark.parametrize("name", sorted(STACK["services"]))
def test_a_service_is_bounded_and_guarded(name):
    service = STACK["services"][name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] not in {"root", "0", "0:0"}
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert service["healthcheck"]
    # A version, so that the same is run tomorrow.
    assert re.fullmatch(r"[\w./-]+:v?\d+\.[\w.-]+", service["image"])
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:")


def test_secrets_are_files_that_the_script_makes_and_somebody_uses():
    used = {
        s for service in STACK["services"].values() for s in service.get("secrets", ())
    }
    files = {name: Path(said["file"]) for name, said in STACK["secrets"].items()}

    assert used == set(files)
    for name, file in files.items():
        assert file == Path("../.everbus/compose") / name
    # Git and the image leave out what is there.
    assert ".everbus/" in (ROOT / ".gitignore").read_text().split()


def test_a_mads_network_has_the_bus_and_no_database():
    """
    A MAD's container joins `bus`; whoever else is there, it reaches.
    """
    there = {
        name
        for name, service in STACK["services"].items()
        if "bus" in service.get("networks", ())
    }

    assert there == {"bus", *OURS}
    assert STACK["networks"]["tiers"]["internal"] is True


def test_each_server_that_a_service_waits_for_exists():
    for service in STACK["services"].values():
        assert set(service.get("depends_on", ())) <= set(STACK["services"])
        assert set(service.get("networks", ())) <= set(STACK["networks"])
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (COMPOSE / source).exists() or source in STACK["volumes"]


def test_the_members_of_the_replica_set_are_the_services():
    """
    The script that makes it counts to three, and the URLs name all of them.
    """
    members = sorted(name for name in STACK["services"] if re.match(r"mongo-\d", name))
    script = (COMPOSE / "mongodb/replica_set.js").read_text()
    secrets = set(re.findall(r'secret\("(\w+)"\)', script))

    assert members == ["mongo-1", "mongo-2", "mongo-3"]
    assert "[1, 2, 3].map" in script
    assert secrets == set(STACK["services"]["mongo-setup"]["secrets"])


def _seconds(text: str) -> int:
    return int(text.removesuffix("s"))


# Prometheus.


RULES = {
    rule["alert"]: rule
    for group in loaded(COMPOSE / "prometheus/everbus.rules.yml")[0]["groups"]
    for rule in group["rules"]
}


@pytest.mark.parametrize("name", sorted(RULES))
def test_an_alert_is_about_a_metric_that_there_is(name):
    rule = RULES[name]

    check_expression(rule["expr"])
    assert rule["labels"]["severity"] in {"page", "ticket"}
    told = " ".join(rule["annotations"].values())
    assert set(re.findall(r"\$labels\.(\w+)", told)) <= labels_of(rule["expr"])


@pytest.mark.parametrize(
    "wrong",
    [
        "everbus_no_such_thing > 1",
        "everbus_commands > 1",
        "max by (partition) (everbus_outbox_records)",
        'everbus_health{lane="1"}',
        'everbus_health{indicator="no_such_thing"}',
        "increase(everbus_health[5m])",
        "everbus_dead_letters_total > 0",
        "rate(everbus_dead_letters_total) > 0",
        "sum by (le) (rate(everbus_batch_commands_count[5m]))",
        "sum(rate(everbus_commands_total[5m])) by (lane)",
        "sum(max by (lane) (everbus_outbox_records)",
        "summ by (lane) (everbus_outbox_records)",
        "vector(1)",
    ],
)
def test_the_check_of_alerts_finds_what_is_wrong(wrong):
    with pytest.raises(AssertionError):
        check_expression(wrong)


def test_the_manual_shows_alerts_that_work():
    section = (ROOT / "docs/operate.md").read_text().partition("\n## Alert\n")[2]
    section = section.partition("\n## ")[0]
    shown = re.findall(r"^\| [^|`]+ \| `([^`]+)`", section, re.MULTILINE)

    assert len(shown) >= 4
    for expression in shown:
        check_expression(expression)


def test_prometheus_asks_every_role_where_it_serves(tmp_path):
    (config,) = loaded(COMPOSE / "prometheus/prometheus.yml")
    asked = {}
    for job in config["scrape_configs"]:
        (found,) = job["dns_sd_configs"]
        (name,) = found["names"]
        assert job["job_name"] == f"everbus-{name}"
        asked[name] = found["port"]

    assert config["rule_files"] == ["everbus.rules.yml"]
    assert asked == {name: _port_of(STACK["services"][name]) for name in OURS}


def _port_of(service: Manifest) -> int:
    environ: dict[str, Any] = service["environment"]
    said = environ["EVERBUS_HEALTH_PORT"]

    return int(said)


def test_managers_scale_by_indicators_that_there_are():
    scaler = named(built("overlays/production"), "ScaledObject", "everbus-manager")
    (trigger,) = scaler["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    (chosen,) = re.findall(r'indicator=~"([\w|]+)"', query)

    check_expression(query)
    assert set(chosen.split("|")) <= {indicator.name for indicator in INDICATORS}
    # Below where each of them warns, so that help comes before the alarm.
    limits = {one.name: one.warn for one in INDICATORS if one.name in chosen.split("|")}
    assert float(trigger["metadata"]["threshold"]) <= min(limits.values())


def test_the_script_of_the_secrets_is_a_script():
    ran = subprocess.run(
        ["sh", "-n", str(COMPOSE / "secrets.sh")],
        capture_output=True,
        timeout=10,
        check=False,
    )

    assert ran.returncode == 0, ran.stderr
    assert (COMPOSE / "secrets.sh").stat().st_mode & 0o100
