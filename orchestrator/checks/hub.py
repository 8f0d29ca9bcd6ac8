"""How large a model on the hub is, from its config and the headers of its weights: kilobytes, no weights.

What is asked goes to the hub alone, under this process's own HF_TOKEN or none, and never where HF_HUB_OFFLINE is set.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from policies.models import ModelError, check_trainable
from policies.sizes import ModelSize, size_from

ANSWER_S = 8.0  # for all that is asked of one model
CONNECT_S = 3.0  # for its first answer
KEPT_S = 60.0  # what the hub refused is not asked again before
_LOOKS = threading.BoundedSemaphore(4)  # at once: each may outlast who waits for it
_MOST_BYTES = {"config.json": 1 << 20, "model.safetensors.index.json": 16 << 20}  # whose files they are is unknown
_MOST_SHARDS = 256
_MOST_TENSORS = 1 << 20
_MOST_REFUSED = 1024
_Token = Literal[False] | None  # as the hub's client takes it: none, or its own
_EVERY_MODEL = ("", None, None)
_refused: dict[tuple[str, str | None, _Token], tuple[float, str]] = {}  # until when (monotonic), and why


class _Away(ModelError):
    """The hub can't be reached, whatever the model."""


class _Busy(ModelError):
    """Not asked at all."""


def hub_size(hub_id: str, revision: str | None, *, token: bool = True) -> ModelSize:
    """Raises ModelError where the hub does not tell; its message says what the hub said, in words of ours.

    Without `token`, only what everybody may know.
    """
    from huggingface_hub import is_offline_mode

    if is_offline_mode():
        raise ModelError("the model is not on this machine, and HF_HUB_OFFLINE is set")
    return _asked(hub_id, revision, None if token else False)


def _asked(hub_id: str, revision: str | None, token: _Token) -> ModelSize:
    """Kept, as a form asks at each look: a size for good (branches change theirs rarely), a refusal for KEPT_S."""
    for key in (_EVERY_MODEL, (hub_id, revision, token)):
        until, message = _refused.get(key, (0.0, ""))
        if time.monotonic() < until:
            raise ModelError(message)
    try:
        return _found(hub_id, revision, token)
    except _Busy:
        raise
    except ModelError as error:
        if len(_refused) >= _MOST_REFUSED:
            _refused.clear()
        key = _EVERY_MODEL if isinstance(error, _Away) else (hub_id, revision, token)
        _refused[key] = time.monotonic() + KEPT_S, str(error)
        raise


@lru_cache(maxsize=256)
def _found(hub_id: str, revision: str | None, token: _Token) -> ModelSize:
    return _in_time(lambda: _look(hub_id, revision, token))


def _look(hub_id: str, revision: str | None, token: _Token) -> ModelSize:
    from huggingface_hub.errors import EntryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    until = time.monotonic() + ANSWER_S
    disable_progress_bars()  # this is a server
    try:
        config, commit = _document(hub_id, revision, "config.json", token)
    except EntryNotFoundError:
        raise ModelError("the model has no config.json on the hub") from None
    if "auto_map" in config:
        raise ModelError("the model wants to run code of its own (auto_map in config.json), which is never allowed")
    check_trainable(config, "the model")
    try:
        return size_from(config, _shapes(hub_id, commit, _weight_files(hub_id, commit, token), until, token))
    except EntryNotFoundError:
        raise ModelError("the model has no safetensors on the hub, and nothing else is loaded") from None


def _document(hub_id: str, revision: str | None, name: str, token: _Token) -> tuple[dict[str, Any], str | None]:
    """A JSON object of the model's, and the commit that has it. Its size is asked before it is fetched."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    told = get_hf_file_metadata(hf_hub_url(hub_id, name, revision=revision), token=token, timeout=CONNECT_S)
    commit = told.commit_hash or revision  # a branch may move on between
    if told.size is None or told.size > _MOST_BYTES[name]:
        raise ModelError(f"the model's {name} has more than {_MOST_BYTES[name] >> 20} MiB, which is not looked at")
    with tempfile.TemporaryDirectory(prefix="equipoise-") as folder:  # a cache with a part looks like the whole
        file = hf_hub_download(hub_id, name, revision=commit, local_dir=folder, etag_timeout=CONNECT_S, token=token)
        found = json.loads(Path(file).read_bytes())
    if not isinstance(found, dict):
        raise ModelError(f"the model's {name} is not a JSON object")
    return found, commit


def _weight_files(hub_id: str, commit: str | None, token: _Token) -> list[str]:
    """Raises EntryNotFoundError where there are none."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    whole = "model.safetensors"
    try:
        get_hf_file_metadata(hf_hub_url(hub_id, whole, revision=commit), token=token, timeout=CONNECT_S)
    except EntryNotFoundError:
        index, _ = _document(hub_id, commit, f"{whole}.index.json", token)
    else:
        return [whole]
    places = index.get("weight_map")
    files = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    if not files or not all(re.fullmatch(r"[\w.-]+\.safetensors", file) for file in files):
        raise ModelError(f"the model's {whole}.index.json does not name its files of weights")
    if len(files) > _MOST_SHARDS:
        raise ModelError(f"the model's weights are in more than {_MOST_SHARDS} files, which are not looked at")
    return files


def _shapes(
    hub_id: str, commit: str | None, files: list[str], until: float, token: _Token
) -> dict[str, tuple[int, ...]]:
    """Of all tensors, from the headers of their files."""
    from huggingface_hub import parse_safetensors_file_metadata

    shapes: dict[str, tuple[int, ...]] = {}

    def take(file: str) -> None:
        if time.monotonic() > until:  # nobody waits any more
            raise ModelError(_late())
        found = parse_safetensors_file_metadata(hub_id, file, revision=commit, token=token, timeout=ANSWER_S)
        shapes.update({name: tuple(map(int, tensor.shape)) for name, tensor in found.tensors.items()})
        if len(shapes) > _MOST_TENSORS:
            raise ModelError(f"the model has more than {_MOST_TENSORS} tensors, which are not looked at")

    with ThreadPoolExecutor(min(8, len(files))) as pool:
        for _ in pool.map(take, files):
            pass
    return shapes


def _in_time(look: Callable[[], ModelSize]) -> ModelSize:
    """What it gives within ANSWER_S. A thread of its own: the hub's client tries again, with waits of its own."""
    if not _LOOKS.acquire(blocking=False):
        raise _Busy("the hub is being asked for other models; ask again")
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
            raise _refusal(error) from None
        case _:
            raise ModelError(_late())


def _late() -> str:
    return f"the hub did not say within {ANSWER_S:g} s how large the model is"


def _refusal(error: Exception) -> ModelError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    match error:
        case ModelError():
            return error
        case _ if type(error).__name__ in ("ConnectError", "ConnectTimeout"):  # of the hub's client, whichever it is
            return _Away("the hub can't be reached from here; set HF_HUB_OFFLINE=1 where it never can")
        case GatedRepoError():
            said = "the hub keeps the model for those who accepted its terms; set HF_TOKEN where jobs run, and here"
        case RepositoryNotFoundError():
            said = "the hub knows no such model, or keeps it private; check its id, or set HF_TOKEN"
        case RevisionNotFoundError():
            said = "the hub knows no such revision of the model"
        case _:
            said = f"the hub could not be asked how large the model is ({type(error).__name__})"
    return ModelError(said)
