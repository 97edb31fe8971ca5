"""`sam-amg submit`: what travels, under which name, how it is followed; with a fake client, and on a real Ray head."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from amg.cli.main import cli
from amg.cli.submit import AS_IN_RUN
from amg.cli.submit import submit as command
from amg.config import Config, load_config
from amg.errors import ClusterError, ConfigError
from amg.run import parcel as parcels
from amg.run import submit as submission
from amg.run.parcel import SETTINGS_FILE, Parcel, pack
from amg.run.submit import Order, come_back, follow, job_id, order, start

ROOT = Path(__file__).parents[1]
ADDRESS = "http://head:8265"
IN, OUT = "s3://bucket/photos", "s3://bucket/labels"


# the name of a job


def test_the_same_work_has_the_same_name() -> None:
    name = job_id([IN], OUT, Config())
    assert name == job_id([IN], OUT, load_config(overrides={"run.workers": 8, "run.runner": "ray"}))
    others = [
        job_id([f"{IN}/more"], OUT, Config()),
        job_id([IN, IN], OUT, Config()),
        job_id([IN], f"{OUT}2", Config()),
        job_id([IN], OUT, Config(), limit=10),
        job_id([IN], OUT, load_config(overrides={"generate.points_per_side": 16})),
        job_id([IN], OUT, load_config(overrides={"model.weights": "sam-vit-h"})),
    ]
    assert len({name, *others}) == 1 + len(others)


def test_weights_count_by_their_digest_where_the_name_tells_it() -> None:
    def named(weights: str) -> str:
        return job_id([IN], OUT, load_config(overrides={"model.weights": weights}))

    digest = "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f"
    assert named("mobile-sam") == named(f"s3://bucket/mobile_sam.pt#sha256={digest}")
    assert named("s3://bucket/a.pt") != named("s3://bucket/b.pt")


# what travels


def write(top: Path, *names: str, size: int = 3) -> Path:
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(b"x" * size)
    return top


def test_weights_outputs_and_junk_stay_at_home(tmp_path: Path) -> None:
    write(tmp_path, "list.csv", "code/model.py", "code/__pycache__/model.pyc", ".git/config", ".venv/bin/python")
    write(tmp_path, "sam_vit_h.pth", "deep/model.safetensors", size=1000)
    write(tmp_path, "labels/_plan/plan.json", "labels/data/part-000000.parquet", ".env", "code/.mypy_cache/x")
    found = pack(working_dir=tmp_path)
    assert list(found.files) == ["code/model.py", "list.csv"]
    said = str(found)
    assert said.startswith("2 files, 0.0 MB, travel with the job; left at home: 2 files of weights (0 MB)")
    assert all(name in said for name in (".git", ".venv", ".env", "labels", "__pycache__"))


def test_patterns_leave_out_more(tmp_path: Path) -> None:
    write(tmp_path, "list.csv", "photos/a.jpg", "photos/b.jpg", "code/photos/c.jpg", "notes.txt")
    assert list(pack(working_dir=tmp_path, exclude=["*.txt", "photos/"]).files) == ["list.csv"]
    assert list(pack(working_dir=tmp_path, exclude=["code/photos", "photos/b*"]).files) == [
        "list.csv",
        "notes.txt",
        "photos/a.jpg",
    ]


def test_links_travel_as_what_they_point_to(tmp_path: Path) -> None:
    write(tmp_path, "outside/list.csv", "work/code.py")
    (tmp_path / "work" / "list.csv").symlink_to(tmp_path / "outside" / "list.csv")
    (tmp_path / "work" / "gone").symlink_to(tmp_path / "nowhere")
    assert list(pack(working_dir=tmp_path / "work").files) == ["code.py", "list.csv"]


def test_too_much_is_refused_and_the_largest_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcels, "MOST_BYTES", 5_000_000)
    write(tmp_path, "photos/a.jpg", "photos/b.jpg", size=2_000_000)
    write(tmp_path, "table.csv", size=1_500_000)
    with pytest.raises(ConfigError) as caught:
        pack(working_dir=tmp_path)
    said = str(caught.value).splitlines()
    assert said[0].startswith(f"{tmp_path} is 6 MB, and 5 MB may travel")
    assert [line.split()[-1] for line in said[1:3]] == ["photos/", "photos/a.jpg"]
    assert "table.csv" in str(caught.value) and "--exclude" in said[-1]
    assert pack(working_dir=tmp_path, exclude=["photos"]).files


def test_the_zip_is_the_same_for_the_same_files(tmp_path: Path) -> None:
    write(tmp_path / "work", "b.py", "a/c.txt")
    (tmp_path / "work" / "b.py").chmod(0o755)
    found = pack(working_dir=tmp_path / "work").with_settings("generate: {}\n")
    found.write(tmp_path / "first.zip")
    os.utime(tmp_path / "work" / "b.py", (0, 0))
    found.write(tmp_path / "second.zip")
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "first.zip") as packed:
        assert packed.namelist() == ["a/c.txt", "b.py", SETTINGS_FILE]
        assert packed.read(SETTINGS_FILE) == b"generate: {}\n"
        assert packed.getinfo("b.py").external_attr >> 16 == 0o100755


def test_our_code_travels_when_asked_and_nothing_of_it_is_missing() -> None:
    files = pack(with_code=True).files
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "amg").rglob("*.py")}
    assert here <= set(files) and "amg/review/sheet.html" in files
    assert not any("__pycache__" in name for name in files)


def test_settings_of_the_same_name_in_the_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rename it"):
        pack(working_dir=write(tmp_path, SETTINGS_FILE))


# what the cluster can see


def dry_run(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(command, [*arguments, "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refused(*arguments: str) -> str:
    done = CliRunner().invoke(command, [*arguments, "--dry-run"])
    assert isinstance(done.exception, ConfigError), done.output
    return str(done.exception)


def test_paths_of_this_machine_are_refused_together_with_what_to_do(tmp_path: Path) -> None:
    write(tmp_path, "own.pth")
    said = refused("photos", IN, "--out", "labels", "--weights", str(tmp_path / "own.pth"))
    lines = [line.strip() for line in said.splitlines()]
    assert "photos" in lines and "--out labels" in lines and not any(IN in line for line in lines)
    assert any(
        "s3://BUCKET/own.pth#sha256=cd2eb0837c9b4c962c22d2ff8b5441b7b45805887f051d39bf133b583baf6860" in x
        for x in lines
    )
    assert "--shared-disk" in lines[-1] and "--working-dir" in lines[-1]
    assert "--out file:///labels" in refused(IN, "--out", "file:///labels")


def test_a_shared_disk_makes_paths_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path, "own.pth"))
    sent = dry_run("photos", "--out", "labels", "--weights", "own.pth", "--shared-disk")
    assert shlex.split(sent["entrypoint"])[-1] == f"{tmp_path}/photos"
    assert f"--out {tmp_path}/labels" in sent["entrypoint"]


def test_a_list_in_the_working_directory_is_named_as_it_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "lists/train.csv", "weights.pth")
    for name in ("lists/train.csv", str(tmp_path / "lists" / "train.csv")):
        sent = dry_run(name, "--out", OUT, "--working-dir", str(tmp_path))
        assert shlex.split(sent["entrypoint"])[-2:] == ["--", "lists/train.csv"]
        assert sent["files"] == ["lists/train.csv", SETTINGS_FILE]
    monkeypatch.chdir(tmp_path / "lists")
    assert shlex.split(dry_run("train.csv", "--out", OUT, "--working-dir", "..")["entrypoint"])[-1] == "lists/train.csv"
    assert "weights.pth" in refused("weights.pth", "--out", OUT, "--working-dir", str(tmp_path))


def test_what_is_sent_is_what_run_understands(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("generate:\n  points_per_side: 7\nrun:\n  address: 10.0.0.1:6379\n")
    arguments = ["--config", str(tmp_path / "mine.yaml"), "--set", "decode.max_pixels=9", "--workers", "3"]
    sent = dry_run(
        IN, "--out", OUT, *arguments, "--limit", "5", "--strict", "--log", "json", "--gpus-per-worker", "0.5"
    )
    python, *words = shlex.split(sent["entrypoint"])
    assert [python, *words[:3]] == ["python", "-m", "amg", "run"]
    run = cli.get_command(click.Context(cli), "run")
    assert run is not None
    given = run.make_context("run", words[3:]).params
    assert given["inputs"] == (IN,) and given["out"] == OUT and given["limit"] == 5 and given["strict"]
    assert given["log"] == "json" and given["config_file"] == SETTINGS_FILE


def settings_in(parcel: Parcel) -> Mapping[str, Any]:
    content = parcel.files[SETTINGS_FILE]
    assert isinstance(content, bytes)
    return yaml.safe_load(content)


def test_settings_travel_resolved_and_name_no_other_ray() -> None:
    config = load_config(preset="sa1b", overrides={"run.runner": "ray", "run.gpus_per_worker": 0.5})
    asked = order([IN], OUT, config, Parcel({}))
    assert settings_in(asked.parcel) == config.model_dump(mode="json")


def test_settings_are_checked_before_anything_is_sent() -> None:
    done = CliRunner().invoke(command, [IN, "--out", OUT, "--set", "generate.points_per_sid=4", "--address", ADDRESS])
    assert isinstance(done.exception, ConfigError) and "points_per_side" in str(done.exception)
    assert CliRunner().invoke(command, [IN, "--out", OUT, "--workers", "0"]).exit_code == 2


def test_options_of_run_are_those_of_run() -> None:
    run = cli.get_command(click.Context(cli), "run")
    assert run is not None
    ours = {parameter.name: parameter for parameter in command.params}
    theirs = {parameter.name: parameter for parameter in run.params}
    assert all(ours[name] is theirs[name] for name in AS_IN_RUN)
    here_alone = {"runner", "address", "dry_run", "overwrite", "yes", "quiet", "as_json"}
    assert set(theirs) == set(AS_IN_RUN) | here_alone, "a new option of run: does a submitted job take it?"


def test_ray_takes_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.runtime_env import RuntimeEnv

    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    arguments = ["--pip", "sam-amg==0.1.0", "--pip", "s3fs", "--env", "AWS_REGION", "--env", "A=b=c", "--with-code"]
    sent = dry_run(IN, "--out", OUT, *arguments)
    assert "eu-north-1" not in json.dumps(sent)
    assert {"AWS_REGION", "A"} < set(sent["runtime_env"]["env_vars"])
    asked = Order("id", "x", Parcel({}), {"AWS_REGION": "eu-north-1"}, ["sam-amg==0.1.0"])
    taken = RuntimeEnv(**asked.runtime_env("gcs://_ray_pkg_0.zip"))
    assert taken["pip"]["packages"] == ["sam-amg==0.1.0"] and taken["env_vars"]["AWS_REGION"] == "eu-north-1"
    assert "--env NO_SUCH" in refused(IN, "--out", OUT, "--env", "NO_SUCH")


# a cluster


@dataclass
class Details:
    """What Ray tells of a job."""

    submission_id: str
    status: Any
    driver_exit_code: int | None = None
    message: str = ""


@dataclass
class FakeClient:
    """A cluster's job API. `log` is what it tells, piece by piece; an exception among them breaks the connection."""

    jobs: dict[str, Details] = field(default_factory=dict)
    sent: list[dict[str, Any]] = field(default_factory=list)
    logs: list[list[str | Exception]] = field(default_factory=list)
    when_told: Callable[[], None] = lambda: None
    taken: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def add(self, name: str, status: str, **more: Any) -> None:
        from ray.job_submission import JobStatus

        self.jobs[name] = Details(name, JobStatus(status), **more)

    def list_jobs(self) -> list[Details]:
        return [*self.jobs.values(), Details(None, next(iter(self.jobs.values()), Details("", None)).status)]  # type: ignore[arg-type]

    def submit_job(self, **options: Any) -> str:
        name = options["submission_id"]
        if self.refusals:
            raise RuntimeError(f"Request failed with status code 500: {self.refusals.pop()}")
        if self.taken:
            self.add(self.taken.pop(), "RUNNING")
        if name in self.jobs:
            raise RuntimeError(f"Request failed with status code 500: Job with submission_id {name} already exists.")
        with zipfile.ZipFile(options["runtime_env"]["working_dir"]) as packed:
            self.sent.append({**options, "files": packed.namelist()})
        self.add(name, "PENDING")
        return name

    def get_job_info(self, name: str) -> Details:
        if name not in self.jobs:
            raise RuntimeError(f"Request failed with status code 404: Job {name} does not exist.")
        return self.jobs[name]

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        for piece in self.logs.pop(0) if self.logs else []:
            if isinstance(piece, Exception):
                raise piece
            yield piece
        if not self.logs:
            self.when_told()


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission.time, "sleep", lambda seconds: None)


