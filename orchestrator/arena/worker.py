"""A process that makes one run after another with what it keeps warm.

    python -m orchestrator.arena.worker --state-dir DIR --scratch DIR --threads N

Reads a request per line, {"task", "spec", "policy_seed"}, and answers with a line: {"figures": ...}, {"failed": reason}
or {"stop": reason} where no other run would fare better, as on a full disk. Ends with its input: whoever asked is gone.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from orchestrator.actors.threads import WAITING

os.environ.update(WAITING | os.environ)  # before torch is loaded; what is set stays
Json = dict[str, Any]
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
log = logging.getLogger("equipoise.arena")


class Maker:
    """Makes runs, and starts its processes anew after one that failed: nothing of it may touch the next."""

    def __init__(self, state_dir: Path, scratch: Path, threads: int) -> None:
        from orchestrator.arena.warm import Workshop

        self.state_dir = state_dir
        self.scratch = scratch
        self.threads = threads
        self.workshop = Workshop(state_dir)

    def make(self, request: Mapping[str, Any]) -> Json:
        """The answer to a request."""
        try:
            return {"figures": self._run(request)}
        except Exception as error:  # whatever it was, the run has failed by it
            log.error("%s", traceback.format_exc())
            self.workshop.close()
            reason = str(error) or type(error).__name__
            return {"stop": reason} if is_disk_full(error) else {"failed": reason}
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _run(self, request: Mapping[str, Any]) -> Json:
        from orchestrator.arena.run import run_job
        from orchestrator.arena.tasks import TASKS
        from orchestrator.inputs import resolve_model
        from orchestrator.spec import parse_spec
        from policies.quickstart import Recipe, ensure_policy

        recipe = TASKS[request["task"]].recipe if request["task"] in TASKS else Recipe()
        threads = self.threads
        own = {"device": "cpu", "learner_threads": threads, "engine_threads": threads}
        spec = parse_spec({**request["spec"], "resources": request["spec"].get("resources", {}) | own})
        if spec.policy.model == "quickstart" and spec.init_checkpoint is None:
            policies, seed = self.state_dir / "policies", request["policy_seed"]
            model = str(ensure_policy(policies, seed=seed, show_progress=False, recipe=recipe))
        else:
            model = resolve_model(spec, self.state_dir)
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        parts = self.workshop.parts(spec, model)
        return run_job(spec, parts, self.scratch, self.workshop.initial(spec, model))


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a disk that takes nothing more is behind it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__
    return False


def serve(maker: Maker, requests: TextIO, answers: TextIO) -> None:
    """Until there are no more requests."""
    for line in requests:
        print(json.dumps(maker.make(json.loads(line)), allow_nan=False), file=answers, flush=True)


def _end_without(parent: int) -> None:
    """A parent that was killed says nothing: without this, a run would go on beside those of the next arena."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.arena.worker", description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True, help="where policies and prompts are kept")
    parser.add_argument("--scratch", type=Path, required=True, help="a folder for the checkpoints of the run under way")
    parser.add_argument("--threads", type=int, required=True, help="of the learner and of the engine, which take turns")
    options = parser.parse_args()
    threading.Thread(target=_end_without, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    maker = Maker(options.state_dir, options.scratch, options.threads)
    try:
        serve(maker, sys.stdin, answers)
    finally:
        maker.workshop.close()


if __name__ == "__main__":
    main()
