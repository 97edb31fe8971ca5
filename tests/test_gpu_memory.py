"""How much of a GPU's memory a worker takes, and that it is not cut into pieces; all of it told, none of it needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from amg.cli import main as command
from amg.cli.config import named_settings
from amg.cli.retry import retry
from amg.cli.submit import submit
from amg.config import load_config, masks_depend_on
from amg.errors import ConfigError
from amg.run import gpu_memory, machine, ray_worker, worker
from amg.run.local import open_label, settle
from amg.sam import load
from tests.fakes import DiscSam

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def set_now() -> dict[str, str]:
    import os

    return {name: os.environ[name] for name in NAMES if name in os.environ}


def test_pools_grow_where_nobody_says_otherwise(unset: pytest.MonkeyPatch) -> None:
    unset.setenv(NAMES[0], "")  # so that what is set now is taken back after the test
    unset.delenv(NAMES[0])
    gpu_memory.keep_whole()
    assert set_now() == {NAMES[0]: "expandable_segments:True"}


@pytest.mark.parametrize("name", NAMES)
def test_what_the_user_says_of_the_pools_stays(name: str, unset: pytest.MonkeyPatch) -> None:
    unset.setenv(name, "max_split_size_mb:64")
    gpu_memory.keep_whole()
    assert set_now() == {name: "max_split_size_mb:64"}


def test_importing_the_library_says_nothing_of_it() -> None:
    code = "import os, amg, amg.generate, amg.run.local, amg.cli.run; print('PYTORCH_ALLOC_CONF' in os.environ)"
    done = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_every_process_of_ours_says_it_before_torch_is_loaded(unset: pytest.MonkeyPatch) -> None:
    """The command, a worker and an actor."""
    asked: list[str] = []
    unset.setattr(command, "keep_whole", lambda: asked.append("command"))
    unset.setattr(sys, "argv", ["sam-amg", "--version"])
    assert command.main() == 0
    for module, name in ((worker, "worker"), (ray_worker, "actor")):
        unset.setattr(module.gpu_memory, "keep_whole", lambda name=name: asked.append(name))
        if module is worker:
            unset.setattr(worker, "_end_with_parent", lambda: None)
            unset.setattr(worker.signal, "signal", lambda *_: None)
            unset.setattr(worker.signal, "pthread_sigmask", lambda *_: None)
            worker.work(_Closed(), None, lambda _: None, "cpu")  # type: ignore[arg-type]
        else:
            actor = ray_worker.RayWorker(None, lambda _: None, "cpu")  # type: ignore[arg-type]
            unset.setattr(ray_worker, "_metrics", lambda _: None)
            actor.open()
    assert asked == ["command", "worker", "actor"]


class _Closed:
    """A pipe whose other end is gone."""

    def send(self, _: Any) -> None:
        raise BrokenPipeError


def test_a_fraction_is_for_gpus(tmp_path: Path) -> None:
    gpu_memory.check_fraction(0.5, ["cuda:0", "cuda:1"])
    gpu_memory.check_fraction(None, ["cpu"])
    config = load_config(overrides={"memory.fraction": 0.5, "run.device": "cpu"})
    with pytest.raises(ConfigError, match=r"memory\.fraction is 0\.5 and the job runs on cpu: .* --device cuda"):
        settle(config, None)


@pytest.mark.parametrize("value", [0, -0.1, 1.5])
def test_a_fraction_is_a_share(value: float) -> None:
    with pytest.raises(ConfigError, match=r"memory\.fraction"):
        load_config(overrides={"memory.fraction": value})


def test_a_fraction_changes_no_mask() -> None:
    both = [load_config(overrides={"memory.fraction": value}) for value in (None, 0.5)]
    assert masks_depend_on(both[0], weights_digest="") == masks_depend_on(both[1], weights_digest="")


@pytest.mark.parametrize(("device", "index"), [("cuda", None), ("cuda:1", 1)])
def test_a_worker_bounds_its_memory_before_it_loads_the_model(
    device: str, index: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[Any, ...]] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: done.append(given))
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(load, "load_sam", lambda *_, **__: done.append(("loaded",)) or DiscSam())
    open_label(Path("weights.pt"), load_config(overrides={"memory.fraction": 0.25}), device)
    assert done == [(0.25, index), ("loaded",)]
    done.clear()
    open_label(Path("weights.pt"), load_config(), device)
    assert done == [("loaded",)]


def test_the_option_sets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(machine, "pick_devices", lambda *_, **__: ["cpu"])
    given = ["run", str(tmp_path), "--out", str(tmp_path / "out"), "--memory-fraction", "0.5"]
    monkeypatch.setattr(sys, "argv", ["sam-amg", *given])
    assert command.main() == 2
    assert "memory.fraction is 0.5 and the job runs on cpu" in capsys.readouterr().err


def test_submit_and_retry_take_the_option_too() -> None:
    assert named_settings({"memory_fraction": 0.5, "workers": None}) == {"memory.fraction": 0.5}
    assert "memory_fraction" in {parameter.name for parameter in submit.params}
    assert "memory_fraction" in {parameter.name for parameter in retry.params}
