"""
The files that deploy everbus, as objects; and overlays put together.

Of kustomize only what ours use; a test compares the outcome with kubectl's where there
is one. What it does not know, it refuses.
"""

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
COMPOSE = ROOT / "compose"
KUBERNETES = COMPOSE / "kubernetes"
OVERLAYS = ("overlays/development", "overlays/production")
FOLDERS = ("everbus", "mads", *OVERLAYS)
# What a kustomization of ours may say; `labels` adds to objects and changes no meaning.
_KNOWN = {
    *("apiVersion", "kind", "namespace", "resources", "labels", "images"),
    *("configMapGenerator", "replicas", "patches"),
}

Manifest = dict[str, Any]


@cache
def loaded(path: Path) -> list[Manifest]:
    """
    The documents of a YAML file, not to be changed; a key given twice is an error.
    """
    return list(yaml.load_all(path.read_text(), Loader=_Strict))


class _Strict(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if key.value != "<<"]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"{node.start_mark}: {twice} is given twice"
        return super().construct_mapping(node, deep)


def kustomization(folder: str) -> Manifest:
    """
    The kustomization of a folder below compose/kubernetes/.
    """
    (said,) = loaded(KUBERNETES / folder / "kustomization.yaml")
    assert set(said) <= _KNOWN, set(said) - _KNOWN

    return said


def built(folder: str) -> list[Manifest]:
    """
    The objects that a folder comes to.
    """
    said = kustomization(folder)
    objects: list[Manifest] = []
    for resource in said["resources"]:
        path = KUBERNETES / folder / resource
        below = path.resolve().relative_to(KUBERNETES)
        objects += built(str(below)) if path.is_dir() else loaded(path)
    objects = deepcopy(objects)
    for generator in said.get("configMapGenerator", ()):
        _generate(objects, generator)
    for wanted in said.get("replicas", ()):
        deployment = named(objects, "Deployment", wanted["name"])
        deployment["spec"]["replicas"] = wanted["count"]
    for patch in said.get("patches", ()):
        (operations,) = loaded(KUBERNETES / folder / patch["path"])
        _patch(targets(objects, patch["target"]), operations)
    for manifest in objects:
        if manifest["kind"] != "Namespace":
            manifest["metadata"]["namespace"] = said["namespace"]

    return objects


def named(objects: list[Manifest], kind: str, name: str) -> Manifest:
    """
    The only object of that kind and name.
    """
    (found,) = (m for m in of_kind(objects, kind) if m["metadata"]["name"] == name)

    return found


def of_kind(objects: list[Manifest], kind: str) -> Iterator[Manifest]:
    """
    All objects of that kind.
    """
    return (manifest for manifest in objects if manifest["kind"] == kind)


def targets(objects: list[Manifest], target: Mapping[str, str]) -> list[Manifest]:
    """
    What a patch is for: one object at least.
    """
    found = [
        manifest
        for manifest in of_kind(objects, target["kind"])
        if re.fullmatch(target.get("name", ".*"), manifest["metadata"]["name"])
    ]
    assert found, f"no object is {target}"

    return found


def _generate(objects: list[Manifest], generator: Manifest) -> None:
    values = dict(literal.split("=", 1) for literal in generator["literals"])
    if generator.get("behavior") == "merge":
        named(objects, "ConfigMap", generator["name"])["data"].update(values)
        return
    metadata = {"name": generator["name"]}
    objects.append(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": values}
    )


def _patch(manifests: list[Manifest], operations: list[Manifest]) -> None:
    for manifest in manifests:
        for operation in operations:
            *path, last = operation["path"].strip("/").split("/")
            place: Any = manifest
            for step in path:
                place = place[int(step) if isinstance(place, list) else step]
            # Both demand that there is something already: a path with a typo fails.
            assert last in place, f"{operation} meets nothing in {manifest['kind']}"
            if operation["op"] == "remove":
                del place[last]
            else:
                assert operation["op"] == "replace", operation
                place[last] = operation["value"]
