"""What an installation is told from outside: environment variables, and one file that tells clients how to get in."""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.checks.layout import DEFAULT_GPU_GIB
from orchestrator.state.keys import OWN_OWNER
from orchestrator.storage.checkpoint_store import STORE_VARIABLE
from orchestrator.storage.remote import RemoteError, open_filesystem
from services.keys import new_key

DEFAULT_PORT = 8740
MAX_BODY_BYTES = 1 << 20


class Limits(BaseModel):
    """What keys and owners may ask of the installation; 0 is no limit."""

    model_config = ConfigDict(frozen=True)

    writes_per_minute: int = Field(600, ge=0)  # of one key
    active_jobs: int = Field(100, ge=0)  # that wait or run, of one owner
    active_jobs_local: int = Field(0, ge=0)  # the same for the installation's own owner
    running_jobs: int = Field(0, ge=0)  # that a driver holds, of one owner; workers leave the others waiting
    running_jobs_local: int = Field(0, ge=0)  # the same for the installation's own owner
    kept_jobs: int = Field(10_000, ge=0)  # of one owner, ended ones too: 14 KB each before its first step
    kept_jobs_local: int = Field(0, ge=0)  # the same for the installation's own owner
    kept_bytes: int = Field(256 << 20, ge=0)  # of one owner's jobs in Redis' memory, steering too
    kept_bytes_local: int = Field(0, ge=0)  # the same for the installation's own owner
    streams: int = Field(600, ge=0)  # of events that are open at once, of one owner
    datasets: int = Field(1000, ge=0)  # of one owner
    dataset_bytes: int = Field(256 << 20, ge=0)  # of one upload
    data_roots: tuple[Path, ...] | None = None  # where specs may read; None: anywhere for the own owner, else nowhere
    data_urls: tuple[str, ...] = ()  # what is below them may be data of specs; no other URL may
    model_roots: tuple[Path, ...] = ()  # whose directories are policies that may be aligned

    def most_running(self, owner: str) -> int | None:
        """Jobs of an owner that may have a driver; None is any number."""
        return (self.running_jobs_local if owner == OWN_OWNER else self.running_jobs) or None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """EQUIPOISE_MAX_... for each number; EQUIPOISE_DATA_ROOTS and EQUIPOISE_MODEL_ROOTS, paths with os.pathsep.

        EQUIPOISE_DATA_URLS with spaces. ValueError names the variable.
        """
        given: dict[str, Any] = {}
        for field in ("data_roots", "model_roots"):
            if text := environment.get(name := f"EQUIPOISE_{field.upper()}"):
                given[field] = _directories(name, text)
        given["data_urls"] = tuple(environment.get("EQUIPOISE_DATA_URLS", "").split())
        for url in given["data_urls"]:
            _check_url("EQUIPOISE_DATA_URLS", url)
        for field in cls.model_fields.keys() - {"data_roots", "data_urls", "model_roots"}:
            name = f"EQUIPOISE_MAX_{field.upper()}"
            if text := environment.get(name):
                if not (text.isascii() and text.isdigit() and len(text) <= 9):
                    raise ValueError(f"{name}: expected a whole number, 0 for no limit")
                given[field] = int(text)
        return cls(**given)


def _directories(name: str, text: str) -> tuple[Path, ...]:
    paths = tuple(Path(part).expanduser() for part in text.split(os.pathsep) if part)
    if not all(path.is_absolute() for path in paths):
        raise ValueError(f"{name}: expected absolute paths, with '{os.pathsep}' between them")
    return paths


def secret(name: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """What the variable holds, else what the file holds that NAME_FILE names. ValueError where it can't be read."""
    if text := environment.get(name):
        return text
    if not (file := environment.get(f"{name}_FILE")):
        return None
    try:
        text = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}_FILE: {file}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
    if not text:
        raise ValueError(f"{name}_FILE: {file} is empty")
    return text


class Dashboard(BaseModel):
    """Pages for a browser. `hosts`: names under which they are asked for; None is any."""

    model_config = ConfigDict(frozen=True)

    hosts: tuple[str, ...] | None = None

    @classmethod
    def from_environment(cls, *, is_local: bool, environment: Mapping[str, str] = os.environ) -> Self | None:
        """EQUIPOISE_DASHBOARD=0 is none; EQUIPOISE_DASHBOARD_HOSTS are names with commas.

        `is_local`: nobody but this machine reaches the server, so only its own names are right: another name that
        leads here is somebody's DNS that was turned on us.
        """
        chosen = environment.get("EQUIPOISE_DASHBOARD", "1")
        if chosen not in ("0", "1"):
            raise ValueError("EQUIPOISE_DASHBOARD: expected 1 or 0")
        if chosen == "0":
            return None
        names = [name.strip().lower() for name in environment.get("EQUIPOISE_DASHBOARD_HOSTS", "").split(",")]
        hosts = tuple(name for name in names if name)
        return cls(hosts=hosts or (("localhost", "127.0.0.1", "[::1]") if is_local else None))


