"""What is deployed: objects and render time, images' layers and sizes, a cold start, a takeover, and a sizing table.

    python -m tests.benchmarks.deploy [PART ...]

Parts: objects, images (installs the control plane's lock into an empty folder: needs a package index or uv's cache),
ready (`serve` from its start to /readyz), takeover (a worker is killed, the next one starts at once, as a kubelet has
it: until the next job is claimed on a real Ray), sizing (the memory estimator on published shapes). No image is built
here: layers are the Dockerfile's own, and sizes those of what is installed.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from orchestrator.checks.layout import GIB, Layout, Machine
from orchestrator.spec import parse_spec
from policies.sizes import Dimensions, ModelSize
from services.client import Client
from tests.benchmarks.machine import machine
from tests.deploy_local import ROOT, Installation
from tests.deploy_support import DEPLOY, OVERLAYS, Rendered, prepare, render, wait_for
from tests.support import make_policy, small_spec

Figures = dict[str, Any]
RESULTS = Path(__file__).parent / "results" / "deploy.json"
REPEATS = 5
# Published configurations: layers, hidden, query, key and value, feed-forward, vocabulary, tied embeddings.
MODELS = {
    "0.5 B": (24, 896, 896, 128, 4864, 151_936, True),
    "1.5 B": (28, 1536, 1536, 256, 8960, 151_936, True),
    "4 B": (36, 2560, 4096, 1024, 9728, 151_936, True),
    "8 B": (36, 4096, 4096, 1024, 12_288, 151_936, False),
}


def measure_objects(directory: Path) -> Figures:
    """Objects of each overlay, and how long they take to render."""
    tree = prepare(directory)
    found: Figures = {}
    for overlay in OVERLAYS:
        took = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            objects = render(tree, overlay)
            took.append(time.perf_counter() - began)
        found[overlay] = {"objects": len(objects), "render_s": round(median(took), 3)}
    return {"overlays": found}


def measure_images(directory: Path) -> Figures:
    """What control holds, in MB as installed and slimmed; layers by the Dockerfile."""
    site = directory / "site-packages"
    uv = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--no-deps", "--link-mode", "copy"]
    lock = ROOT / "requirements" / "control.txt"
    subprocess.run([*uv, "--target", str(site), "--requirement", str(lock)], check=True)
    subprocess.run([DEPLOY / "slim.sh", str(directory)], check=True)
    ours = sum(_bytes(ROOT / name) for name in ("services", "orchestrator", "policies", "rewards"))
    here = _bytes(Path(sys.executable).parents[1] / "lib")
    text = (DEPLOY / "Dockerfile").read_text()
    return {
        "control_plane_mb": round((_bytes(site) + ours) / 1e6),
        "control_packages": len([line for line in lock.read_text().splitlines() if "==" in line]),
        "trainer_cpu_mb": round((here + ours) / 1e6),
        "layers_of_ours": {name: _layers(text, name) for name in ("control", "trainer-cpu", "trainer")},
    }


def _bytes(directory: Path) -> int:
    files = (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files if "__pycache__" not in path.parts)


def _layers(text: str, name: str) -> int:
    """Instructions that write files, of a stage and of those it is made from."""
    stages = {
        found[2]: (found[1], found[3]) for found in re.finditer(r"(?ms)^FROM (\S+) AS (\S+)$(.*?)(?=^FROM |\Z)", text)
    }
    base, steps = stages[name]
    own = len(re.findall(r"(?m)^(?:RUN|COPY|ADD|WORKDIR) ", steps))
    return own + (_layers(text, base) if base in stages else 0)


@contextmanager
def installation(directory: Path) -> Iterator[Installation]:
    tree = prepare(directory)
    with Installation(Rendered(render(tree, "kind")), directory / "place", tree / "secrets" / "files").open() as place:
        place.start("scripts")
        yield place


def _is_ready(place: Installation) -> bool:
    try:
        return httpx.get(f"{place.url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def measure_ready(directory: Path) -> Figures:
    """Seconds from the start of `serve` to a 200 of /readyz; Redis and its scripts are there."""
    took = []
    with installation(directory) as place:
        for _ in range(REPEATS):
            began = time.perf_counter()
            place.start("serve")
            wait_for(lambda: _is_ready(place), 60)
            took.append(time.perf_counter() - began)
            place.stop("serve")
    return {"ready_s": round(median(took), 2), "ready_s_all": [round(value, 2) for value in took]}


def measure_takeover(directory: Path) -> Figures:
    """Seconds from a worker's SIGKILL to the claim of a job that was queued at that moment, on Ray."""
    took = []
    with installation(directory) as place:
        place.start_ray()
        place.start("serve")
        place.start_worker()
        wait_for(lambda: _is_ready(place), 60)
        policy = make_policy(directory / "policy")
        spec = small_spec(policy, steps=1).model_dump(mode="json", exclude_unset=True)
        with Client(place.url, (place.secrets / "api-key").read_text().strip()) as client:
            _claimed(client, client.submit(spec)["id"])  # Ray has answered once
            for _ in range(3):
                place.stop("worker", signal.SIGKILL)
                began = time.perf_counter()
                job_id = client.submit(spec)["id"]
                place.start_worker()
                wait_for(lambda job_id=job_id: client.job(job_id)["status"] != "queued", 120)  # type: ignore[misc]
                took.append(time.perf_counter() - began)
                _claimed(client, job_id)
    return {"takeover_s": round(max(took), 2), "takeover_s_all": [round(value, 2) for value in took]}