def an_order() -> Order:
    return order([IN], OUT, Config(), Parcel({"list.csv": b"x"}), submission_id="sam-amg-1")


def begin(client: FakeClient, patience_seconds: float = 60.0) -> tuple[str, bool]:
    return start(client, an_order(), address=ADDRESS, patience_seconds=patience_seconds)  # type: ignore[arg-type]


def test_a_job_is_sent_once_and_found_from_then_on(client: FakeClient) -> None:
    assert begin(client) == ("sam-amg-1", True)
    assert begin(client) == ("sam-amg-1", False)
    (sent,) = client.sent
    assert sent["files"] == ["list.csv", SETTINGS_FILE]
    assert sent["entrypoint"].startswith("python -m amg run ")
    assert sent["metadata"]["sam_amg.out"] == OUT


@pytest.mark.parametrize("status", ["FAILED", "STOPPED", "SUCCEEDED"])
def test_a_job_that_has_ended_is_started_anew_under_the_next_number(client: FakeClient, status: str) -> None:
    client.add("sam-amg-1", status)
    client.add("sam-amg-2", "RUNNING")  # another job
    assert begin(client) == ("sam-amg-1-2", True)
    client.add("sam-amg-1-2", status)
    client.add("sam-amg-1-7", status)
    assert begin(client) == ("sam-amg-1-8", True)
    assert begin(client) == ("sam-amg-1-8", False)


