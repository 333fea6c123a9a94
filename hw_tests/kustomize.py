"""Adapter: the part of kustomize that `manifests/` keeps to: resources, components, and JSON patches (RFC
6902) with a target by kind and name. tests/test_manifests.py compares it with the real one if that is there.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

MANIFESTS = Path(__file__).resolve().parent.parent / "manifests"

_HEADER = "# Made from manifests/base by `make manifests`; edit that.\n"

Object = dict[str, Any]


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: str
    name: str


class Patch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    target: Target
    patch: str


class Kustomization(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    api_version: str
    kind: str
    resources: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    patches: tuple[Patch, ...] = ()


def install_text() -> str:
    """`install.yaml`: the base in one file, as it is written, comments and all."""
    base = MANIFESTS / "base"
    parts = [(base / name).read_text() for name in _read_kustomization(base).resources]
    return _HEADER + "---\n".join(parts)


def render(folder: Path) -> list[Object]:
    """The objects of a kustomization, in the order of its resources."""
    return _render(folder, [])


def read_objects(path: Path) -> list[Object]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def apply_patch(document: Object, operations: Sequence[Object]) -> Object:
    """JSON patch; `add`, `replace` and `remove`. Raises LookupError for a path that is not there."""
    patched = copy.deepcopy(document)
    for operation in operations:
        *parents, last = (_unescape(part) for part in str(operation["path"]).split("/")[1:])
        holder: Any = patched
        for part in parents:
            holder = holder[int(part) if isinstance(holder, list) else part]
        _apply(holder, last, operation)
    return patched


def _render(folder: Path, given: list[Object]) -> list[Object]:
    kustomization = _read_kustomization(folder)
    objects = list(given)
    for name in kustomization.resources:
        path = folder / name
        objects += render(path) if path.is_dir() else read_objects(path)
    for name in kustomization.components:
        objects = _render(folder / name, objects)
    for patch in kustomization.patches:
        targets = [i for i, one in enumerate(objects) if _key(one) == (patch.target.kind, patch.target.name)]
        assert targets, f"{folder}: no object for the patch of {patch.target}"
        for i in targets:
            objects[i] = apply_patch(objects[i], yaml.safe_load(patch.patch))
    return objects


def _read_kustomization(folder: Path) -> Kustomization:
    return msgspec.convert(yaml.safe_load((folder / "kustomization.yaml").read_text()), Kustomization)


def _key(one: Object) -> tuple[str, str]:
    return one["kind"], one["metadata"]["name"]


def _apply(holder: Any, last: str, operation: Object) -> None:
    value = copy.deepcopy(operation.get("value"))
    place: Any = int(last) if isinstance(holder, list) and last != "-" else last
    match operation["op"]:
        case "add" if last == "-" and isinstance(holder, list):
            holder.append(value)
        case "add" if isinstance(holder, list):
            holder.insert(place, value)
        case "add":
            holder[place] = value
        case "replace":
            holder[place]  # one that is not there cannot be replaced
            holder[place] = value
        case "remove":
            del holder[place]
        case op:
            raise ValueError(f"op: {op!r} is not valid; expected add, replace or remove")


def _unescape(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")


if __name__ == "__main__":
    (MANIFESTS / "install.yaml").write_text(install_text())
