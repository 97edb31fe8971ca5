"""A job that runs on a Ray cluster while this machine looks on, or does not: sent, found again, followed.

The cluster's head takes it over Ray's job API and runs `sam-amg run --runner ray` there. What is to be done decides the
name of the job, so that the same command finds the job that it started before, from any terminal.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amg import __version__
from amg.config import MASK_REVISION, Config, masks_depend_on, to_yaml
from amg.errors import ClusterError, ConfigError
from amg.run.parcel import SETTINGS_FILE, Parcel
from amg.sam.weights import said_digest

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

INTERRUPTED = 130
PATIENCE_SECONDS = 300.0
START_SECONDS = 60.0
_PASSING = ("already exists", "try again later")  # somebody else was faster; the head is not ready yet
_OVERRULES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_AUTH_MODE = "RAY_AUTH_MODE"


@dataclass(frozen=True, slots=True)
class Order:
    """What a cluster is asked to do. `submission_id` is the name of the job's first start."""

    submission_id: str
    entrypoint: str
    parcel: Parcel
    env: Mapping[str, str] = field(default_factory=dict)
    requirements: Sequence[str] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    def runtime_env(self, working_dir: str) -> dict[str, Any]:
        """Ray's runtime environment. A stopped job gets half a minute to end in order; Ray's own default is 3 s."""
        env: dict[str, Any] = {
            "working_dir": working_dir,
            "env_vars": {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": "30", **self.env},
        }
        return env | ({"pip": list(self.requirements)} if self.requirements else {})

    def to_json(self) -> str:
        """For `--dry-run`: everything that would be sent, values of variables left out."""
        env = self.runtime_env("(the files)")
        env["env_vars"] = sorted(env["env_vars"])
        sent = {"submission_id": self.submission_id, "entrypoint": self.entrypoint, "runtime_env": env}
        return json.dumps({**sent, "metadata": dict(self.metadata), "files": list(self.parcel.files)}, indent=2)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended: `status` as Ray calls it, `exit_status` for whoever waited for it."""

    status: str
    exit_status: int
    message: str


def order(
    inputs: Sequence[str],
    out: str,
    config: Config,
    parcel: Parcel,
    *,
    limit: int | None = None,
    arguments: Sequence[str] = (),
    submission_id: str | None = None,
    python: str = "python",
    env: Mapping[str, str] | None = None,
    requirements: Sequence[str] = (),
) -> Order:
    """A job on these inputs. `arguments`: options of `sam-amg run` that change nothing of what it makes.

    `python`: the head's interpreter. As a module of it the package is found wherever it was installed, or sent.
    """
    words = [python, "-m", "amg", "run", "--out", out, "--config", SETTINGS_FILE, *arguments]
    words += ["--limit", str(limit)] if limit else []
    return Order(
        submission_id or job_id(inputs, out, config, limit),
        shlex.join([*words, "--", *inputs]),
        parcel.with_settings(to_yaml(config)),
        env or {},
        requirements,
        {"sam_amg.version": __version__, "sam_amg.out": out},
    )


def job_id(inputs: Sequence[str], out: str, config: Config, limit: int | None = None) -> str:
    """The same for the same inputs, output and masks; how many workers do it, and where, does not matter."""
    weights = said_digest(config.model.weights) or config.model.weights
    depends_on = masks_depend_on(config, weights_digest=weights, masks=MASK_REVISION)
    text = json.dumps([list(inputs), out, limit, depends_on], sort_keys=True, separators=(",", ":"))
    return f"sam-amg-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def connect(address: str) -> JobSubmissionClient:
    """The job API of a cluster's head. ConfigError for what is no such address, ClusterError where nobody answers."""
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"--address {address}: wanted the address of the head's dashboard, which takes jobs, such as"
            " http://10.0.0.1:8265"
        )
    _show_token()
    from ray.job_submission import JobSubmissionClient

    for talkative in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    with _explicit_address(), _as_cluster_error(address):
        return JobSubmissionClient(address, headers=_headers())


def start(
    client: JobSubmissionClient, order: Order, *, address: str, patience_seconds: float = START_SECONDS
) -> tuple[str, bool]:
    """The id of the job that does it, and whether this call started it: one that still lives is taken as it is.

    One that has ended, however, is started anew as `ID-2`, `ID-3`, ...: it does what is missing. A head that is about
    to be ready is waited for.
    """
    with _as_cluster_error(address), tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "job.zip"
        order.parcel.write(packed)
        deadline = time.monotonic() + patience_seconds
        while True:
            starts = _starts(client, order.submission_id)
            living = [number for number, has_ended in starts.items() if not has_ended]
            if living:
                return _nth(order.submission_id, max(living)), False
            try:
                return _submit(client, order, _nth(order.submission_id, max(starts, default=0) + 1), packed), True
            except RuntimeError as error:
                if not any(reason in str(error) for reason in _PASSING) or time.monotonic() > deadline:
                    raise
            time.sleep(1.0)