def _claimed(client: Client, job_id: str) -> None:
    wait_for(lambda: client.job(job_id)["status"] != "queued", 120)
    client.cancel(job_id)
    wait_for(lambda: client.job(job_id)["status"] == "cancelled", 120)


def measure_sizing(_: Path) -> Figures:
    """GiB of one learner and of an engine's weights, and the fewest ranks that fit, by the dry run's estimator."""
    document = {
        "name": "sizing",
        "steps": 1,
        "policy": {"model": "some/model", "max_model_len": 4096, "dtype": "bfloat16"},
        "data": {"type": "files", "train": "a", "validation": "b"},
        "objectives": [
            {"name": "accuracy", "reward": {"name": "math"}},
            {"name": "conciseness", "reward": {"name": "conciseness"}},
        ],
        "rollout": {"max_tokens": 2048, "gpu_memory_utilization": 0.9},
        "optimizer": {"tokens_per_microbatch": 4096},
        "resources": {"device": "cuda"},
    }
    rows = {}
    for name, shape in MODELS.items():
        size = _model(*shape)
        row: Figures = {"parameters": size.parameters}
        for gpu_gib in (80.0, 141.0):
            for ranks in (1, 2, 4, 8):
                spec = parse_spec(document | {"resources": {"device": "cuda", "learner_ranks": ranks}})
                layout = Layout(spec=spec, size=size, device="cuda", machine=Machine(gpu_gib=gpu_gib))
                for process in layout.processes if ranks == 1 else ():
                    # Of an engine its weights: what is left of its share goes to the cache.
                    needed = process.parts["weights"] if process.name == "engine" else process.bytes
                    row[f"{process.name}_gib"] = round(needed / GIB, 1)
                if not list(layout.misfits()):
                    row[f"ranks_{gpu_gib:.0f}"] = ranks
                    break
        rows[name] = row
    return {"sizing": rows}


def _model(layers: int, hidden: int, query: int, key_value: int, inner: int, words: int, tied: bool) -> ModelSize:
    block: dict[str, tuple[int, ...]] = {
        "q": (query, hidden), "k": (key_value, hidden), "v": (key_value, hidden), "o": (hidden, query),
        "gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner),
        "before": (hidden,), "after": (hidden,),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (words, hidden), "norm": (hidden,)}
    shapes |= {f"layers.{layer}.{name}": shape for layer in range(layers) for name, shape in block.items()}
    if not tied:
        shapes["lm_head.weight"] = (words, hidden)
    dimensions = Dimensions(
        layers=layers,
        hidden=hidden,
        query=query,
        key_value=key_value,
        intermediate=inner,
        vocabulary=words,
        normed_heads=False,
    )
    return ModelSize(shapes=shapes, dimensions=dimensions, context=32_768)


PARTS: dict[str, Callable[[Path], Figures]] = {
    "objects": measure_objects,
    "images": measure_images,
    "ready": measure_ready,
    "takeover": measure_takeover,
    "sizing": measure_sizing,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.deploy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all when absent")
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]}; parts are {', '.join(PARTS)}")
    results: Figures = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in options.parts or PARTS:
        print(f"== {name}: {PARTS[name].__doc__}", flush=True)
        with tempfile.TemporaryDirectory(prefix="equipoise-") as directory:
            found = PARTS[name](Path(directory))
        for key, value in found.items():
            print(f"{key:24} {value}")
        results |= found | {"machine": machine()}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