class Settings(BaseModel):
    """Of the API process."""

    model_config = ConfigDict(frozen=True)

    state_dir: Path
    key_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    follow_key_file: bool = False  # take another key when the state directory's api.json has one
    key_file: Path | None = None  # holds the key; another one there is taken
    metrics_key_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")  # of a key for GET /metrics alone
    keyless_probes: bool = False  # GET /readyz answers who shows no key
    local_exports: bool = False  # the API may write to directories that its caller names
    max_body_bytes: int = MAX_BODY_BYTES
    poll_s: float = 0.5  # of the event stream
    limits: Limits = Limits()
    dashboard: Dashboard | None = None  # None: the API alone
    checkpoint_store: str | None = None  # an fsspec URL; None: checkpoints lie in the state directory alone
    gpu_gib: float = DEFAULT_GPU_GIB  # of a GPU that jobs get, for estimates
    memory_gib: float | None = None  # of the machine that a job on CPU gets


def checkpoint_store(environment: Mapping[str, str] = os.environ) -> str | None:
    """EQUIPOISE_CHECKPOINT_STORE. Raises ValueError where this machine can't open it, with what to install."""
    url = environment.get(STORE_VARIABLE)
    if not url:
        return None
    _check_url(STORE_VARIABLE, url)
    return url


def gpu_gib(environment: Mapping[str, str] = os.environ) -> float:
    """EQUIPOISE_GPU_GIB. Raises ValueError for what is no size."""
    return _gib("EQUIPOISE_GPU_GIB", "of a GPU in GiB, such as 80", environment) or DEFAULT_GPU_GIB


def memory_gib(environment: Mapping[str, str] = os.environ) -> float | None:
    """EQUIPOISE_MEMORY_GIB. Raises ValueError for what is no size."""
    return _gib("EQUIPOISE_MEMORY_GIB", "of a machine that runs jobs in GiB, such as 256", environment)


def _gib(name: str, expected: str, environment: Mapping[str, str]) -> float | None:
    text = environment.get(name)
    if not text:
        return None
    if not re.fullmatch(r"\d{1,5}(\.\d{1,3})?", text, re.ASCII) or float(text) < 1:
        raise ValueError(f"{name}: expected the memory {expected}")
    return float(text)


def _check_url(name: str, url: str) -> None:
    try:
        open_filesystem(url)
    except RemoteError as error:
        raise ValueError(f"{name}: {error}") from None


class Tls(BaseModel):
    """Files in PEM; the certificate's may hold the key too, and those that vouch for it."""

    model_config = ConfigDict(frozen=True)

    cert: Path
    key: Path | None = None


class Listen(BaseModel):
    """Where a server is reached. `proxies` are addresses and networks whose X-Forwarded-For and -Proto are believed."""

    model_config = ConfigDict(frozen=True)

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    tls: Tls | None = None
    proxies: tuple[str, ...] = ()

    @classmethod
    def chosen(cls, host: str, port: int, *, tls_cert: Path | None, tls_key: Path | None, proxies: str) -> Self:
        """From the options of commands; `proxies` with commas between them. ValueError names the option."""
        if tls_key is not None and tls_cert is None:
            raise ValueError("--tls-key needs --tls-cert")
        tls = None
        if tls_cert is not None:
            files = (path and path.expanduser().absolute() for path in (tls_cert, tls_key))
            tls = Tls(**dict(zip(("cert", "key"), files, strict=True)))
        trusted = tuple(part.strip() for part in proxies.split(",") if part.strip())
        for address in trusted:
            try:
                ipaddress.ip_network(address)
            except ValueError:
                raise ValueError(
                    f"--behind-proxy: '{address}' is no address and no network such as 10.0.0.0/8"
                ) from None
        return cls(host=host, port=port, tls=tls, proxies=trusted)


class Credentials(BaseModel):
    """Where a server listens, and the key that it takes: STATE/api.json, readable by its owner alone."""

    model_config = ConfigDict(frozen=True)

    url: str
    key: str
    ca_file: Path | None = None  # the certificate that the server shows, where it speaks TLS


def default_state_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """EQUIPOISE_STATE_DIR, else where XDG keeps state."""
    if chosen := environment.get("EQUIPOISE_STATE_DIR"):
        return Path(chosen).expanduser()
    base = environment.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "equipoise"


def credentials_path(state_dir: Path) -> Path:
    return state_dir / "api.json"


def read_credentials(state_dir: Path) -> Credentials | None:
    """None where no server was ever started on this state directory."""
    try:
        return Credentials.model_validate_json(credentials_path(state_dir).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise ValueError(f"{credentials_path(state_dir)} is damaged; delete it and start the server again") from None


def write_credentials(
    state_dir: Path, url: str, key: str | None = None, *, ca_file: Path | None = None
) -> tuple[Credentials, bool]:
    """Keeps the key of earlier starts, or makes one. Returns it and whether it is new."""
    known = read_credentials(state_dir)
    chosen = key or (known.key if known else new_key())
    credentials = Credentials(url=url, key=chosen, ca_file=ca_file)
    path = credentials_path(state_dir)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(credentials.model_dump(mode="json", exclude_none=True), file)
        file.write("\n")
    draft.replace(path)
    return credentials, known is None or known.key != chosen
