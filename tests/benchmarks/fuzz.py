"""Requests that schemathesis makes from the OpenAPI document, sent to a server process on a real Redis.

    pip install 'equipoise[fuzz]'
    python -m tests.benchmarks.fuzz [--cases 10000] [--seed 0]

Half of the cases are walks: an operation follows another's answer along the document's links. The other half asks each
operation alone, as documented and against it. What is wholly random is hardly ever accepted, so most bodies of the
richer kinds are valid but for one generated field, half of the ids of jobs are those of jobs in three states, and half
of the requests have no headers of their own. No answer may be a 5xx, or a status that the document does not name for
its operation, and every answer of 400 and above has the error body. The first tenth only warms the server up before
its memory is read. Rates and quotas are off, and nothing is exported. The last line is the figures as JSON, which
tests/benchmarks/results/fuzz.json keeps; whatever broke a rule is printed, once for each operation and status.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from tests.benchmarks.api import KEY, serving, submit, world
from tests.benchmarks.machine import machine
from tests.integration.test_fuzz import CHANGE, FORK, NEW_KEY, NEW_WEBHOOK, SPEC, train

RESULTS = Path(__file__).parent / "results" / "fuzz.json"
TARGETS = {"errors_5xx": 0, "undocumented_statuses": 0, "bad_error_bodies": 0, "rss_growth_mb": 50}
WALK_STEPS = 12
VALID: dict[str, dict[str, Any]] = {
    "POST /v1/jobs": SPEC,
    "PUT /v1/jobs/{job_id}/steering": CHANGE,
    "POST /v1/jobs/{job_id}/steering/preview": CHANGE,
    "POST /v1/jobs/{job_id}/fork": FORK,
    "POST /v1/keys": NEW_KEY,
    "POST /v1/webhooks": NEW_WEBHOOK,
}
_ERROR_FIELDS = {"type", "code", "message", "param"}


@dataclass
class Tally:
    """What came back, by operation and status."""

    documented: dict[str, set[int]]
    server: psutil.Process
    warm_up: int
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    shown: set[tuple[str, str, int]] = field(default_factory=set)
    cases: int = 0
    rss_before: int = 0

    def add(self, label: str, answer: Any) -> None:
        status = answer.status_code
        self.cases += 1
        self.statuses[label, status] += 1
        if self.cases == self.warm_up:
            self.rss_before = self.server.memory_info().rss
        if status >= 500:
            self._fault("errors_5xx", label, answer)
        if status not in self.documented[label]:
            self._fault("undocumented_statuses", label, answer)
        if status >= 400 and not _is_error(answer.content):
            self._fault("bad_error_bodies", label, answer)

    def _fault(self, kind: str, label: str, answer: Any) -> None:
        self.faults[kind] += 1
        if (kind, label, answer.status_code) not in self.shown:
            self.shown.add((kind, label, answer.status_code))
            asked = answer.request
            print(f"{kind}: {asked.method} {asked.url} {str(asked.body)[:500]!r}", file=sys.stderr)
            print(f"    {answer.status_code} {answer.content[:500]!r}", file=sys.stderr)


def _is_error(content: bytes) -> bool:
    try:
        document = json.loads(content)
        return document.keys() == {"error"} and document["error"].keys() == _ERROR_FIELDS
    except (ValueError, AttributeError, KeyError, TypeError):
        return False


def fuzz(cases: int, start: int) -> dict[str, Any]:
    """The figures of so many cases. Raises ImportError without schemathesis."""
    import schemathesis
    from schemathesis import GenerationMode

    with world() as (store, redis_url, directory), serving("api", redis_url, directory) as (port, pid):
        url, headers = f"http://127.0.0.1:{port}", {"authorization": f"Bearer {KEY}"}
        document = requests.get(f"{url}/openapi.json", headers=headers, timeout=60).json()
        del document["security"], document["components"]["securitySchemes"]  # else most cases try other keys
        schema = schemathesis.openapi.from_dict(document)
        operations = [found.ok() for found in schema.get_all_operations()]
        documented = {
            f"{method.upper()} {path}": {int(status) for status in operation["responses"]}
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        }
        tally = Tally(documented, psutil.Process(pid), cases // 10)
        began = time.perf_counter()
        chance = random.Random(start)
        jobs = submit(store, 3, SPEC)
        train(store, directory, jobs[0])  # its objectives are those of VALID
        store.request_cancel(jobs[2])
        with requests.Session() as session:
            # A preview imports torch, which is no leak.
            previewed = session.post(
                f"{url}/v1/jobs/{jobs[0]}/steering/preview", json=CHANGE, headers=headers, timeout=60
            )
            assert previewed.status_code == 200, previewed.text

            def ask(case: Any) -> Any:
                if "job_id" in case.path_parameters and chance.random() < 0.5:
                    case.path_parameters["job_id"] = chance.choice(jobs)
                if chance.random() < 0.5:
                    case.headers.clear()
                valid = VALID.get(case.operation.label)
                if valid is not None and isinstance(case.body, dict) and chance.random() < 0.8:
                    name = chance.choice([*sorted(case.body), *valid])
                    case.body = valid | ({name: case.body[name]} if name in case.body else {})
                answer = case.call(base_url=url, session=session, headers=headers, timeout=60)
                tally.add(case.operation.label, answer)
                return answer

            class Walk(schema.as_state_machine()):  # type: ignore[misc]
                def call(self, case: Any, **_: Any) -> Any:
                    return ask(case)

                def validate_response(self, *_: Any, **__: Any) -> None:
                    pass  # the tally does

            rules = {
                "deadline": None, "database": None, "suppress_health_check": list(HealthCheck),
                "phases": [Phase.generate],
            }  # fmt: skip
            number = start
            while tally.cases < cases // 2:
                # One at a time: within a run hypothesis wants equal draws answered alike, and a server has a state.
                seed(number)(Walk)
                Walk.run(settings=settings(max_examples=1, stateful_step_count=WALK_STEPS, **rules))
                number += 1
            walked = tally.cases
            while tally.cases < cases:
                share = max(1, (cases - tally.cases) // len(operations))
                for operation in operations:
                    modes = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]
                    alone = settings(max_examples=share, **rules)(given(st.one_of(modes))(ask_only(ask)))
                    seed(number)(alone)()
                number += 1
        return {
            "cases": tally.cases,
            "walked": walked,
            "operations": len(operations),
            "succeeded": sum(count for (_, status), count in tally.statuses.items() if status < 400),
            **{name: tally.faults[name] for name in list(TARGETS)[:3]},
            "rss_growth_mb": round((tally.server.memory_info().rss - tally.rss_before) / 2**20, 1),
            "seconds": round(time.perf_counter() - began, 1),
            "statuses": dict(sorted(Counter(str(status) for _, status in tally.statuses.elements()).items())),
            "never_succeeded": sorted(set(documented) - {label for label, status in tally.statuses if status < 400}),
        }


def ask_only(ask: Any) -> Any:
    def test(case: Any) -> None:
        ask(case)

    return test


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=10_000, help="requests in all, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # schemathesis's advice on schemas
    figures = {**fuzz(options.cases, options.seed), "seed": options.seed, "machine": machine()}
    table = Table("figure", "value", "target")
    for name, value in figures.items():
        if isinstance(value, int | float):
            table.add_row(name, f"{value:g}", f"<= {TARGETS[name]}" if name in TARGETS else "")
    Console().print(table)
    options.results.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))
    return int(any(figures[name] > target for name, target in TARGETS.items()))


if __name__ == "__main__":
    sys.exit(main())
