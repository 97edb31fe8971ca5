"""Fields and types of KubeRay's RayJob, and whether a manifest fits them.

tests/golden/kuberay-rayjob.json is what is left of the custom resource definition after

    python -m tests.crd ray.io_rayjobs.yaml > tests/golden/kuberay-rayjob.json

It holds the job, its cluster, the head, the workers and the autoscaler with every field, and of a pod the fields of
`POD` alone. A type is a word (`string`, with its values if it has a list of them), `[type]`, `{"*": type}` for free
names, or the fields by name, those that must be there marked with `!`; "object" is one that was not followed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

SOURCE = "ray-project/kuberay v1.7.0 (59d663a), ray-operator/config/crd/bases/ray.io_rayjobs.yaml, version v1"
TREE = Path(__file__).parent / "golden" / "kuberay-rayjob.json"
QUANTITY = re.compile(r"[+-]?[0-9.]+([eE][+-]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?")
POD = {
    "metadata": {"labels", "annotations"},
    "spec": {
        "containers", "nodeSelector", "tolerations", "serviceAccountName", "terminationGracePeriodSeconds", "volumes",
        "imagePullSecrets", "priorityClassName", "runtimeClassName", "restartPolicy",
    },
    "containers": {
        "name", "image", "imagePullPolicy", "command", "args", "env", "envFrom", "ports", "resources", "lifecycle",
        "volumeMounts", "workingDir",
    },
    "volumes": {"name", "emptyDir", "hostPath", "secret", "configMap", "persistentVolumeClaim"},
    "lifecycle": {"preStop"},
    "preStop": {"exec"},
}  # fmt: skip
NOT_FOLLOWED = {
    "submitterPodTemplate", "deletionStrategy", "gcsFaultToleranceOptions", "headService", "ingressOptions",
    "historyServerOptions", "networkPolicy", "tlsOptions", "authOptions",
}  # fmt: skip


def compact(schema: Mapping[str, Any], name: str, *, in_pod: bool = False) -> Any:
    """The type of one field of an OpenAPI schema, in the form of the tree."""
    if name in NOT_FOLLOWED:
        return "object"
    if schema.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "properties" in schema:
        in_pod = in_pod or name == "template"
        kept = POD.get(name) if in_pod else None
        must = schema.get("required", ())
        return {
            key + "!" * (key in must): compact(value, key, in_pod=in_pod)
            for key, value in sorted(schema["properties"].items())
            if kept is None or key in kept
        }
    if "items" in schema:
        return [compact(schema["items"], name, in_pod=in_pod)]
    if isinstance(schema.get("additionalProperties"), dict):
        return {"*": compact(schema["additionalProperties"], "", in_pod=in_pod)}
    return " ".join([schema["type"], *map(str, schema.get("enum", ()))])


def faults(value: Any, wanted: Any, path: str = "spec") -> Iterator[str]:
    """Everything in a manifest that the tree does not have, or has otherwise."""
    if isinstance(wanted, list):
        if not isinstance(value, list):
            yield f"{path} is {value!r}, wanted a list"
            return
        for number, item in enumerate(value):
            yield from faults(item, wanted[0], f"{path}[{number}]")
    elif isinstance(wanted, dict):
        if not isinstance(value, dict):
            yield f"{path} is {value!r}, wanted fields"
            return
        fields = {name.rstrip("!"): kind for name, kind in wanted.items()}
        yield from (
            f"{path}.{name[:-1]} is missing" for name in wanted if name.endswith("!") and name[:-1] not in value
        )
        for name, item in value.items():
            kind = fields.get(name, fields.get("*"))
            if kind is None:
                yield f"there is no {path}.{name}"
            else:
                yield from faults(item, kind, f"{path}.{name}")
    elif not _fits(value, wanted):
        yield f"{path} is {value!r}, wanted {wanted}"


def _fits(value: Any, wanted: str) -> bool:
    kind, *values = wanted.split()
    if kind == "quantity":
        return type(value) is int or (isinstance(value, str) and QUANTITY.fullmatch(value) is not None)
    types = {"string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)}.get(kind, ())
    return type(value) in types and (not values or value in values)


def main(file: str) -> None:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    versions = yaml.load(Path(file).read_text(), Loader=loader)["spec"]["versions"]
    schema = next(version for version in versions if version["name"] == "v1")["schema"]["openAPIV3Schema"]
    tree = {"source": SOURCE, "spec": compact(schema["properties"]["spec"], "spec")}
    print(json.dumps(tree, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
