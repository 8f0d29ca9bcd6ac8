"""NiceGUI as one ASGI app with our pages. Imported when the first page is asked for, as it takes a second to import."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fastapi import FastAPI

# Where NiceGUI would keep what its storage holds; we keep nothing there.
os.environ.setdefault("NICEGUI_STORAGE_PATH", str(Path(tempfile.gettempdir()) / "equipoise-nicegui"))

from nicegui import app as nicegui_app
from nicegui import core, ui

from services.dashboard import compare, job, jobs, submit

RECONNECT_S = 12.0  # a page whose connection was gone for longer is loaded anew
_attached = False


def create_shell() -> FastAPI:
    """An app whose lifespan is NiceGUI's. One in a process, as NiceGUI is one; a second is an error."""
    global _attached
    if _attached:
        raise RuntimeError("this process serves a dashboard already")
    _attached = True
    shell = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    for path, page in (
        ("/", jobs.page),
        ("/submit", submit.page),
        ("/compare", compare.page),
        ("/jobs/{job_id}", job.page),
    ):
        ui.page(path, response_timeout=20)(page)
    nicegui_app.config.socket_io_js_transports = ["websocket"]
    nicegui_app.config.quasar_config["brand"] = {"primary": "#4453c4", "positive": "#1f7a55", "negative": "#b3372b"}
    nicegui_app.config.quasar_config["loadingBar"] = {"color": "primary", "skipHijack": True}  # we show what loads
    ui.run_with(
        shell,
        title="Equipoise",
        favicon=Path(__file__).parent / "static" / "mark.svg",
        dark=None,
        language="en-US",
        tailwind=False,
        binding_refresh_interval=None,
        reconnect_timeout=RECONNECT_S,
        gzip_middleware_factory=None,  # the gate puts nonces into pages, which it could not in compressed ones
        show_welcome_message=False,
    )
    core.sio.eio.cors_allowed_origins = None  # same origin only, as the gate has it
    core.sio.eio.max_http_buffer_size = 1 << 20
    return shell
