"""The deployment examples of the docs: valid YAML, whose commands the search command accepts."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from hgsl.cli._search_flags import search_parser
from tests.helpers import ROOT

FILES = sorted((ROOT / "docs/deploy").glob("*.yaml"))


def documents(path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def commands(value: Any) -> Iterator[list[str]]:
    """Every list of words in a document that begins with ``hgsl``."""
    if isinstance(value, dict):
        for entry in value.values():
            yield from commands(entry)
    elif isinstance(value, list):
        if value[:1] == ["hgsl"]:
            yield value
        else:
            for entry in value:
                yield from commands(entry)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_commands_of_an_example_are_accepted_and_name_one_index(path):
    words = {command[2]: command for command in commands(documents(path))}
    assert words.keys() == {"index", "serve"}
    options = {name: search_parser().parse_args(command[2:]) for name, command in words.items()}
    assert options["serve"].host == "0.0.0.0"
    assert options["serve"].index == [options["index"].uri] == ["http://milvus:19530#photos"]
    assert options["serve"].checkpoint == options["index"].checkpoint == "/model"


def test_compose_names_its_volumes_and_services():
    [compose] = documents(ROOT / "docs/deploy/compose.yaml")
    services = compose["services"]
    for service in ("index", "search"):
        assert set(services[service]["depends_on"]) <= set(services)
    assert services["index"]["volumes"] == services["search"]["volumes"]
    named = {mount.split(":")[0] for one in services.values() for mount in one["volumes"] if mount[0] != "."}
    assert named == set(compose["volumes"])


def test_kubernetes_selects_the_pods_and_probes_the_port_of_the_server():
    deployment, service, cron_job = documents(ROOT / "docs/deploy/kubernetes.yaml")
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    [container] = template["spec"]["containers"]
    [port] = [port["containerPort"] for port in container["ports"]]
    assert service["spec"]["ports"][0]["targetPort"] == port == 8000
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": port}
    host = container["command"][container["command"].index("--allow-host") + 1]
    assert host == service["metadata"]["name"]  # by which other pods reach the server
    pods = [template["spec"], cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]]
    for pod in pods:
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == volumes
