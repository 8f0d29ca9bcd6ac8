"""What the disk refuses of a learner's state is an OSError that says why, whatever the libraries make of it."""

import contextlib
import errno
import multiprocessing
import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save

from policies.learner_state import disk_errors, state_writer
from policies.ranks import Ranks

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


def save_as_rank(rank: int, place: str, directory: Path, told: Any) -> None:
    """One of two ranks, each with a directory that it is said to share with the other."""
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=2)
    model = torch.nn.Sequential(*(torch.nn.Linear(9, 9) for _ in range(4)))
    learner: Any = SimpleNamespace(
        trained=dict(model.named_parameters()), parameters=list(model.parameters()),
        optimizer=torch.optim.AdamW(model.parameters()), scheduler=SimpleNamespace(last_epoch=0),
        generator=torch.Generator(), base_sha256=None, ranks=Ranks(torch.device("cpu")),
    )  # fmt: skip
    try:
        state_writer(learner, directory)()
        told.put((rank, "written"))
    except OSError as error:
        told.put((rank, str(error)))
    dist.destroy_process_group()


@pytest.mark.parametrize("shared", [True, False])
def test_ranks_whose_machines_share_no_directory_save_nothing(tmp_path: Path, shared: bool) -> None:
    """Each would find its own parts there and say so; the first has a list of all."""
    context = multiprocessing.get_context("spawn")
    told, place = context.Queue(), f"file://{tmp_path}/meet"
    roots = [tmp_path / "a" / ".step", tmp_path / ("a" if shared else "b") / ".step"]
    ranks = [context.Process(target=save_as_rank, args=(rank, place, roots[rank], told)) for rank in range(2)]
    for process in ranks:
        process.start()
    said = dict(told.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(60)
    if shared:
        assert said == {0: "written", 1: "written"}
    else:
        assert said[0] == said[1].replace(str(roots[1].parent), str(roots[0].parent))
        assert said[0] == (
            f"__1_0.distcp of the learner's state is not there: see that the learner's machines share {tmp_path / 'a'}"
        )


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
