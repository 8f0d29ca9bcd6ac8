"""A stand-in for the Kubernetes API server, as far as RayJobs go: not a real one, which no registry of ours has.

It keeps what the API promises (API concepts): versions that rise with every change, 409 for a name that is taken,
watches from a version on with bookmarks, 410 for a version that is forgotten, 404 and 403; and it refuses RayJobs that
KubeRay's own schema does not take. KubeRay's part, which sets a RayJob's status, is the test's.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]
_BASE = "/apis/ray.io/v1/namespaces/equipoise"


class ApiServer:
    """Its state; `url` is where it is served while `serving` is open."""

    def __init__(self, check: Callable[[Object], None]) -> None:
        self._check = check
        self._changed = threading.Condition()
        self.jobs: dict[str, Object] = {}
        self.clusters: dict[str, Object] = {}
        self.created: list[Object] = []
        self.calls: list[tuple[str, str]] = []  # verb and resource, as RBAC has them
        self.version = 100
        self.oldest = 0  # a watch from before it is Gone
        self.events: list[tuple[int, str, Object]] = []
        self.lose_replies = 0  # to creations, which are carried out all the same
        self.forbid: set[str] = set()
        self.url = ""
        self.stopped = False

    def set_status(self, name: str, **status: Any) -> None:
        """As KubeRay does."""
        with self._changed:
            self.jobs[name] = {**self.jobs[name], "status": {**self.jobs[name].get("status", {}), **status}}
            self._note("MODIFIED", self.jobs[name])

    def remove(self, name: str) -> None:
        with self._changed:
            self._note("DELETED", self.jobs.pop(name))

    def forget_history(self) -> None:
        """As after a compaction: every open watch ends, and none may begin where it was."""
        with self._changed:
            self.version += 1
            self.oldest = self.version
            self.events.clear()
            self._changed.notify_all()

    def _note(self, kind: str, item: Object) -> None:
        self.version += 1
        item["metadata"] = {**item["metadata"], "resourceVersion": str(self.version)}
        self.events.append((self.version, kind, json.loads(json.dumps(item))))
        self._changed.notify_all()

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Object | None) -> tuple[int, Object]:
        resource, _, name = path.removeprefix(f"{_BASE}/").partition("/")
        verb = {"POST": "create", "DELETE": "delete"}.get(method, "get" if name else "list")
        self.calls.append((verb, resource))
        if verb in self.forbid:
            return _status(403, "Forbidden", f"{resource} is forbidden: cannot {verb}")
        with self._changed:
            known = self.jobs if resource == "rayjobs" else self.clusters
            if verb == "create":
                return self._create(body or {})
            if verb == "list":
                found = [item for item in known.values() if _matches(item, query)]
                return 200, {"items": found, "metadata": {"resourceVersion": str(self.version)}}
            if name not in known:
                return _status(404, "NotFound", f'{resource} "{name}" not found')
            if verb == "delete":
                self._note("DELETED", known.pop(name))
                return _status(200, "Success", "")
            return 200, known[name]

    def _create(self, item: Object) -> tuple[int, Object]:
        name = item["metadata"]["name"]
        if name in self.jobs:
            return _status(409, "AlreadyExists", f'rayjobs.ray.io "{name}" already exists')
        try:
            self._check(item)
        except Exception as error:
            return _status(422, "Invalid", str(error).splitlines()[0])
        self.created.append(json.loads(json.dumps(item)))
        self.jobs[name] = item
        self._note("ADDED", item)
        return 201, item

    def changes(self, query: dict[str, list[str]], until: float) -> Iterator[Object]:
        """Those after the version that is asked for, and of those that come."""
        seen = int(query["resourceVersion"][0])
        self.calls.append(("watch", "rayjobs"))
        while time.monotonic() < until and not self.stopped:
            with self._changed:
                if seen < self.oldest:
                    code, told = _status(410, "Expired", f"too old resource version: {seen} ({self.oldest})")
                    yield {"type": "ERROR", "object": {**told, "code": code}}
                    return
                fresh = [event for event in self.events if event[0] > seen and _matches(event[2], query)]
                if not fresh:
                    self._changed.wait(0.05)
                    continue
            for version, kind, item in fresh:
                seen = version
                yield {"type": kind, "object": item}
            bookmark = {"kind": "RayJob", "metadata": {"resourceVersion": str(seen)}}
            yield {"type": "BOOKMARK", "object": bookmark}


def _matches(item: Object, query: dict[str, list[str]]) -> bool:
    wanted = dict(part.split("=") for part in query.get("labelSelector", []))
    return wanted.items() <= item["metadata"].get("labels", {}).items()


def _status(code: int, reason: str, message: str) -> tuple[int, Object]:
    return code, {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": message}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: ApiServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        query = parse_qs(asked.query)
        if query.get("watch", ["false"])[0].lower() == "true":
            self._watch(query)
        else:
            self._reply(*self.state.answer("GET", asked.path, query, None))

    def do_DELETE(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self._reply(*self.state.answer("DELETE", urlsplit(self.path).path, {}, None))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        found = self.state.answer("POST", urlsplit(self.path).path, {}, body)
        if self.state.lose_replies:
            self.state.lose_replies -= 1
            self.close_connection = True
            self.connection.close()
            return
        self._reply(*found)

    def _reply(self, code: int, document: Object) -> None:
        text = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _watch(self, query: dict[str, list[str]]) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json;stream=watch")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            for change in self.state.changes(query, time.monotonic() + float(query["timeoutSeconds"][0])):
                line = json.dumps(change).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
            self.close_connection = self.state.stopped
        except OSError:  # the client went away
            self.close_connection = True


@contextmanager
def serving(state: ApiServer, port: int = 0) -> Iterator[ApiServer]:
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url, state.stopped = f"http://127.0.0.1:{server.server_port}", False
    try:
        yield state
    finally:
        state.stopped = True
        server.shutdown()
        server.server_close()
        thread.join()
