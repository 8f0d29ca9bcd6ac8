"""Whom a judge asks: profiles that the operator keeps in a YAML file, named by EQUIPOISE_JUDGES.

    judges:
      strict:
        base_url: https://judges.example.com/v1
        model: judge-70b
        api_key_file: /run/secrets/judge-key

A spec names a profile and nothing else: no address, no key and no model comes from it. Keys are read from their files
where the judge is called, and stand in no spec, no environment and no message.
"""

from __future__ import annotations

import json
import os
import re
import ssl
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from rewards.addresses import check_url

VARIABLE = "EQUIPOISE_JUDGES"
MAX_RESPONSE_BYTES = 1 << 20
NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"
_MAX_FILE_BYTES = 1 << 20
_MAX_SECRET_BYTES = 16 << 10
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")
_OURS = frozenset({"host", "content-length", "content-type", "content-encoding", "transfer-encoding", "connection"})


class ProfileError(ValueError):
    """A profile that is not there or can't be used; the text names no address and no file."""


class ProfileFileError(ProfileError):
    """`detail` says more, for the operator alone."""

    def __init__(self, message: str, detail: str) -> None:
        super().__init__(message)
        self.args = (message, detail)
        self.detail = detail

    def __str__(self) -> str:
        return str(self.args[0])


