"""The dashboard costs nothing until a page is asked for."""

from __future__ import annotations

import subprocess
import sys


def test_neither_the_command_line_nor_the_api_imports_nicegui() -> None:
    code = "import sys, services.app, services.server, services.cli, services.dashboard.gate\n"
    code += "print([name for name in ('nicegui', 'socketio', 'torch', 'ray') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
