"""A scripted judge on a real socket, and a canary that must not be called."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

Script = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a scripted hang outlives its test
    request_queue_size = 256

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is what several tests are about."""


class ScriptedJudge:
    """Answers with `script`, or with the next of `scripts` while there are some; keeps what it was sent."""

    def __init__(self, script: Script, certificate: tuple[Path, Path] | None = None) -> None:
        self.script = script
        self.scripts: list[Script] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        self.names: list[str | None] = []  # that TLS asked for
        self.busy = self.busiest = 0
        self._lock = threading.Lock()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "null")
                with judge._lock:
                    judge.busy += 1
                    judge.busiest = max(judge.busiest, judge.busy)
                    judge.bodies.append(body)
                    judge.headers.append({name.lower(): value for name, value in self.headers.items()})
                    judge.paths.append(self.path)
                    judge.times.append(time.monotonic())
                    script = judge.scripts.pop(0) if judge.scripts else judge.script
                try:
                    script(self, body)
                finally:
                    with judge._lock:
                        judge.busy -= 1

            do_GET = do_PUT = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            context.sni_callback = lambda _socket, name, _context: self.names.append(name)
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{self.port}/v1"

    @property
    def asked(self) -> list[str]:
        """What its users' messages were."""
        return [body["messages"][-1]["content"] for body in self.bodies]


@contextmanager
def serving(script: Script, certificate: tuple[Path, Path] | None = None) -> Iterator[ScriptedJudge]:
    judge = ScriptedJudge(script, certificate)
    thread = threading.Thread(target=judge.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield judge
    finally:
        judge.server.shutdown()
        thread.join()
        judge.server.server_close()


def reply(handler: BaseHTTPRequestHandler, status: int, content: bytes | str | Any, **headers: str) -> None:
    """A whole answer; what is neither bytes nor text is sent as JSON."""
    body = content if isinstance(content, bytes) else content.encode() if isinstance(content, str) else None
    body = json.dumps(content).encode() if body is None else body
    handler.send_response(status)
    for name, value in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def completion(
    text: str | None, prompt_tokens: Any = 100, completion_tokens: Any = 10, finish_reason: str = "stop"
) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}


def says(text: str | Callable[[dict[str, Any]], str | None] | None, **how: Any) -> Script:
    """The model's own words, which may depend on the request; `how` are arguments of `completion`."""

    def script(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        reply(handler, 200, completion(text(body) if callable(text) else text, **how))

    return script


def answers(status: int, content: Any = "", **headers: str) -> Script:
    return lambda handler, _: reply(handler, status, content, **headers)


def hangs(seconds: float) -> Script:
    return lambda _handler, _body: time.sleep(seconds)


def write_profiles(folder: Path, **profiles: dict[str, Any]) -> Path:
    """The operator's file, with waits of milliseconds where a profile says nothing else."""
    quick = {"backoff_s": 0.01, "timeout_s": 5.0, "deadline_s": 20.0, "model": "judge-1"}
    file = folder / "judges.yaml"
    document = {"judges": {name: {**quick, **profile} for name, profile in profiles.items()}}
    file.write_text(yaml.safe_dump(document, allow_unicode=True))
    return file
