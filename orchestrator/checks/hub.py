"""How large a model on the hub is, from its config and the headers of its weights: kilobytes, no weights.

What is asked goes to the hub alone, under this process's own HF_TOKEN, and never where HF_HUB_OFFLINE is set.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from policies.models import ModelError
from policies.sizes import ModelSize, size_from

ANSWER_S = 8.0  # for all that is asked of one model
_LOOKS = threading.BoundedSemaphore(4)  # at once: each may outlast who waits for it
_MOST_CONFIG = 1 << 20


def hub_size(hub_id: str, revision: str | None) -> ModelSize:
    """Raises ModelError where the hub does not tell; its message says what the hub said, in words of ours."""
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        raise ModelError("the model is not on this machine, and HF_HUB_OFFLINE is set")
    return _asked(hub_id, revision)


@lru_cache(maxsize=256)
def _asked(hub_id: str, revision: str | None) -> ModelSize:
    """Kept, as a form asks at each look; a branch that moves on changes its size rarely."""
    return _in_time(lambda: _look(hub_id, revision))


def _look(hub_id: str, revision: str | None) -> ModelSize:
    from huggingface_hub import get_safetensors_metadata, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, NotASafetensorsRepoError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # this is a server
    try:
        with tempfile.TemporaryDirectory(prefix="equipoise-") as folder:  # a cache with a part looks like the whole
            file = Path(hf_hub_download(hub_id, "config.json", revision=revision, local_dir=folder))
            config = json.loads(file.read_bytes()[:_MOST_CONFIG])
        found = get_safetensors_metadata(hub_id, revision=revision, timeout=ANSWER_S)
    except NotASafetensorsRepoError:
        raise ModelError("the model has no safetensors on the hub, and nothing else is loaded") from None
    except EntryNotFoundError:
        raise ModelError("the model has no config.json on the hub") from None
    if not isinstance(config, dict):
        raise ModelError("the model's config.json is not a JSON object")
    if "auto_map" in config:
        raise ModelError("the model wants to run code of its own (auto_map in config.json), which is never allowed")
    tensors = [pair for file in found.files_metadata.values() for pair in file.tensors.items()]
    return size_from(config, {name: tuple(map(int, tensor.shape)) for name, tensor in tensors})


def _in_time(look: Callable[[], ModelSize]) -> ModelSize:
    """What it gives within ANSWER_S. A thread of its own: the hub's client tries again, with waits of its own."""
    if not _LOOKS.acquire(blocking=False):
        raise ModelError("the hub is being asked for other models; ask again")
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(look())
        except Exception as error:  # whatever the hub, its client or a stranger's header raises: no estimate, no harm
            answer.append(error)
        finally:
            _LOOKS.release()

    thread = threading.Thread(target=ask, name="hub-size", daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    match answer:
        case [ModelSize() as size]:
            return size
        case [Exception() as error]:
            raise ModelError(_reason(error)) from None
        case _:
            raise ModelError(f"the hub did not say within {ANSWER_S:g} s how large the model is")


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    match error:
        case ModelError():
            return str(error)
        case GatedRepoError():
            return "the hub keeps the model for those who accepted its terms; set HF_TOKEN where jobs run, and here"
        case RepositoryNotFoundError():
            return "the hub knows no such model, or keeps it private; check its id, or set HF_TOKEN"
        case RevisionNotFoundError():
            return "the hub knows no such revision of the model"
    return f"the hub could not be asked how large the model is ({type(error).__name__})"
