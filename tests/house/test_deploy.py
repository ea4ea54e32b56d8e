"""What lies in deploy/ can be read, names options and routes that exist, and fits together. Nothing here runs it."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from octavo.config import ServerConfig, all_options
from octavo.server.routes import entry_of
from octavo.settings import resolve

DEPLOY = Path(__file__).parents[2] / "deploy"
ROOT = DEPLOY.parent
VARIABLES = {variable for each in all_options() for variable in each.environment}


def kubernetes() -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, its words)."""
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def test_every_file_is_looked_at() -> None:
    found = {each.name for each in DEPLOY.iterdir()}
    assert found == {
        "Dockerfile", "Dockerfile.dockerignore", "compose.yaml", "octavo.service", "kubernetes.yaml", "prometheus.yaml",
        "grafana-dashboard.json",
    }  # fmt: skip


def test_options_and_variables_exist() -> None:
    flags = {name for each in all_options() for name in (each.flag, *each.aliases)}
    for path in DEPLOY.iterdir():
        text = path.read_text()
        named = set(re.findall(r"\b(OCTAVO_[A-Z_]+)\b", text)) - {"OCTAVO_PORT"}  # which Kubernetes would set
        assert named <= VARIABLES, path
        for line in re.findall(r"octavo serve (.*)", text):
            assert set(re.findall(r"--[a-z-]+", line)) <= flags, path


def test_the_image() -> None:
    lines = dockerfile()
    words = [word for word, _ in lines]
    assert words.count("FROM") == 2  # what builds is not what runs
    last = len(words) - 1 - words[::-1].index("FROM")
    final = dict(lines[last + 1 :])
    assert final["USER"].isdecimal() and int(final["USER"]) > 0
    assert json.loads(final["ENTRYPOINT"]) + json.loads(final["CMD"]) == ["octavo", "serve"]
    assert final["EXPOSE"] == str(ServerConfig().port) and final["STOPSIGNAL"] == "SIGTERM"
    check = final["HEALTHCHECK"]
    assert entry_of("/health") is not None and "/health" in check
    command = json.loads(check[check.index("[") :])
    compile(command[2], "healthcheck", "exec")
    for word, rest in lines[:last]:
        if word == "COPY":
            assert rest == ". ."
    kept = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    assert kept and all((ROOT / each).exists() for each in kept)
    environment = dict(re.findall(r"(\w+)=(\S+)", final["ENV"]))
    settings = resolve({}, environment)
    assert settings.server.host == "0.0.0.0" and str(settings.engine.cache_path).startswith(final["VOLUME"])


def test_the_unit() -> None:
    class Keeping(configparser.RawConfigParser):
        def optionxform(self, optionstr: str) -> str:
            return optionstr

    unit = Keeping(strict=True)  # a key that stands twice is an error
    unit.read(DEPLOY / "octavo.service")
    service = unit["Service"]
    command = shlex.split(service["ExecStart"])
    assert command[1:3] == ["serve", "--config"]
    stop = int(service["TimeoutStopSec"])
    assert stop > ServerConfig().shutdown_timeout + 5 and service["KillMode"] == "mixed"
    hardened = ("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "ProtectHome", "RestrictNamespaces", "DynamicUser")
    assert all(service[key] == "yes" for key in hardened) and service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    given = dict(each.split("=", 1) for each in shlex.split(service["Environment"]))
    assert given["OCTAVO_CACHE"].endswith(service["CacheDirectory"])
    assert given["OCTAVO_STATE"].endswith(service["StateDirectory"])
    assert set(service["RestartPreventExitStatus"].split()) == {"2", "3", "4", "5"}  # errors.py


def test_kubernetes(tmp_path: Path) -> None:
    every = kubernetes()
    assert set(every) == {"ConfigMap", "PersistentVolumeClaim", "Deployment", "Service", "PodDisruptionBudget"}
    (tmp_path / "octavo.yaml").write_text(every["ConfigMap"]["data"]["octavo.yaml"])
    settings = resolve({"config": str(tmp_path / "octavo.yaml")}, {})
    pod = every["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"]
    for kind in ("Service", "Deployment", "PodDisruptionBudget"):
        chosen = every[kind]["spec"]["selector"]
        assert chosen.get("matchLabels", chosen) == labels
    (container,) = pod["spec"]["containers"]
    port = container["ports"][0]
    assert settings.server.host == "0.0.0.0" and settings.server.port == port["containerPort"]
    assert every["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[name]["httpGet"]
        route = entry_of(asked["path"])
        assert route is not None and route.public and asked["port"] == port["name"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/live"  # a loading or restarting engine is no reason
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["spec"]["terminationGracePeriodSeconds"] >= settings.server.shutdown_timeout + wait + 10
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert int(container["resources"]["limits"]["cpu"]) >= 1
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] and not pod["spec"]["enableServiceLinks"]
    mounts = {each["name"] for each in container["volumeMounts"]}
    assert mounts == {each["name"] for each in pod["spec"]["volumes"]}
    assert all(each["name"] in VARIABLES for each in container["env"])
    scraped = pod["metadata"]["annotations"]
    assert settings.server.public_metrics and scraped["prometheus.io/path"] == "/metrics"


@pytest.mark.parametrize("name", ["compose.yaml", "prometheus.yaml"])
def test_small_files(name: str) -> None:
    made = yaml.safe_load((DEPLOY / name).read_text())
    if name == "compose.yaml":
        service = made["services"]["octavo"]
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()
        resolve({}, {key: str(value) for key, value in service["environment"].items()})
        assert set(service["environment"]) <= VARIABLES and service["volumes"][0].split(":")[0] in made["volumes"]
    else:
        assert made["scrape_configs"][0]["metrics_path"] == "/metrics"