class Profile(BaseModel):
    """One endpoint, how hard it may be pressed, and what it costs."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    base_url: str = Field(description="of the API, up to and with its version: https://judges.example.com/v1")
    model: str = Field(min_length=1, max_length=512, description="as the endpoint calls it")
    api_key_file: Path | None = Field(None, description="holds the key, which is sent as a bearer token")
    header_files: dict[str, Path] = Field(default_factory=dict, description="further headers: name to file")
    ca_file: Path | None = Field(None, description="certificates in PEM that vouch for the endpoint")
    allow_private: bool = Field(
        False, description="http, any port, and addresses of this machine and network; else https to public ones alone"
    )
    max_concurrency: Annotated[int, Field(ge=1, le=1024, description="calls at once, of each reward actor")] = 16
    requests_per_minute: Annotated[
        int | None, Field(ge=1, le=1_000_000, description="of each reward actor; without a limit if absent")
    ] = None
    timeout_s: Annotated[float, Field(gt=0, le=600, description="of one call, seconds")] = 30.0
    deadline_s: Annotated[float, Field(gt=0, le=3600, description="of a batch with all its retries, seconds")] = 55.0
    attempts: Annotated[int, Field(ge=1, le=10, description="at a call that fails on the other side or on the way")] = 4
    backoff_s: Annotated[float, Field(gt=0, le=60, description="first wait after a failure, doubled each time")] = 0.5
    breaker_failures: Annotated[
        int, Field(ge=1, le=10_000, description="failures in a row after which nothing is asked for breaker_s")
    ] = 16
    breaker_s: Annotated[float, Field(gt=0, le=600, description="seconds")] = 15.0
    max_response_bytes: Annotated[int, Field(ge=1024, le=MAX_RESPONSE_BYTES)] = MAX_RESPONSE_BYTES
    structured_output: bool = Field(True, description="ask for a JSON schema; dropped where the endpoint refuses it")
    extra_body: dict[str, JsonValue] = Field(
        default_factory=dict, description="further fields of every request; null takes one away that we would send"
    )
    price_per_million_input_tokens: Annotated[float, Field(ge=0)] = 0.0
    price_per_million_output_tokens: Annotated[float, Field(ge=0)] = 0.0
    cache_entries: Annotated[int, Field(ge=0, le=10_000_000, description="answers kept in memory")] = 10_000
    cache_file: Path | None = Field(None, description="SQLite file that keeps answers from job to job, by hash alone")

    @field_validator("header_files")
    @classmethod
    def _headers_are_theirs(cls, value: dict[str, Path]) -> dict[str, Path]:
        for name in value:
            if not _HEADER.fullmatch(name) or name.lower() in _OURS:
                raise ValueError("expected names of headers other than those that every request has")
        return value

    @field_validator("api_key_file", "ca_file", "cache_file", "header_files")
    @classmethod
    def _absolute(cls, value: Any) -> Any:
        for path in value.values() if isinstance(value, dict) else [value]:
            if path is not None and not path.is_absolute():
                raise ValueError("expected an absolute path")
        return value

    @model_validator(mode="after")
    def _may_be_called(self) -> Self:
        try:
            parts = check_url(self.base_url, allow_private=self.allow_private)
        except ValueError as error:
            raise ValueError(f"base_url: {error} (allow_private opens what is inside)") from None
        if parts.query:
            raise ValueError("base_url: expected no query")
        if self.api_key_file is not None and "authorization" in map(str.lower, self.header_files):
            raise ValueError("header_files: api_key_file is sent as authorization already")
        return self

    @property
    def url(self) -> str:
        """Of chat completions."""
        return self.base_url.rstrip("/") + "/chat/completions"

    def tls(self) -> ssl.SSLContext:
        """Whom it trusts. ProfileFileError names the field."""
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:  # an SSLError is one
            raise unusable("ca_file", error.strerror or "it holds no certificate") from None

    def headers(self) -> dict[str, SecretStr]:
        """What is read from files. ProfileFileError names the field."""
        found = {name: _secret(f"header_files.{name}", path) for name, path in self.header_files.items()}
        if self.api_key_file is not None:
            key = _secret("api_key_file", self.api_key_file)
            found["authorization"] = SecretStr(f"Bearer {key.get_secret_value()}")
        return found


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    judges: dict[Annotated[str, Field(pattern=NAME)], Profile]


def load(environment: Mapping[str, str] = os.environ) -> dict[str, Profile]:
    """Every profile by name; none where EQUIPOISE_JUDGES is not set. Raises ProfileFileError."""
    name = environment.get(VARIABLE)
    if not name:
        return {}
    try:
        with Path(name).expanduser().open("rb") as file:
            document = yaml.safe_load(file.read(_MAX_FILE_BYTES))
        return _File.model_validate_json(json.dumps(document)).judges
    except OSError as error:
        raise _broken(error.strerror or "it can't be read") from None
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)
        raise _broken("; ".join(_problem(each) for each in found)) from None
    except (yaml.YAMLError, TypeError, ValueError, RecursionError):  # parsers repeat what they could not read
        raise _broken("not a YAML mapping `judges:` of names to profiles") from None


def find(name: str, environment: Mapping[str, str] = os.environ) -> Profile:
    """The profile of that name. Raises ProfileError, which names those that there are."""
    known = load(environment)
    if name in known:
        return known[name]
    if not known:
        raise ProfileError(f"this installation has no judges; its operator names a file of profiles by {VARIABLE}")
    nearest = get_close_matches(name, known, n=1)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    raise ProfileError(f"no such profile; {hint}there are {', '.join(sorted(known))}")


def problem(name: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Why the profile can't be used here, in words that its user may read; None where it can."""
    try:
        profile = find(name, environment)
        profile.headers()
        profile.tls()
    except ProfileError as error:
        return str(error)
    return None


def _broken(detail: str) -> ProfileFileError:
    message = "this installation's judges can't be read; its operator finds the reason with `equipoise judges`"
    return ProfileFileError(message, f"{VARIABLE}: {detail}")


def _problem(error: Mapping[str, Any]) -> str:
    path = ".".join(str(part) for part in error["loc"])
    return f"{path}: {error['msg'].removeprefix('Value error, ')}"


def _secret(field: str, path: Path) -> SecretStr:
    """What the file holds, without the line's end."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise unusable(field, error.strerror or "it can't be read") from None
    text = content.decode("latin-1").strip("\r\n \t")
    if not text or len(content) > _MAX_SECRET_BYTES or not (text.isascii() and text.isprintable()):
        raise unusable(field, "expected one line of printable ASCII")
    return SecretStr(text)


def unusable(field: str, why: str) -> ProfileFileError:
    return ProfileFileError(f"the profile's {field} can't be used: its operator must see to it", f"{field}: {why}")


def names(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Of every profile, sorted. Raises ProfileFileError."""
    return sorted(load(environment))
