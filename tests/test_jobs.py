"""The files in jobs/: each against the definition of what it is for, its commands against the real command line."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from amg.cli.main import cli
from tests import crd

ROOT = Path(__file__).parents[1]
JOBS = ROOT / "jobs"
SCRIPTS = sorted(path.name for path in JOBS.glob("*.sh"))
CLUSTERS = sorted(path.name for path in JOBS.glob("cluster-*.yaml"))
WITH_COMMANDS = [*SCRIPTS, *CLUSTERS, "kuberay.yaml"]


def test_there_is_a_file_for_every_way_to_run() -> None:
    assert {"local.sh", "ray-submit.sh", "slurm.sh"} == set(SCRIPTS)
    assert {"cluster-aws.yaml", "cluster-gcp.yaml"} == set(CLUSTERS)
    assert (JOBS / "kuberay.yaml").is_file() and (JOBS / "Dockerfile").is_file()


# the commands in all of them


def commands(text: str) -> Iterator[list[str]]:
    """The words of every `sam-amg ...` and `ray ...` in a script, a manifest or a page, variables filled in with 1."""
    text = text.replace("\\\n", " ")
    text = re.sub(r"\$\{\w+:\+([^}]*)\}", r"\1", text)
    arrays = dict(re.findall(r"^(\w+)=\((--.*)\)$", text, re.MULTILINE))
    text = re.sub(r'"\$\{(\w+)\[@\]\}"', lambda found: arrays.get(found[1], ""), text)
    text = re.sub(r"\$\{[^}]*\}|\$\w+", "1", text)
    for line in re.findall(r"(?:^|[\s;])((?:sam-amg|ray) (?:[a-z][a-z-]*) .*)", text, re.MULTILINE):
        yield shlex.split(re.split(r" &| &&| \||;| #|`", line)[0])


def parsed(command: click.Command, words: Sequence[str]) -> click.Context:
    return command.make_context(words[0], list(words[1:]))


def text_of(name: str) -> str:
    """The text of a job's file, folded lines of YAML as the one line that they are."""
    text = (JOBS / name).read_text()
    if not name.endswith(".yaml"):
        return text
    folded: list[str] = []

    def gather(value: Any) -> None:
        if isinstance(value, dict):
            value = list(value.values())
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, (dict, list)):
                gather(each)
            elif isinstance(each, str):
                folded.append(each)

    gather(yaml.safe_load(text))
    return "\n".join([*(line.lstrip("# ") for line in text.splitlines() if line.startswith("#")), *folded])


@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_commands_of_ours_have_options_that_exist(name: str) -> None:
    found = [words for words in commands(text_of(name)) if words[0] == "sam-amg"]
    assert found
    for _, command, *rest in found:
        known = cli.get_command(click.Context(cli), command)
        assert known is not None, f"{name}: no command {command}"
        parsed(known, [command, *rest])


def test_commands_on_the_page_have_options_that_exist() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    found = [words for block in re.findall(r"```\n(.*?)```", page, re.DOTALL) for words in commands(block)]
    assert found
    for _, command, *rest in found:
        known = cli.get_command(click.Context(cli), command)
        assert known is not None
        parsed(known, [command, *rest])
    assert set(re.findall(r"`(?:[a-z -]*)jobs/([\w.-]+)`", page)) >= {*WITH_COMMANDS, "Dockerfile"}


@pytest.mark.parametrize("name", ["slurm.sh", *CLUSTERS])
def test_commands_of_ray_have_options_that_exist(name: str) -> None:
    from ray.scripts.scripts import cli as ray_cli

    found = [words for words in commands(text_of(name)) if words[0] == "ray" and words[1] != "stop"]
    assert len(found) >= 2
    for _, command, *rest in found:
        known = ray_cli.get_command(click.Context(ray_cli), command)
        assert known is not None, f"{name}: ray has no command {command}"
        known.make_parser(click.Context(known)).parse_args(list(rest))


def test_a_wrong_option_is_found() -> None:
    (words,) = commands("  sam-amg run in --out out --no-such-option\n")
    known = cli.get_command(click.Context(cli), "run")
    assert known is not None
    with pytest.raises(click.NoSuchOption):
        parsed(known, words[1:])


# Kubernetes


@pytest.fixture(scope="module")
def definition() -> dict[str, Any]:
    return json.loads(crd.TREE.read_text())


