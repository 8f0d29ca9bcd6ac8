"""What the images' HEALTHCHECK finds of the process that a container runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from services import healthy, settings
from services.healthy import problem
from tests.ports import free_port


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path in ("/livez", "/ray") else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["serve", "up"])
def test_a_server_answers(name: str, port: int) -> None:
    words = ["/opt/equipoise/bin/python", "/opt/equipoise/bin/equipoise", name, "--port"]
    assert problem([*words, str(port)], {}) is None
    assert problem([*words[:-1], f"--port={port}"], {}) is None
    away = free_port()
    assert f"http://127.0.0.1:{away}/livez" in str(problem([*words, str(away)], {}))
    for tls in (({}, ["--tls-cert", "x.pem"]), ({}, ["--tls-cert=x.pem"]), ({"EQUIPOISE_TLS_CERT": "x.pem"}, [])):
        assert str(problem([*words, str(away), *tls[1]], tls[0])).startswith(f"https://127.0.0.1:{away}/livez: ")
    assert healthy.DEFAULT_PORT == settings.DEFAULT_PORT


@pytest.mark.parametrize("name", ["worker", "scripts"])
def test_what_serves_nobody_touches_a_file(name: str, tmp_path: Path) -> None:
    words, file = ["python", "equipoise", name], tmp_path / "alive"
    environment = {"EQUIPOISE_ALIVE_FILE": str(file)}
    assert "No such file" in str(problem(words, environment))
    file.touch()
    assert problem(words, environment) is None
    os.utime(file, (time.time() - 300,) * 2)
    assert "300 s ago" in str(problem(words, environment))
    assert "names no file" in str(problem(words, {}))


def test_a_ray_node_answers_for_itself_and_nothing_is_known_of_others(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healthy, "_RAY_NODE", f"http://127.0.0.1:{port}/ray")
    node = ["/opt/equipoise/bin/python", "/opt/equipoise/bin/ray", "start", "--block"]
    assert problem(node, {}) is None
    monkeypatch.setattr(healthy, "_RAY_NODE", f"http://127.0.0.1:{free_port()}/ray")
    assert problem(node, {}) is not None
    for words in (["python", "ray", "--version"], ["bash"], ["python", "equipoise", "demo"]):
        assert problem(words, {}) is None
