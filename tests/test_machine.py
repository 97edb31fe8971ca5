"""Devices, cores and weights are settled before anything is planned, without torch where that can be."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from amg.cli.main import main
from amg.config import RunSettings, load_config
from amg.errors import AmgError, ConfigError, WeightsError
from amg.run import local, machine
from amg.run.machine import pick_devices
from tests.chaos.standin import make_photos
from tests.fakes import DiscSam, label_with


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(machine, "may_have_cuda", lambda: True)


@pytest.fixture
def torch_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other tests have imported."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)


def nobody_asks(*_: object) -> list[str]:
    raise AssertionError("torch was asked")


@pytest.mark.parametrize(
    ("settings", "devices"),
    [
        ({"device": "cpu"}, ["cpu"]),
        ({"device": "cpu", "workers": 3}, ["cpu", "cpu", "cpu"]),
        ({"device": "cpu, cpu"}, ["cpu", "cpu"]),
        ({"device": "auto"}, ["cuda"]),
        ({"device": "auto", "workers": 2}, ["cuda", "cuda"]),
        ({"device": "cuda:1"}, ["cuda:1"]),
        ({"device": "cuda:0,cuda:1"}, ["cuda:0", "cuda:1"]),
        ({"device": " cuda:1 , cuda:0,"}, ["cuda:1", "cuda:0"]),
        ({"device": "cuda:0,cuda:1", "workers": 5}, ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]),
    ],
)
def test_workers_are_on_the_devices_in_turn(two_gpus: None, settings: dict[str, object], devices: list[str]) -> None:
    assert pick_devices(RunSettings(**settings)) == devices  # type: ignore[arg-type]


@pytest.mark.parametrize("device", ["cuda:2", "cuda:0,cuda:7", "cpu:1", "mps:3"])
def test_a_device_that_is_not_there_is_refused(two_gpus: None, device: str) -> None:
    with pytest.raises(ConfigError, match=rf"device {device.split(',')[-1]} is not there: PyTorch .* sees \d of kind"):
        pick_devices(RunSettings(device=device))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"device": "gpu"}, "'gpu' is no device; wanted auto, cpu, cuda, cuda:N or mps"),
        ({"device": "cuda:one"}, "'cuda:one' is no device"),
        ({"device": "auto,cpu"}, "'auto' is no device"),
        ({"device": "cpu,cuda:0"}, "devices of one job are of one kind"),
        ({"device": "cuda:0,cuda:1", "workers": 1}, "run.workers is 1, run.device names 2 devices: cuda:1 has no wo"),
    ],
)
def test_what_is_wrong_in_itself_is_refused_before_torch_is_asked(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], text: str
) -> None:
    monkeypatch.setattr(machine, "ask_torch", nobody_asks)
    with pytest.raises(ConfigError, match=text):
        pick_devices(RunSettings(**settings))  # type: ignore[arg-type]


def test_a_cpu_needs_no_answer_from_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ask_torch", nobody_asks)
    monkeypatch.setattr(machine, "may_have_cuda", lambda: False)
    assert pick_devices(RunSettings(device="auto")) == ["cpu"]
    assert pick_devices(RunSettings(device="cpu,cpu", workers=3)) == ["cpu"] * 3


def test_torch_answers_from_a_process_of_its_own(torch_not_loaded: None, tmp_path: Path) -> None:
    (tmp_path / "a model.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigError, match=r"device cuda:99 is not there: PyTorch .* sees \d+ of kind cuda"):
        pick_devices(RunSettings(device="cuda:99"))
    with pytest.raises(WeightsError, match=r"a model.pt is no checkpoint of tensors"):
        pick_devices(RunSettings(device="cpu"), weights=tmp_path / "a model.pt")
    assert "torch" not in sys.modules


def test_a_torch_that_ends_its_process_is_an_error_that_says_so(
    torch_not_loaded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('this driver is from another age')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AmgError, match=r"could not say whether cuda:0 can be used.* ended with 1 .*from another age"):
        pick_devices(RunSettings(device="cuda:0"))


@pytest.mark.parametrize(
    ("build", "platform", "driver", "may"),
    [
        ("2.11.0+cpu", "linux", True, False),
        ("2.11.0+rocm6.4", "linux", False, True),
        ("2.11.0+cu128", "linux", True, True),
        ("2.11.0", "linux", False, False),
        ("2.11.0", "darwin", True, False),
    ],
)
def test_no_cuda_is_known_from_the_build_and_the_driver(
    monkeypatch: pytest.MonkeyPatch, build: str, platform: str, driver: bool, may: bool
) -> None:
    def load(name: str) -> None:
        assert name == "libcuda.so.1"
        if not driver:
            raise OSError("no such file")

    monkeypatch.setattr(machine, "version", lambda _: build)
    monkeypatch.setattr(machine.sys, "platform", platform)
    monkeypatch.setattr(machine.ctypes, "CDLL", load)
    assert machine.may_have_cuda() is may


def test_a_torch_that_was_not_installed_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(_: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(machine, "version", version)
    assert machine.may_have_cuda()


def test_the_cores_are_those_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for said in ("", "0", "many", "-2"):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert 1 <= machine.cores() <= (os.cpu_count() or 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "17")
    assert machine.cores() == 17


@pytest.mark.parametrize(("device", "chosen"), [("cuda:1", ["cuda:1"]), ("cuda", []), ("cpu", [])])
def test_a_worker_makes_its_gpu_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, chosen: list[str]
) -> None:
    import torch

    seen: list[str] = []
    label_with(DiscSam(radius=9), monkeypatch, tmp_path)
    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    local.open_label(tmp_path, load_config(), device)
    assert seen == chosen


class TestRefusedRuns:
    """A run that is refused leaves no plan, so that the corrected command is not refused for it."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.chdir(tmp_path)
        make_photos(tmp_path / "photos", 3)
        (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 and no more")
        self.patch, self.capture, self.folder = monkeypatch, capsys, tmp_path

    def call(self, *arguments: str) -> tuple[int, str]:
        settings = ["--set", "generate.points_per_side=2", "--set", "run.threads=1", "--quiet"]
        self.patch.setattr(sys, "argv", ["sam-amg", "run", "photos", "--out", "out", *settings, *arguments])
        return main(), self.capture.readouterr().err

    @pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry run"])
    @pytest.mark.parametrize(
        ("arguments", "status", "text"),
        [
            (("--device", "cuda:99"), 2, "device cuda:99 is not there"),
            (("--device", "cuda:0,cuda:99"), 2, "is not there"),
            (("--device", "gpu"), 2, "'gpu' is no device"),
            (("--device", "cpu", "--weights", "broken.pt"), 1, "broken.pt is truncated"),
            (("--device", "cpu", "--weights", "mobil-sam"), 2, "neither a file nor a checkpoint"),
        ],
    )
    def test_devices_and_weights_are_refused_before_the_plan(
        self, arguments: tuple[str, ...], status: int, text: str, dry: tuple[str, ...]
    ) -> None:
        came, said = self.call(*arguments, *dry)
        assert (came, said.startswith("error: ")) == (status, True)
        assert text in said
        assert not (self.folder / "out" / "_plan").exists()
        label_with(DiscSam(radius=9), self.patch, self.folder)
        assert self.call("--device", "cpu")[0] == 0

    def test_published_weights_that_were_altered_are_refused(self) -> None:
        label_with(DiscSam(radius=9), self.patch, self.folder)
        (self.folder / "weights.pt").write_bytes(b"other bytes")
        came, said = self.call("--device", "cpu")
        assert came == 1
        assert "weights.pt was altered: sha256 " in said and "remove it" in said
        assert not (self.folder / "out" / "_plan").exists()

    @pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry run"])
    @pytest.mark.parametrize(
        "arguments",
        [
            ("--device", "cuda:99"),
            ("--device", "cpu", "--weights", "broken.pt"),
            ("--device", "cpu", "--weights", "mobil-sam"),
            ("--device", "cpu", "nothing-here/*.jpg"),
        ],
        ids=" ".join,
    )
    def test_a_refused_job_overwrites_nothing(self, arguments: tuple[str, ...], dry: tuple[str, ...]) -> None:
        with self.patch.context() as patch:
            label_with(DiscSam(radius=9), patch, self.folder)
            assert self.call("--device", "cpu")[0] == 0
        before = {file: file.read_bytes() for file in (self.folder / "out").rglob("*.*")}
        assert any(file.parent.name == "data" for file in before)
        came, said = self.call("--set", "generate.points_per_side=3", *arguments, "--overwrite", "--yes", *dry)
        assert (came in (1, 2), said.startswith("error: ")) == (True, True), said
        assert {file: file.read_bytes() for file in (self.folder / "out").rglob("*.*")} == before

    def test_weights_that_were_altered_since_overwrite_nothing(self) -> None:
        label_with(DiscSam(radius=9), self.patch, self.folder)
        assert self.call("--device", "cpu")[0] == 0
        (self.folder / "weights.pt").write_bytes(b"other bytes")
        assert self.call("--device", "cpu", "--overwrite", "--yes")[0] == 1
        assert len(list((self.folder / "out" / "data").iterdir())) == 1

    def test_a_job_that_starts_overwrites(self) -> None:
        label_with(DiscSam(radius=9), self.patch, self.folder)
        assert self.call("--device", "cpu", "--limit", "1")[0] == 0
        plan = (self.folder / "out" / "_plan" / "plan.json").read_text()
        other = ("--device", "cpu", "--set", "generate.points_per_side=3", "--overwrite", "--yes")
        assert self.call(*other) == (0, "")
        assert (self.folder / "out" / "_plan" / "plan.json").read_text() != plan

    @pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry run"])
    def test_what_is_no_output_is_not_overwritten(self, dry: tuple[str, ...]) -> None:
        (self.folder / "out").mkdir()
        (self.folder / "out" / "notes.txt").write_text("mine")
        came, said = self.call("--device", "cpu", "--overwrite", "--yes", *dry)
        assert (came, "is no output of this program" in said) == (2, True)
        assert [file.name for file in (self.folder / "out").iterdir()] == ["notes.txt"]

    def test_a_dry_run_says_that_a_run_would_be_refused(self) -> None:
        label_with(DiscSam(radius=9), self.patch, self.folder)
        assert self.call("--device", "cpu")[0] == 0
        other = ("--device", "cpu", "--set", "generate.points_per_side=3", "--dry-run")
        came, said = self.call(*other)
        assert came == 2
        assert "was made with other settings" in said
        assert "generate.points_per_side: there 2, now 3" in said
        assert self.call(*other, "--overwrite") == (0, "")
        assert self.call("--device", "cpu", "--dry-run") == (0, "")


def test_a_run_that_plans_loads_no_torch(tmp_path: Path) -> None:
    """`auto` may ask a process of its own; this one stays small."""
    code = "import sys; from amg.run import local, machine; from amg.config import RunSettings; " + (
        "machine.pick_devices(RunSettings()); print([m for m in ('torch', 'numba', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