@pytest.mark.usefixtures("no_pause")
def test_a_head_that_is_not_ready_yet_is_waited_for(client: FakeClient) -> None:
    client.refusals = ["No available agent to submit job, please try again later."] * 3
    assert begin(client) == ("sam-amg-1", True)
    client.jobs.clear()
    client.refusals = ["Invalid runtime environment"]
    with pytest.raises(ClusterError, match=r"does not take the job: .*Invalid runtime environment"):
        begin(client)


@pytest.mark.usefixtures("no_pause")
def test_two_who_start_the_same_job_at_once_start_one(client: FakeClient) -> None:
    client.taken = ["sam-amg-1"]
    assert begin(client) == ("sam-amg-1", False)
    assert client.sent == []


def test_a_name_that_stays_taken_is_an_error_and_no_loop(client: FakeClient) -> None:
    client.list_jobs = list  # type: ignore[method-assign]
    client.add("sam-amg-1", "RUNNING")
    with pytest.raises(ClusterError, match=r"does not take the job: .* already exists"):
        begin(client, patience_seconds=0)


def watch(client: FakeClient, patience_seconds: float = 5.0) -> tuple[submission.Ended, str]:
    told: list[str] = []
    ended = follow(
        client,  # type: ignore[arg-type]
        "sam-amg-1",
        address=ADDRESS,
        echo=told.append,
        patience_seconds=patience_seconds,
    )
    return ended, "".join(told)


