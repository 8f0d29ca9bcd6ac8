"""Every test, in two runs of pytest side by side: the unit tests, and all others, which often leave a core idle.

    python -m tests.lanes [PYTEST'S OPTIONS]

The unit tests yield to the others, some of which wait for real servers with a limit, and to the workers of Ray, which
yield themselves. Their output comes at the end.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent
NO_TESTS = 5  # pytest's exit status where the options leave none of a run's


def main(options: list[str]) -> int:
    units = str(TESTS / "unit")
    pytest = [sys.executable, "-m", "pytest"]
    with tempfile.TemporaryFile("w+") as output:
        beside = subprocess.Popen(
            ["nice", "-n", "19", *pytest, units, "-o", "cache_dir=.pytest_cache/unit", *options],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )
        try:
            status = subprocess.call([*pytest, str(TESTS), f"--ignore={units}", *options])
            statuses = {status, beside.wait()}
        finally:
            beside.kill()
            beside.wait()
        output.seek(0)
        sys.stdout.write(output.read())
    failed = statuses - {0, NO_TESTS}
    return max(failed) if failed else min(statuses)  # NO_TESTS only where neither had any


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