@pytest.fixture
def manifest() -> dict[str, Any]:
    (only,) = yaml.safe_load_all((JOBS / "kuberay.yaml").read_text())
    return only


def test_every_field_of_the_rayjob_has_the_type_of_the_definition(
    manifest: dict[str, Any], definition: dict[str, Any]
) -> None:
    assert definition["source"] == crd.SOURCE
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    assert list(crd.faults(manifest["spec"], definition["spec"])) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["backoffLimit"], "5", "spec.backoffLimit is '5', wanted integer"),
        (["backoffLimits"], 5, "there is no spec.backoffLimits"),
        (["shutdownAfterJobFinishes"], 1, "wanted boolean"),
        (["rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"], 0, "is 0, wanted string"),
        (["rayClusterSpec", "workerGroupSpecs"], {}, "wanted a list"),
        (["rayClusterSpec", "workerGroupSpecs", 0, "maxReplicas"], None, "maxReplicas is None, wanted integer"),
        (["rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "gpu"], 1, "there is no"),
        (["rayClusterSpec", "autoscalerOptions", "upscalingMode"], "Fast", "wanted string Default Aggressive"),
        (["rayClusterSpec", "workerGroupSpecs", 0], {"groupName": "gpu"}, r"\.template is missing"),
        (["deletionStrategy"], {"x": 1}, "wanted object"),
        (
            ["rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "resources", "limits", "cpu"],
            "4 cores",
            "wanted quantity",
        ),
    ],
)
def test_a_wrong_field_is_found(
    manifest: dict[str, Any], definition: dict[str, Any], path: list[str | int], value: Any, said: str
) -> None:
    spec = copy.deepcopy(manifest["spec"])  # anchors make the same object stand in two places
    place: Any = spec
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert any(re.search(said, fault) for fault in crd.faults(spec, definition["spec"]))


def test_the_cluster_works_on_spot_gpus_alone_and_begins_with_none(manifest: dict[str, Any]) -> None:
    cluster = manifest["spec"]["rayClusterSpec"]
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert cluster["enableInTreeAutoscaling"] is True
    assert (workers["minReplicas"], workers["replicas"], workers["maxReplicas"]) == (0, 0, 64)
    spec = workers["template"]["spec"]
    assert any("spot" in toleration["key"] for toleration in spec["tolerations"])
    (container,) = spec["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["lifecycle"]["preStop"]["exec"]["command"][-1] == "ray stop"
    assert container["image"] == head["template"]["spec"]["containers"][0]["image"]


def test_secrets_of_the_rayjob_are_references(manifest: dict[str, Any]) -> None:
    groups = [
        manifest["spec"]["rayClusterSpec"]["headGroupSpec"],
        *manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"],
    ]
    for group in groups:
        for container in group["template"]["spec"]["containers"]:
            assert [next(iter(each)) for each in container["envFrom"]] == ["secretRef"]
            assert not container.get("env")
    assert set(yaml.safe_load(manifest["spec"]["runtimeEnvYAML"])["env_vars"]) == {"RAY_JOB_STOP_WAIT_TIME_S"}


def test_the_operator_takes_the_rayjob(manifest: dict[str, Any]) -> None:
    """What the operator checks beyond types (ray-operator/controllers/ray/utils/validation.go of the same version)."""
    spec = manifest["spec"]
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", manifest["metadata"]["name"])
    assert spec["backoffLimit"] > 0 and spec["preRunningDeadlineSeconds"] > 0 and spec["ttlSecondsAfterFinished"] >= 0
    assert spec["shutdownAfterJobFinishes"] is True  # without it the time to live is not allowed
    assert spec["submissionMode"] == "K8sJobMode" and "clusterSelector" not in spec


def test_ray_on_kubernetes_is_the_one_in_the_image(manifest: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==([\d.]+)$", (ROOT / "tests" / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and manifest["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]


# the cluster launcher


@pytest.mark.parametrize("name", CLUSTERS)
def test_cluster_files_fit_the_schema_that_ray_ships(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((JOBS / name).read_text())
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    wrong = copy.deepcopy(prepared)
    wrong["available_node_types"]["gpu"]["min_worker"] = 1
    with pytest.raises(Exception, match="min_worker"):
        validate_config(wrong)
    assert prepared["setup_commands"] == prepared["head_setup_commands"] == prepared["worker_setup_commands"] == []


@pytest.mark.parametrize("name", CLUSTERS)
def test_clusters_have_an_idle_head_and_spot_workers(name: str) -> None:
    config = yaml.safe_load((JOBS / name).read_text())
    head, gpu = config["available_node_types"]["head"], config["available_node_types"]["gpu"]
    assert head["resources"] == {"CPU": 0} and "--num-cpus=0" in config["head_start_ray_commands"][1]
    assert gpu["min_workers"] == 0 and gpu["max_workers"] == config["max_workers"] == 64
    assert gpu["resources"]["GPU"] == 1
    spot = gpu["node_config"]
    if config["provider"]["type"] == "aws":
        assert spot["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert "InstanceMarketOptions" not in head["node_config"]
    else:
        assert spot["scheduling"][0]["preemptible"] is True and "scheduling" not in head["node_config"]


def test_clusters_run_the_image_of_kubernetes() -> None:
    images = {yaml.safe_load((JOBS / name).read_text())["docker"]["image"] for name in CLUSTERS}
    built = re.findall(r"-t (\S+) ", (JOBS / "Dockerfile").read_text())
    assert images == set(built) and f"image: &image {built[0]}" in (JOBS / "kuberay.yaml").read_text()


# the image (no Docker here: what can be said without building it)


def test_the_image_copies_what_there_is_and_what_the_context_has() -> None:
    ignored = (JOBS / "Dockerfile.dockerignore").read_text().split()
    assert ignored[0] == "*"
    taken = {line[1:] for line in ignored if line.startswith("!")}
    copied = [line.split()[1:-1] for line in (JOBS / "Dockerfile").read_text().splitlines() if line.startswith("COPY")]
    names = {name for group in copied for name in group}
    assert names == taken
    assert all((ROOT / name).exists() for name in names)


def test_the_image_can_install_and_start_it() -> None:
    import tomllib

    text = (JOBS / "Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {project["readme"], *project["license-files"], "pyproject.toml", "amg"}
    assert needed <= set(re.findall(r"[\w./-]+", text))
    version = re.search(r"^FROM python:3\.(\d+)-", text, re.MULTILINE)
    low, high = re.findall(r"3\.(\d+)", project["requires-python"])
    assert version and int(low) <= int(version[1]) < int(high)
    start = re.search(r"^CMD (\[.*\])$", text, re.MULTILINE)
    assert start and json.loads(start[1])[0] in project["scripts"]
    assert "ENTRYPOINT" not in re.findall(r"^([A-Z]+) ", text, re.MULTILINE)
    known = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "CMD"}
    assert set(re.findall(r"^([A-Z]+) ", text, re.MULTILINE)) == known


# shell


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_sound(name: str) -> None:
    assert os.access(JOBS / name, os.X_OK)
    subprocess.run(["bash", "-n", str(JOBS / name)], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")
    checked = subprocess.run([shellcheck, "--shell=bash", str(JOBS / name)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


FAKES = {
    "scontrol": 'if [[ $1 = show ]]; then printf "n1\\nn2\\nn3\\n"; fi',
    "srun": 'while [[ $1 = --* ]]; do shift; done; exec "$@"',
    "hostname": "echo 10.0.0.7 fe80::1",
    "ray": 'case $1 in start) exec sleep 60;; health-check) grep -q "^ray start --head" "$CALLS";; esac',
    "python": "echo 0123456789abcdef",
    "sam-amg": 'until (( $(grep -c "^ray start" "$CALLS") >= ${RAYS:-0} )); do sleep 0.05; done\n'
    'if [[ -n ${HANG:-} ]]; then trap "exit 130" TERM; sleep 60 & wait; fi; exit "${EXIT:-0}"',
}


class Machine:
    """A folder of fakes that write down how they are called, on a PATH before everything else."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "calls.log"
        self.venv = folder / "venv"
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name, body in FAKES.items():
            self.fake(self.bin / name, body)

    def fake(self, path: Path, body: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        line = f'echo "{path.name} $*" >> "$CALLS"'
        path.write_text(f"#!/usr/bin/env bash\n{line}\n{body}\n")
        path.chmod(0o755)

    def with_venv(self) -> None:
        for name in ("sam-amg", "ray", "python"):
            self.fake(self.venv / "bin" / name, FAKES[name])

    def start(self, name: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", str(JOBS / name), *arguments],
            env={**os.environ, "PATH": path, "VENV": str(self.venv), "CALLS": str(self.log), **env},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, name: str, *arguments: str, **env: str) -> int:
        process = self.start(name, *arguments, **env)
        try:
            process.wait(timeout=30)
        finally:
            self.end(process)
        return process.returncode

    def end(self, process: subprocess.Popen[str]) -> None:
        """What is left of a script, so that no fake outlives its test."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    def calls(self, *programs: str) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if not programs or line.split()[0] in programs]

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + 20
        while not any(text in line for line in self.calls()):
            assert time.monotonic() < end, f"no {text!r} in {self.calls()}"
            time.sleep(0.02)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


SLURM = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "64"}


def test_slurm_starts_the_head_then_the_others_then_the_job(machine: Machine) -> None:
    machine.with_venv()
    assert machine.run("slurm.sh", INPUT="/photos", OUT="/labels", RAYS="3", **SLURM) == 0
    address = "10.0.0.7:24711"
    assert f"ray health-check --address {address}" in machine.calls("ray")
    head, *joined = [line for line in machine.calls("ray") if line.startswith("ray start")]
    assert head.startswith("ray start --head --node-ip-address=10.0.0.7 --port=24711 ")
    assert joined == [f"ray start --address={address} --num-cpus=64 --num-gpus=8 --block"] * 2
    where = [re.findall(r"--nodelist=(\S+)", line)[0] for line in machine.calls("srun")]
    assert where[:2] == ["n1", "n1"] and sorted(where[2:]) == ["n2", "n3"]
    assert machine.calls("sam-amg") == [
        f"sam-amg run /photos --out /labels --weights sam-vit-h --runner ray --address {address} --log json"
    ]
    assert "requeue" not in " ".join(machine.calls("scontrol"))


def test_slurm_ends_as_the_job_ends(machine: Machine) -> None:
    machine.with_venv()
    assert machine.run("slurm.sh", EXIT="1", **SLURM) == 1


def test_slurm_queues_the_job_again_when_the_time_is_up(machine: Machine) -> None:
    machine.with_venv()
    process = machine.start("slurm.sh", HANG="1", **SLURM)
    try:
        machine.wait_for("sam-amg run")
        os.kill(process.pid, signal.SIGUSR1)
        assert process.wait(timeout=20) == 0
    finally:
        machine.end(process)
    assert machine.calls("scontrol")[-1] == "scontrol requeue 4711"


MAKES_A_VENV = """
if [[ $1 = -m && $2 = venv ]]; then
  mkdir -p "$3/bin"
  cp {bin}/python {bin}/sam-amg "$3/bin"
fi
"""


@pytest.mark.parametrize(
    ("name", "arguments", "done"),
    [
        (
            "local.sh",
            ["photos of cats", "out"],
            [
                "sam-amg run photos of cats --out out --weights mobile-sam --runner ray",
                "sam-amg verify out",
                "sam-amg show out",
            ],
        ),
        (
            "ray-submit.sh",
            [],
            [
                "sam-amg submit s3://BUCKET/photos --out s3://BUCKET/labels --address http://127.0.0.1:8265"
                " --weights sam-vit-h --workers 64 --gpus-per-worker 1 --with-code",
                "sam-amg status s3://BUCKET/labels",
                "sam-amg verify s3://BUCKET/labels",
            ],
        ),
    ],
)
def test_scripts_go_from_an_empty_machine_to_a_checked_result(
    machine: Machine, name: str, arguments: list[str], done: list[str]
) -> None:
    machine.fake(machine.bin / "python3", MAKES_A_VENV.format(bin=machine.bin))
    assert machine.run(name, *arguments) == 0
    assert machine.calls("sam-amg") == done
    assert f"python -m pip install --quiet {ROOT}" in machine.calls("python")
    assert machine.run(name, *arguments) == 0
    assert len(machine.calls("python3")) == 1  # the second time everything is there


def test_scripts_stop_at_the_first_command_that_fails(machine: Machine) -> None:
    machine.with_venv()
    assert machine.run("local.sh", EXIT="1") == 1
    assert len(machine.calls("sam-amg")) == 1


def test_workers_are_asked_for_only_where_they_are_given(machine: Machine) -> None:
    machine.with_venv()
    assert machine.run("local.sh", WORKERS="3") == 0
    assert machine.calls("sam-amg")[0].endswith("--runner ray --workers 3")