@pytest.mark.parametrize(
    ("status", "code", "exit_status"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", 1, 1),
        ("FAILED", None, 1),
        ("FAILED", -9, 1),
        ("STOPPED", None, 130),
    ],
)
def test_the_exit_status_is_the_jobs(client: FakeClient, status: str, code: int | None, exit_status: int) -> None:
    client.add("sam-amg-1", status, driver_exit_code=code)
    client.logs = [["10 images\n", "done\n"]]
    ended, log = watch(client)
    assert (ended.status, ended.exit_status, log) == (status, exit_status, "10 images\ndone\n")


def test_a_job_that_never_began_says_why(client: FakeClient) -> None:
    client.add("sam-amg-1", "FAILED", message="no such package")
    client.logs = [["Runtime env is setting up.\n"]]
    assert watch(client)[0].message == "no such package"
    client.add("sam-amg-1", "FAILED", message="the log again", driver_exit_code=1)
    assert watch(client)[0].message == ""


@pytest.mark.usefixtures("no_pause")
def test_a_broken_connection_is_made_again_and_nothing_is_told_twice(client: FakeClient) -> None:
    from aiohttp import ServerDisconnectedError

    client.add("sam-amg-1", "RUNNING")
    client.logs = [
        ["one\ntw", ServerDisconnectedError()],
        ["one\n", RuntimeError("WebSocket connection closed unexpectedly with close code 1006")],
        ["one\n", "two\nth", ConnectionRefusedError("refused")],
        ["one\ntwo\n", "three\n", "four\n"],
    ]
    client.when_told = lambda: client.add("sam-amg-1", "SUCCEEDED", driver_exit_code=0)
    assert watch(client)[1] == "one\ntwo\nthree\nfour\n"


