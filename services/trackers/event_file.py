"""TensorBoard's event files, written and read without TensorFlow or torch.

A file is a row of records (TFRecord), each

    length   uint64, little-endian
    uint32   masked crc32c of the length
    data     `length` bytes
    uint32   masked crc32c of the data

and the data a protobuf `Event` (tensorflow/core/util/event.proto, tensorflow/core/framework/summary.proto), of which
only what is needed is written. The numbers below are those of the fields there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

VERSION = b"brain.Event:2"
_DT_STRING = 7
_TABLE = [0] * 256
for _i in range(256):
    _value = _i
    for _ in range(8):
        _value = _value >> 1 ^ (0x82F63B78 if _value & 1 else 0)
    _TABLE[_i] = _value


class EventFile:
    """Appends events to a new file; each is on its way to the disk when the call returns."""

    def __init__(self, path: Path, *, wall_time: float) -> None:
        self._file: BinaryIO = path.open("xb")
        self._append(_double(1, wall_time) + _bytes(3, VERSION))

    def write(self, *, step: int, wall_time: float, values: Sequence[bytes]) -> None:
        """One Event with all of a step's values, so that a reader has all or none. ValueError for a step below 0."""
        if step < 0:
            raise ValueError(f"expected a step of 0 or more, got {step}")
        summary = b"".join(_bytes(1, value) for value in values)
        self._append(_double(1, wall_time) + _integer(2, step) + _bytes(5, summary))

    def close(self) -> None:
        self._file.close()

    def _append(self, data: bytes) -> None:
        self._file.write(framed(data))
        self._file.flush()


def scalar(tag: str, value: float) -> bytes:
    """A Summary.Value."""
    return _bytes(1, tag.encode()) + _key(2, 5) + struct.pack("<f", value)


def text(tag: str, content: str) -> bytes:
    """A Summary.Value of the text plug-in, which renders Markdown."""
    shape = _bytes(2, _integer(1, 1))  # of one dimension, of size 1
    tensor = _integer(1, _DT_STRING) + _bytes(2, shape) + _bytes(8, content.encode())
    return _bytes(1, tag.encode()) + _bytes(9, _bytes(1, _bytes(1, b"text"))) + _bytes(8, tensor)


def hparams(settings: Mapping[str, float | bool | str], *, group: str, started_at: float) -> bytes:
    """A Summary.Value of the hparams plug-in (tensorboard/plugins/hparams/plugin_data.proto): a session's start."""
    entries = b"".join(
        _bytes(1, _bytes(1, name.encode()) + _bytes(2, _constant(value))) for name, value in settings.items()
    )
    start = entries + _bytes(4, group.encode()) + _double(5, started_at)
    plugin = _bytes(1, b"hparams") + _bytes(2, _bytes(3, start))
    tensor = _integer(1, 1) + _bytes(2, b"") + _key(5, 2) + _varint(4) + struct.pack("<f", 0.0)  # there must be one
    return _bytes(1, b"_hparams_/session_start_info") + _bytes(9, _bytes(1, plugin)) + _bytes(8, tensor)


def summary_steps(path: Path) -> Iterator[int]:
    """Of each whole event that has a summary. What a crash left half written at the end is none."""
    with path.open("rb") as file:
        for data in records(file):
            fields = dict(_fields(data))
            if 5 in fields:
                yield int(fields.get(2, 0))


def framed(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked(length)) + data + struct.pack("<I", _masked(data))


def records(file: BinaryIO) -> Iterator[bytes]:
    """The data of whole records, up to the first that is damaged or not all there."""
    while len(head := file.read(12)) == 12:
        length, check = struct.unpack("<QI", head)
        if check != _masked(head[:8]):
            return
        data, tail = file.read(length), file.read(4)
        if len(data) < length or tail != struct.pack("<I", _masked(data)):
            return
        yield data


def crc32c(data: bytes) -> int:
    """Castagnoli's, as RFC 3720 has it."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


def _masked(data: bytes) -> int:
    value = crc32c(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _constant(value: float | bool | str) -> bytes:
    """A google.protobuf.Value."""
    if isinstance(value, bool):
        return _integer(4, int(value))
    if isinstance(value, str):
        return _bytes(3, value.encode())
    return _double(2, value)


def _key(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _integer(number: int, value: int) -> bytes:
    return _key(number, 0) + _varint(value)


def _double(number: int, value: float) -> bytes:
    return _key(number, 1) + struct.pack("<d", value)


def _bytes(number: int, value: bytes) -> bytes:
    return _key(number, 2) + _varint(len(value)) + value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a message's fields; those of fixed size as their bytes."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        if key & 7 == 0:
            value, at = _read_varint(data, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(key & 7)
        if size is None:
            size, at = _read_varint(data, at)
        yield key >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
