"""What the disk refuses of a learner's state is an OSError that says why, whatever the libraries make of it."""

import contextlib
import errno
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from policies.learner_state import disk_errors

STATE = {"weights": torch.zeros(100_000)}


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses what is beyond, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_of_safetensors(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File too large") as caught, disk_errors(), files_of_at_most(10_000):
        save_file(STATE, tmp_path / "learner.safetensors")
    assert caught.value.errno == errno.EFBIG


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_the_parts_of_several_ranks(tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught, disk_errors():
        save(STATE, checkpoint_id=tmp_path, no_dist=True)
    assert caught.value.errno == errno.ENOSPC


def failure(error: BaseException) -> CheckpointException:
    return CheckpointException("write", {1: (error, None)})  # type: ignore[dict-item]  # no traces needed


def test_a_short_write_that_torch_hides() -> None:
    """Of the rank that saw it there is the cause; what came from another rank has lost it."""
    hidden = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")
    hidden.__context__ = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left") as caught, disk_errors():
        raise failure(hidden)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="in part") as caught, disk_errors():
        raise failure(RuntimeError(str(hidden)))
    assert caught.value.errno == errno.EIO


def test_what_is_no_disks_doing_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), disk_errors():
        raise failure(ValueError("shapes differ"))
    with pytest.raises(OSError, match="header") as caught, disk_errors():
        raise SafetensorError("header too large")
    assert caught.value.errno is None
