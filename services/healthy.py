"""Whether the process of a container is well: what the images' HEALTHCHECK asks (Kubernetes has probes of its own).

    python -m services.healthy

By the words that process 1 was started with: servers answer /livez, workers and keepers of scripts touch a file, a Ray
node answers for itself. Of anything else nothing is known, and it is taken to be well.
"""

from __future__ import annotations

import os
import ssl
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

DEFAULT_PORT = 8740  # services.settings', which takes a second to import
ALIVE_VARIABLE = "EQUIPOISE_ALIVE_FILE"
OLDEST_S = 120.0
_TIMEOUT_S = 3.0
_RAY_NODE = "http://127.0.0.1:52365/api/local_raylet_healthz"


def problem(words: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """What is wrong with a process of this command line, if anything is."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if {"worker", "scripts"} & set(words):
        return _unless_touched(environment.get(ALIVE_VARIABLE))
    if {"serve", "up"} & set(words):
        speaks_tls = "--tls-cert" in words or bool(environment.get("EQUIPOISE_TLS_CERT"))
        port = words[words.index("--port") + 1] if "--port" in words[:-1] else DEFAULT_PORT
        return _unless_answered(f"{'https' if speaks_tls else 'http'}://127.0.0.1:{port}/livez")
    if {"ray", "start"} <= {Path(word).name for word in words}:
        return _unless_answered(_RAY_NODE)
    return None


def _unless_touched(file: str | None) -> str | None:
    if not file:
        return f"{ALIVE_VARIABLE} names no file that it would touch"
    try:
        age_s = time.time() - Path(file).stat().st_mtime
    except OSError as error:
        return f"{file}: {error.strerror}"
    return None if age_s <= OLDEST_S else f"{file} was touched {age_s:.0f} s ago"


def _unless_answered(url: str) -> str | None:
    context = ssl.create_default_context()
    context.check_hostname = False  # the certificate is another name's, and nobody is between
    context.verify_mode = ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S, context=context):
            return None
    except OSError as error:
        return f"{url}: {error}"


if __name__ == "__main__":
    command = Path("/proc/1/cmdline").read_bytes().decode("utf-8", "replace")
    if found := problem(command.rstrip("\0").split("\0"), os.environ):
        sys.exit(found)
