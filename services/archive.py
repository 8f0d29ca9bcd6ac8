"""A directory as a tar file that is made while it is sent: no second copy on disk, the same bytes every time."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 2**20


class Archive:
    """The files of a directory, opened at once: what is removed afterwards is still sent whole.

    Not compressed, as weights hardly shrink. `close` it, also where `chunks` was not read to its end.
    """

    def __init__(self, directory: Path, *, name: str, beside: Mapping[str, bytes] | None = None) -> None:
        """`name` is the folder that unpacking makes, `beside` has files that the directory lacks. Raises OSError."""
        self._files: list[tuple[tarfile.TarInfo, BinaryIO]] = []
        self._stack = ExitStack()
        with ExitStack() as opening:
            opening.push(self._stack)
            for path in sorted(path for path in directory.rglob("*") if path.is_file()):
                file = self._stack.enter_context(path.open("rb"))
                info = tarfile.TarInfo(f"{name}/{path.relative_to(directory).as_posix()}")
                info.size, info.mode = path.stat().st_size, 0o644
                self._files.append((info, file))
            for path_in_it, content in (beside or {}).items():
                info = tarfile.TarInfo(f"{name}/{path_in_it}")
                info.size, info.mode = len(content), 0o644
                self._files.append((info, io.BytesIO(content)))
            opening.pop_all()

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(len(_header(info)) + _padded(info.size) for info, _ in self._files) + 2 * tarfile.BLOCKSIZE

    def chunks(self) -> Iterator[bytes]:
        """The tar file, in pieces of a megabyte at most. Raises OSError where a file became shorter meanwhile."""
        try:
            for info, file in self._files:
                yield _header(info)
                left = info.size
                while left:
                    chunk = file.read(min(left, CHUNK_BYTES))
                    if not chunk:
                        raise OSError(f"{info.name} became shorter while it was sent")
                    left -= len(chunk)
                    yield chunk
                yield bytes(_padded(info.size) - info.size)
            yield bytes(2 * tarfile.BLOCKSIZE)
        finally:
            self.close()

    def close(self) -> None:
        self._stack.close()


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.GNU_FORMAT)  # names and sizes of any length


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
