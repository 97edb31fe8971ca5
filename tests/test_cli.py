import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from amg import __version__
from amg.cli.main import COMMANDS, main
from amg.config import PRESETS, Config, fields, load_config
from amg.errors import AmgError, OutputRefused, StorageError
from amg.run.progress import Observer, Summary
from amg.run.runner import Runner

HEAVY = ("torch", "pydantic", "pyarrow", "numba", "numpy", "scipy", "PIL", "requests")

Command = Callable[..., int]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """`sam-amg` with these arguments; gives its exit status."""

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["sam-amg", *arguments])
        return main()

    return call


class FakeJob:
    """Stands in for `amg.run.runner`: remembers what it was asked for and gives a summary, or raises."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.rows = {"ok": 2}
        self.error: BaseException | None = None

    def run_with(
        self,
        runner: Runner,
        source: tuple[str, ...],
        out: str,
        config: Config,
        *,
        limit: int | None = None,
        overwrite: bool = False,
        observer: Observer,
    ) -> Summary:
        self.calls.append({"inputs": source, "out": out, "config": config, "limit": limit, "overwrite": overwrite})
        if self.error is not None:
            raise self.error
        observer.start(2, 0)
        observer.finish()
        failures = (("x.jpg", "missing", "it is gone"),) if "missing" in self.rows else ()
        return Summary(out, 2, 0, self.rows, failures, 7, {"encode": 1.0}, 2.0, 300.0, 1)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> FakeJob:
    fake = FakeJob()
    monkeypatch.setattr("amg.run.runner.run_with", fake.run_with)
    monkeypatch.setattr("amg.sources.inputs.open_source", lambda *inputs: inputs)
    return fake


def child(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_are_fast_and_load_nothing_heavy(argument: str) -> None:
    done = child(
        f"import sys, time; sys.argv = ['sam-amg', {argument!r}]\n"
        "from amg.cli.main import main\n"
        "status = main()\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
        "print(time.process_time(), file=sys.stderr)\n"  # CPU time, so that a busy machine does not fail the test
        "sys.exit(status)"
    )
    loaded, seconds = done.stderr.splitlines()
    assert done.returncode == 0
    assert loaded == "[]"
    assert float(seconds) < 0.5


def test_importing_the_package_is_fast_and_loads_nothing_heavy() -> None:
    done = child(f"import amg, sys, time; print([n for n in {HEAVY!r} if n in sys.modules], time.process_time())")
    loaded, _, seconds = done.stdout.rpartition(" ")
    assert loaded == "[]"
    assert float(seconds) < 0.5


def test_the_module_runs_like_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "amg", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"sam-amg {__version__}\n"


def test_the_top_help_lists_every_command(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--help") == 0
    text = capsys.readouterr().out
    for name, entry in COMMANDS.items():
        assert f"  {name} " in text
        assert entry.summary in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(command: Command, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert command(name, "--help") == 0
    assert f"Usage: sam-amg {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["run", "submit", "show", "config"])
def test_help_has_examples_that_name_real_options(
    command: Command, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    command(name, "--help")
    options, _, examples = capsys.readouterr().out.partition("Examples:")
    assert f"sam-amg {name}" in examples
    for word in examples.split():
        assert not word.startswith("--") or word in options, word


def test_run_help_names_every_preset(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    command("run", "--help")
    text = capsys.readouterr().out
    assert all(preset in text for preset in PRESETS)


def test_wrong_usage_exits_2_and_names_the_nearest_command(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("rum") == 2
    assert "did you mean 'run'?" in capsys.readouterr().err
    assert command("run") == 2
    assert command("run", "photos") == 2
    assert "--out" in capsys.readouterr().err
    assert command("run", "photos", "--out", "x", "--limit", "0") == 2


def test_all_wrong_settings_are_said_at_once(
    command: Command, job: FakeJob, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = (
        "points_per_side",
        "generate.points_per_sid=8",
        "generate.pred_iou_thresh=-1",
        "generate.crop_n_layers=many",
    )
    assert command("run", "photos", "--out", "x", *(word for text in wrong for word in ("--set", text))) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "--set got 'points_per_side', wanted NAME=VALUE" in said
    assert "did you mean 'generate.points_per_side'" in said
    assert "generate.pred_iou_thresh is -1" in said
    assert "generate.crop_n_layers is 'many'" in said
    assert not job.calls


def test_wrong_settings_are_said_before_anything_heavy_is_loaded() -> None:
    done = child(
        "import sys; sys.argv = ['sam-amg', 'run', 'photos', '--out', 'x', '--preset', 'sa1']\n"
        "from amg.cli.main import main\n"
        "print(main(), [name for name in ('torch', 'pyarrow', 'numba') if name in sys.modules])"
    )
    assert done.stdout == "2 []\n"
    assert "did you mean 'sa1b'" in done.stderr


def test_run_hands_over_what_was_asked(command: Command, job: FakeJob, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("generate:\n  points_per_side: 8\n  crop_n_layers: 1\n")
    options = ("--preset", "sa1b", "--config", str(file), "--set", "generate.points_per_side=4", "--limit", "5")
    assert command("run", "a", "b/*.jpg", "--out", "labels", *options, "--weights", "w.pth", "--device", "cpu") == 0
    (call,) = job.calls
    assert call["inputs"] == ("a", "b/*.jpg")
    assert call["out"] == "labels"
    assert call["limit"] == 5
    config = call["config"]
    assert config.generate.points_per_side == 4
    assert config.generate.crop_n_layers == 1
    assert config.generate.min_mask_region_area == 100
    assert config.model.weights == "w.pth"
    assert config.run.device == "cpu"


@pytest.mark.usefixtures("job")
def test_the_summary_goes_to_stdout_and_progress_to_stderr(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("run", "photos", "--out", "labels") == 0
    out, err = capsys.readouterr()
    assert out.startswith("2 images, 2 labeled, 0 failed\n")
    assert "from 'labels/data/*.parquet'" in out
    assert err == "2 images\n"


@pytest.mark.usefixtures("job")
def test_json_is_all_of_stdout(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("run", "photos", "--out", "labels", "--json", "--quiet") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["masks"] == 7
    assert err == ""


@pytest.mark.usefixtures("job")
def test_quiet_says_nothing(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("run", "photos", "--out", "labels", "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_failures_change_the_exit_status_only_with_strict(
    command: Command, job: FakeJob, capsys: pytest.CaptureFixture[str]
) -> None:
    job.rows = {"ok": 1, "missing": 1}
    assert command("run", "photos", "--out", "labels") == 0
    assert command("run", "photos", "--out", "labels", "--strict") == 1
    assert "missing  x.jpg: it is gone" in capsys.readouterr().out


@pytest.mark.parametrize(("error", "status"), [(StorageError("no room"), 1), (OutputRefused("another\njob"), 2)])
def test_errors_of_ours_are_one_message_and_a_status(
    command: Command, job: FakeJob, capsys: pytest.CaptureFixture[str], error: AmgError, status: int
) -> None:
    job.error = error
    assert command("run", "photos", "--out", "labels") == status
    assert capsys.readouterr().err == "error: " + str(error).replace("\n", "\n       ") + "\n"


def test_an_interrupt_exits_130_and_says_how_to_go_on(
    command: Command, job: FakeJob, capsys: pytest.CaptureFixture[str]
) -> None:
    job.error = KeyboardInterrupt()
    assert command("run", "photos", "--out", "labels") == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_errors_nobody_foresaw_keep_their_traceback(command: Command, job: FakeJob) -> None:
    job.error = ZeroDivisionError("ours")
    with pytest.raises(ZeroDivisionError):
        command("run", "photos", "--out", "labels")


def test_config_prints_what_config_takes(command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command("config", "--preset", "sa1b", "--set", "run.threads=3") == 0
    file = tmp_path / "mine.yaml"
    file.write_text(capsys.readouterr().out)
    assert load_config(file=file) == load_config(preset="sa1b", overrides={"run.threads": 3})
    assert yaml.safe_load(file.read_text())["generate"]["crop_n_layers"] == 2


def test_config_lists_every_setting_with_default_range_and_help(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("config", "--list") == 0
    text = capsys.readouterr().out
    for name, field in fields():
        assert f"{name} = " in text
        assert field.description in text
    assert "generate.points_per_side = 32   (integer, 1 to 1024, or null)" in text
    assert 'output.bbox_style = "exact"   (exact or sa1b)' in text


def test_config_prints_a_schema(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("config", "--schema") == 0
    assert set(json.loads(capsys.readouterr().out)["properties"]) == set(Config.model_fields)


def test_config_refuses_a_file_that_is_not_there(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("config", "--config", "nowhere.yaml") == 2
    assert "cannot read the config nowhere.yaml" in capsys.readouterr().err