@pytest.mark.usefixtures("no_pause")
def test_a_cluster_that_does_not_come_back_is_given_up_with_patience(client: FakeClient) -> None:
    client.add("sam-amg-1", "RUNNING")
    client.logs = [["one\n"], *([ConnectionRefusedError("refused")] for _ in range(50))]
    with pytest.raises(ClusterError, match=r"has not answered for 0 s \(refused\); sam-amg-1 may go on: the same"):
        watch(client, patience_seconds=0)
    client.logs, client.jobs = [["one\n"]], {}
    with pytest.raises(ClusterError, match="does not know sam-amg-1 any more"):
        watch(client)


def test_coming_back_is_a_command_to_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    lines = come_back("sam-amg-1", ADDRESS, ["sam-amg", "submit", "s3://b/my photos", "--out", OUT]).splitlines()
    assert lines[0] == "sam-amg-1 goes on without this terminal"
    assert lines[1].split(":", 1)[1].strip() == f"sam-amg submit 's3://b/my photos' --out {OUT}"
    assert lines[2].split(":", 1)[1].strip() == f"ray job logs sam-amg-1 --follow --address {ADDRESS}"
    assert lines[3].split(":", 1)[1].strip() == f"ray job stop sam-amg-1 --address {ADDRESS}"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert "RAY_AUTH_MODE=token ray job stop" in come_back("sam-amg-1", ADDRESS, [])


