"""What all that serves shares: signals that end it, work in threads beside it, and how its API is announced."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

from orchestrator.state.store import JobStore
from orchestrator.webhooks.delivery import private_allowed
from orchestrator.webhooks.dispatcher import Dispatcher
from orchestrator.webhooks.sentences import dashboard_url
from services.server import ApiServer
from services.settings import Listen, credentials_path
from services.terminal import fail, say

log = logging.getLogger(__name__)


class StopSignals:
    """SIGINT and SIGTERM as an event; `on_second` is called for each further one. For the main thread."""

    def __init__(self) -> None:
        self.received = threading.Event()
        self.on_second: Callable[[], None] = lambda: None

    @contextmanager
    def handled(self, *, interrupt: bool = False) -> Iterator[None]:
        """With `interrupt` the first one also raises KeyboardInterrupt, for a main thread that is busy."""

        def handle(_number: int, _frame: FrameType | None) -> None:
            if self.received.is_set():
                self.on_second()
                return
            self.received.set()
            if interrupt:
                raise KeyboardInterrupt

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Turning(Protocol):
    """What works in a thread of its own until it is told to stop."""

    def run(self) -> None: ...

    def request_stop(self) -> None: ...


@contextmanager
def running(work: Turning) -> Iterator[None]:
    thread = threading.Thread(target=work.run, name=type(work).__name__.lower())
    thread.start()
    try:
        yield
    finally:
        work.request_stop()
        thread.join()


def dispatching(store: JobStore) -> AbstractContextManager[None]:
    """Webhooks are told in a thread beside the worker; a delivery under way is waited for, some seconds at most."""
    try:
        dashboard_url()
    except ValueError as error:
        fail(str(error))
    return running(Dispatcher(store, allow_private=private_allowed()))


def announce(api: ApiServer, state_dir: Path, new_key: str | None, *, key_file: Path | None = None) -> None:
    """Where it is and how to get in. The key is shown once, when it is made. `key_file`: of one that we do not keep."""
    say(f"Equipoise listens on {api.url}")
    if api.dashboard() is not None:
        say(f"the dashboard: {api.url}/ in a browser, signed in with a key")
    if new_key is not None:
        say(f"its key, shown this once: {new_key}")
    if key_file is None:
        say(f"commands on this machine find both in {credentials_path(state_dir)}")
    else:
        say(f"its key is the one in {key_file}")
    if api.proxies:
        say(f"{', '.join(api.proxies)} is believed about where requests come from; let nobody else reach this port")
    elif api.is_exposed and api.tls is None:
        log.warning("%s is open to other machines, without encryption", api.host)
        say(_EXPOSED.format(host=api.host))


_EXPOSED = """\
WARNING: {host} is open to other machines, and nothing is encrypted.
WARNING: Keys, prompts and results can be read, and altered, by whoever is on the way; with the server's key anyone can
WARNING: run jobs here and write files as you. Choose one:
WARNING:   --tls-cert FILE --tls-key FILE    encrypt here
WARNING:   --behind-proxy ADDRESS            a proxy in front encrypts, and nothing else reaches this port
WARNING:   no --host                         stay on this machine"""


def api_server(listen: Listen) -> ApiServer:
    """Raises ServerError."""
    return ApiServer(listen.host, listen.port, tls=listen.tls, proxies=listen.proxies)
