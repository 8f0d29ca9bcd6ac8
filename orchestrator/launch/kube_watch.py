"""RayJobs as the API server last told of them: a list, and then every change, kept in a thread of its own.

Kubernetes' own contract (API concepts, "Efficient detection of changes"): list, watch from the list's version on, and
list again when that version is gone (410).
"""

from __future__ import annotations

import logging
import threading
import time
from http import HTTPStatus
from typing import Any

import urllib3
from kubernetes import watch
from kubernetes.client import ApiException, CustomObjectsApi

log = logging.getLogger(__name__)

RAY_JOBS = ("ray.io", "v1")
PLURAL = "rayjobs"
_WATCH_S = 60  # then it is asked for anew, from where it was


class RayJobWatch:
    """What `selector` takes, by name.

    consumes: the API server's list and its changes.
    waits for: nothing; a server that is away is asked again after a second.
    unblocked by: `stop`, and the process's end, as the thread is a daemon.
    """

    def __init__(self, api: CustomObjectsApi, namespace: str, selector: str) -> None:
        self._api = api
        self._namespace = namespace
        self._selector = selector
        self._pause_s = 1.0
        self._lock = threading.Lock()
        self._known: dict[str, Any] = {}
        self._version = ""
        self._problem: str | None = "it was not asked yet"
        self._listed = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._stream = watch.Watch()

    @property
    def problem(self) -> str | None:
        """Why what is known may be old; None while changes arrive."""
        return self._problem

    def start(self, timeout_s: float) -> None:
        """Begins, the first time, and waits for the first list."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="rayjobs", daemon=True)
            self._thread.start()
        self._listed.wait(timeout_s)

    def stop(self) -> None:
        self._stopping.set()
        self._stream.stop()

    def get(self, name: str) -> Any | None:
        with self._lock:
            return self._known.get(name)

    def all(self) -> list[Any]:
        with self._lock:
            return list(self._known.values())

    def _run(self) -> None:
        listed = False
        while not self._stopping.is_set():
            try:
                if not listed:
                    self._list()
                    listed = True
                began = time.monotonic()
                self._follow()
                if time.monotonic() - began < self._pause_s:  # a server that ends watches at once is not pressed
                    self._stopping.wait(self._pause_s)
            except ApiException as error:
                listed = False
                if error.status == HTTPStatus.GONE:
                    continue  # what changed since then is known no more
                self._note(f"{error.status} {error.reason}")
            except (urllib3.exceptions.HTTPError, OSError) as error:
                listed = False
                self._note(str(error) or type(error).__name__)

    def _list(self) -> None:
        found: Any = self._api.list_namespaced_custom_object(
            *RAY_JOBS, self._namespace, PLURAL, label_selector=self._selector, _request_timeout=(5, 30)
        )
        with self._lock:
            self._known = {item["metadata"]["name"]: item for item in found["items"]}
            self._version = found["metadata"]["resourceVersion"]
        self._problem = None
        self._listed.set()

    def _follow(self) -> None:
        changes = self._stream.stream(
            self._api.list_namespaced_custom_object,
            *RAY_JOBS,
            self._namespace,
            PLURAL,
            label_selector=self._selector,
            resource_version=self._version,
            allow_watch_bookmarks=True,
            timeout_seconds=_WATCH_S,
            _request_timeout=(5, _WATCH_S + 30),
        )
        for change in changes:
            item = change["raw_object"]
            with self._lock:
                self._version = item["metadata"]["resourceVersion"]
                if change["type"] == "DELETED":
                    self._known.pop(item["metadata"]["name"], None)
                elif change["type"] != "BOOKMARK":
                    self._known[item["metadata"]["name"]] = item

    def _note(self, problem: str) -> None:
        if self._problem is None:
            log.warning("the watch on RayJobs ended: %s; trying again", problem)
        self._problem = problem
        self._stopping.wait(self._pause_s)
