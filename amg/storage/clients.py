"""Connections to object stores, with credentials and endpoint from the environment as the stores' own tools know them.

obstore reads the variables of the environment itself. Beside it, for S3, keys and region are taken from the profile
in `~/.aws`, where the environment names no keys.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amg.storage.object_url import WEB
from amg.storage.retries import Retries

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_PREFIXES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
_CLIENT_OPTIONS = {"ALLOW_HTTP": True, "ALLOW_INVALID_CERTIFICATES": True, "PROXY_URL": "", "PROXY_CA_CERTIFICATE": ""}
_OTHER_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
_FROM_PROFILE = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "region", "endpoint_url")
_LONGEST_ANSWER = timedelta(hours=6)  # of a large object on a slow line; a line that is dead ends by the read timeout


def connect(scheme: str, bucket: str, retries: Retries, *, upload_seconds: float | None = None) -> ObjectStore:
    """A client for one bucket. Opens no connection yet.

    With `upload_seconds` one for requests that may take so long in all, else one for requests whose answer must begin,
    and go on, within `retries.answer_seconds`.
    """
    from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store

    answer = timedelta(seconds=retries.answer_seconds)
    times: dict[str, Any] = {"timeout": _LONGEST_ANSWER, "read_timeout": answer}
    if upload_seconds is not None:
        times = {"timeout": timedelta(seconds=upload_seconds)}
    settings: dict[str, Any] = {
        "client_options": {"connect_timeout": min(answer, timedelta(seconds=10)), **times, **_client_options(scheme)},
        "retry_config": {
            "max_retries": 10,
            "retry_timeout": timedelta(seconds=retries.total_seconds),
            "backoff": {
                "init_backoff": timedelta(seconds=retries.first_pause_seconds),
                "max_backoff": timedelta(seconds=retries.longest_pause_seconds),
                "base": 2,
            },
        },
    }
    if scheme in WEB:
        return HTTPStore.from_url(f"{scheme}://{bucket}", **settings)
    if scheme == "gs":
        return GCSStore(bucket, **settings)
    if scheme == "az":
        return AzureStore(bucket, **settings)
    return S3Store(bucket, config=_profile(), **settings)  # type: ignore[arg-type]


def _client_options(scheme: str) -> dict[str, Any]:
    """What the environment says of connections: obstore forgets it when it is given any option."""
    if scheme in WEB:
        return {"allow_http": scheme == "http"}
    prefix = _PREFIXES[scheme]
    options: dict[str, Any] = {}
    for name, kind in _CLIENT_OPTIONS.items():
        value = os.environ.get(prefix + name)
        if value:
            options[name.lower()] = value.lower() in ("1", "true", "yes", "on") if kind is True else value
    endpoints = (f"{prefix}ENDPOINT_URL_S3", f"{prefix}ENDPOINT_URL", f"{prefix}ENDPOINT", f"{prefix}STORAGE_ENDPOINT")
    if any(os.environ.get(name, "").startswith("http://") for name in endpoints):
        options.setdefault("allow_http", True)  # who writes http:// means it
    return options


def _profile() -> Mapping[str, str]:
    """Keys, region and endpoint of the AWS profile, where the environment does not have them."""
    named = {name for name in _FROM_PROFILE if os.environ.get(_in_environment(name))}
    if os.environ.get("AWS_DEFAULT_REGION"):
        named.add("region")
    if any(os.environ.get(name) for name in _OTHER_KEYS):
        named |= set(_FROM_PROFILE[:3])
    found = _read_profile(os.environ.get("AWS_PROFILE") or "default")
    return {name: found[name] for name in _FROM_PROFILE if name in found and name not in named}


def _in_environment(name: str) -> str:
    return name.upper() if name.startswith("aws_") else f"AWS_{name.upper()}"


def _read_profile(profile: str) -> Mapping[str, str]:
    files = {"AWS_CONFIG_FILE": "config", "AWS_SHARED_CREDENTIALS_FILE": "credentials"}  # the later one wins
    values: dict[str, str] = {}
    for variable, name in files.items():
        parser = configparser.RawConfigParser()
        try:
            parser.read(os.environ.get(variable) or Path.home() / ".aws" / name, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError, RuntimeError):
            continue
        for section in (profile, f"profile {profile}"):
            if parser.has_section(section):
                values |= dict(parser.items(section))
    return values
