"""The deployment examples of the docs: valid YAML, whose commands the search command accepts."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from hgsl.cli import search
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
def test_the_commands_of_an_example_are_accepted(path):
    [words] = commands(documents(path))
    assert words[:3] == ["hgsl", "search", "serve"]
    options = search._parser().parse_args(words[2:])
    assert (options.host, options.index) == ("0.0.0.0", ["http://milvus:19530#photos"])


def test_compose_names_its_volumes_and_services():
    [compose] = documents(ROOT / "docs/deploy/compose.yaml")
    services = compose["services"]
    assert set(services["search"]["depends_on"]) <= set(services)
    named = {mount.split(":")[0] for one in services.values() for mount in one["volumes"] if mount[0] != "."}
    assert named == set(compose["volumes"])


def test_kubernetes_selects_the_pods_and_probes_the_port_of_the_server():
    deployment, service = documents(ROOT / "docs/deploy/kubernetes.yaml")
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    [container] = template["spec"]["containers"]
    [port] = [port["containerPort"] for port in container["ports"]]
    assert service["spec"]["ports"][0]["targetPort"] == port == 8000
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": port}
    volumes = {volume["name"] for volume in template["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