def follow(
    client: JobSubmissionClient,
    name: str,
    *,
    address: str,
    echo: Callable[[str], None],
    patience_seconds: float = PATIENCE_SECONDS,
) -> Ended:
    """Hand on the job's log as it comes, until the job has ended. A connection that breaks is made again.

    ClusterError when the cluster has not been reached for `patience_seconds`; the job may go on.
    """
    log, heard, pause = _Log(echo), time.monotonic(), 0.5
    while True:
        try:
            asyncio.run(log.tail(client, name))
            ended = _ended(client, name)
            if ended:
                return ended
            heard, pause = time.monotonic(), 0.5
        except (RuntimeError, OSError) as error:
            if isinstance(error, RuntimeError) and "does not exist" in str(error):
                raise ClusterError(f"{address} does not know {name} any more; was its head restarted?") from error
            if time.monotonic() - heard > patience_seconds:
                raise ClusterError(
                    f"{address} has not answered for {patience_seconds:.0f} s ({error}); {name} may go on: the same"
                    " command finds it"
                ) from error
        time.sleep(pause)
        pause = min(2 * pause, 15.0)


def come_back(name: str, address: str, command: Sequence[str]) -> str:
    """What to type later, for a person who leaves a job alone."""
    at = shlex.join(["--address", address])
    ray = "RAY_AUTH_MODE=token ray" if os.environ.get(_AUTH_MODE) == "token" else "ray"
    return (
        f"{name} goes on without this terminal\n"
        f"  come back:  {shlex.join(command)}\n"
        f"  its log:    {ray} job logs {name} --follow {at}\n"
        f"  stop it:    {ray} job stop {name} {at}"
    )


@dataclass(slots=True)
class _Log:
    """The job's log, of which `seen` characters were handed on: every new connection tells it from the beginning."""

    echo: Callable[[str], None]
    seen: int = 0

    async def tail(self, client: JobSubmissionClient, name: str) -> None:
        from aiohttp import ClientError

        told = 0
        try:
            async for text in client.tail_job_logs(name):
                fresh = text[max(0, self.seen - told) :]
                told += len(text)
                if fresh:
                    self.seen = told
                    self.echo(fresh)
        except ClientError as error:
            raise ConnectionError(str(error) or type(error).__name__) from error


def _starts(client: JobSubmissionClient, name: str) -> dict[int, bool]:
    """Whether it has ended, for every start of a job that the cluster remembers, by its number from 1."""
    found: dict[int, bool] = {}
    for details in client.list_jobs():
        base, _, number = (details.submission_id or "").rpartition("-")
        if details.submission_id == name:
            found[1] = details.status.is_terminal()
        elif base == name and number.isdecimal():
            found[int(number)] = details.status.is_terminal()
    return found


def _nth(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _submit(client: JobSubmissionClient, order: Order, name: str, packed: Path) -> str:
    return client.submit_job(
        entrypoint=order.entrypoint,
        submission_id=name,
        runtime_env=order.runtime_env(str(packed)),
        metadata=dict(order.metadata),
    )


def _ended(client: JobSubmissionClient, name: str) -> Ended | None:
    """How the job ended, None while it has not. Ray's message is for what is not in the log: that it never ran."""
    details = client.get_job_info(name)
    status, code = details.status.value, details.driver_exit_code
    if not details.status.is_terminal():
        return None
    exit_status = {"SUCCEEDED": 0, "STOPPED": INTERRUPTED}.get(status, code if code and code > 0 else 1)
    return Ended(status, exit_status, details.message or "" if status == "FAILED" and code is None else "")


def _headers() -> dict[str, str]:
    """What `ray job` sends along too, for heads behind a proxy that wants to know who asks."""
    said = os.environ.get("RAY_JOB_HEADERS", "{}")
    try:
        return dict(json.loads(said))
    except ValueError as error:
        raise ConfigError(f"RAY_JOB_HEADERS is {said!r}, wanted a JSON object of names and values") from error


def _show_token() -> None:
    """Send the token of this machine where it has one: as `ray.init` does, but Ray's job client does not by itself.

    Ray reads the variable when it is imported.
    """
    said = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if said or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault(_AUTH_MODE, "token")


@contextmanager
def _explicit_address() -> Iterator[None]:
    """Ray takes these variables before the address that it is given; ours was chosen."""
    hidden = {name: os.environ.pop(name) for name in _OVERRULES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextmanager
def _as_cluster_error(address: str) -> Iterator[None]:
    """Ray's client raises OSError (requests' too) where nobody answers, and several others where the head refuses."""
    from ray.exceptions import RayError

    try:
        yield
    except OSError as error:
        raise ClusterError(
            f"{address} cannot be reached: {_one_line(error)}; wanted the dashboard of a Ray head (`ray start --head`"
            " prints its address; on Kubernetes: kubectl port-forward service/NAME-head-svc 8265)"
        ) from error
    except (RuntimeError, ValueError, RayError) as error:
        raise ClusterError(f"{address} does not take the job: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