def called(client: FakeClient, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    monkeypatch.setattr(submission, "connect", lambda address: client)
    monkeypatch.setattr(sys, "argv", ["/bin/sam-amg", "submit", *arguments])
    return CliRunner().invoke(command, arguments, standalone_mode=False)


def test_ctrl_c_leaves_the_job_and_says_how_to_come_back(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(submission, "follow", interrupt)
    done = called(client, monkeypatch, IN, "--out", OUT, "--address", ADDRESS)
    (name,) = client.jobs
    assert done.return_value == 130
    assert f"sam-amg submit {IN} --out {OUT} --address {ADDRESS}" in done.stderr
    assert f"job stop {name} --address {ADDRESS}" in done.stderr
    assert client.jobs[name].status == "PENDING"


def test_no_wait_prints_the_id_alone_on_stdout(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    done = called(client, monkeypatch, IN, "--out", OUT, "--no-wait", "--submission-id", "mine")
    assert done.return_value == 0 and done.stdout == "mine\n"
    assert "job logs mine --follow" in done.stderr


def test_a_failed_job_fails_the_command(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    client.logs = [["refused\n"]]
    client.when_told = lambda: client.add(next(iter(client.jobs)), "FAILED", driver_exit_code=2)
    done = called(client, monkeypatch, IN, "--out", OUT)
    assert done.return_value == 2
    assert done.stdout == "refused\n" and done.stderr.splitlines()[-1].endswith(" failed")


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "10.0.0.1:6379"])
def test_an_address_that_takes_no_jobs_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"such as http://10.0.0.1:8265"):
        submission.connect(address)


def test_nobody_at_the_address_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")
    with pytest.raises(ClusterError, match=r"http://127.0.0.1:1 cannot be reached: .*127.0.0.1:1"):
        submission.connect("http://127.0.0.1:1")
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:2"


# a real head

TOKEN = "0123456789abcdef" * 4
JOB = """
import pathlib, sys, time, yaml
settings = yaml.safe_load(open("sam-amg-job.yaml"))
print("labeling", sys.argv[1:], settings["run"]["runner"], open("list.txt").read(), flush=True)
go = pathlib.Path(sys.argv[sys.argv.index("--out") + 1]) / "go"
while not go.exists():
    time.sleep(0.05)
sys.exit(int(go.read_text()))
"""


@dataclass(frozen=True)
class Head:
    """A Ray head with its dashboard on the loopback, and the home of a user who has its token."""

    address: str
    home: Path

    @property
    def env(self) -> dict[str, str]:
        """Without anybody's Ray."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {**kept, "HOME": str(self.home), "PYTHONPATH": str(ROOT)}

    def submit(self, *arguments: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "amg", "submit", *arguments, "--address", self.address]
        return subprocess.Popen(words, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Every port is its own: there may be other Rays on this machine."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(TOKEN)
    with TemporaryDirectory(prefix="ray", dir="/tmp") as sockets:  # their paths have at most 107 bytes
        gcs, dashboard, agent = free_ports(3)
        here = Head(f"http://127.0.0.1:{dashboard}", home)
        words = f"start --head --block --num-cpus=2 --disable-usage-stats --temp-dir={sockets}"
        words += f" --node-ip-address=127.0.0.1 --port={gcs} --dashboard-host=127.0.0.1 --dashboard-port={dashboard}"
        words += f" --dashboard-agent-listen-port={agent}"
        command = [Path(sys.executable).with_name("ray"), *words.split()]
        with Path(sockets, "head.log").open("w+") as log:
            process = subprocess.Popen(command, env=here.env, stdout=log, stderr=log)
            try:
                wait_until(lambda: "--block" in Path(log.name).read_text(), process)
                yield here
            finally:
                process.terminate()
                process.wait(timeout=60)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "Ray did not start"
        time.sleep(0.1)


def next_line(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    seen: list[str] = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return line
    raise AssertionError(f"no {text!r} in {seen}; {process.communicate()}")


def test_a_job_is_started_found_left_ended_and_started_again(head: Head, tmp_path: Path) -> None:
    """On a real head; what labels there is a stand-in that travels with the job."""
    work, out = tmp_path / "work", tmp_path / "out"
    (work / "amg").mkdir(parents=True)
    out.mkdir()
    (work / "amg" / "__init__.py").touch()
    (work / "amg" / "__main__.py").write_text(JOB)
    (work / "list.txt").write_text("it travels")
    arguments = ["list.txt", "--out", str(out), "--working-dir", str(work), "--shared-disk", "--python", sys.executable]

    first = head.submit(*arguments)
    line = next_line(first, "labeling")
    assert f"'--out', '{out}'" in line and line.endswith("ray it travels\n")

    second = head.submit(*arguments)
    next_line(second, "labeling")
    second.send_signal(signal.SIGINT)
    _, said = second.communicate(timeout=120)
    assert second.returncode == 130
    assert "runs already, and does the same" in said and "goes on without this terminal" in said
    assert first.poll() is None

    (out / "go").write_text("3")
    _, said = first.communicate(timeout=120)
    assert first.returncode == 3 and said.splitlines()[-1].endswith(" failed"), said

    (out / "go").write_text("0")
    third = head.submit(*arguments)
    told, said = third.communicate(timeout=120)
    assert third.returncode == 0 and "labeling" in told, said
    assert "-2 was started at" in said and said.splitlines()[-1].endswith("-2 succeeded")


@pytest.mark.slow
def test_real_weights_label_a_photo_of_the_shared_disk(head: Head, tmp_path: Path) -> None:
    from amg.sam.weights import cache_folder
    from amg.shards.reader import read_shards

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "coffee.jpg").write_bytes((ROOT / "tests" / "photos" / "coffee.jpg").read_bytes())
    arguments = ["--out", str(tmp_path / "out"), "--shared-disk", "--with-code", "--python", sys.executable]
    arguments += ["--env", f"SAM_AMG_CACHE={cache_folder()}", "--set", "generate.points_per_side=4", "--device", "cpu"]
    job = head.submit(str(tmp_path / "photos"), *arguments, "--workers", "1")
    told, said = job.communicate(timeout=300)
    assert job.returncode == 0, told + said
    assert "1 image, 1 labeled, 0 failed" in told
    (row,) = read_shards(tmp_path / "out")
    assert row["status"] == "ok" and row["num_masks"] > 2
