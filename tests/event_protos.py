"""TensorFlow's public messages, as far as event files here have them, for the protobuf library to read."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2

_Field = descriptor_pb2.FieldDescriptorProto
_MESSAGES: dict[str, list[tuple[str, int, Any, str | None]]] = {  # name, number, type, and of a message which
    "Event": [
        ("wall_time", 1, _Field.TYPE_DOUBLE, None),
        ("step", 2, _Field.TYPE_INT64, None),
        ("file_version", 3, _Field.TYPE_STRING, None),
        ("summary", 5, _Field.TYPE_MESSAGE, "Summary"),
    ],
    "Summary": [("value*", 1, _Field.TYPE_MESSAGE, "Value")],
    "Value": [
        ("tag", 1, _Field.TYPE_STRING, None),
        ("simple_value", 2, _Field.TYPE_FLOAT, None),
        ("tensor", 8, _Field.TYPE_MESSAGE, "TensorProto"),
        ("metadata", 9, _Field.TYPE_MESSAGE, "SummaryMetadata"),
    ],
    "SummaryMetadata": [("plugin_data", 1, _Field.TYPE_MESSAGE, "PluginData")],
    "PluginData": [("plugin_name", 1, _Field.TYPE_STRING, None), ("content", 2, _Field.TYPE_BYTES, None)],
    "TensorProto": [
        ("dtype", 1, _Field.TYPE_INT32, None),
        ("tensor_shape", 2, _Field.TYPE_MESSAGE, "TensorShapeProto"),
        ("float_val*", 5, _Field.TYPE_FLOAT, None),
        ("string_val*", 8, _Field.TYPE_BYTES, None),
    ],
    "TensorShapeProto": [("dim*", 2, _Field.TYPE_MESSAGE, "Dim")],
    "Dim": [("size", 1, _Field.TYPE_INT64, None)],
    "HParamsPluginData": [
        ("version", 1, _Field.TYPE_INT32, None),
        ("session_start_info", 3, _Field.TYPE_MESSAGE, "SessionStartInfo"),
    ],
    "SessionStartInfo": [
        ("hparams*", 1, _Field.TYPE_MESSAGE, "Hparam"),
        ("group_name", 4, _Field.TYPE_STRING, None),
        ("start_time_secs", 5, _Field.TYPE_DOUBLE, None),
    ],
    "Hparam": [  # an entry of the map
        ("key", 1, _Field.TYPE_STRING, None),
        ("value", 2, _Field.TYPE_MESSAGE, "google.protobuf.Value"),
    ],
}


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="events.proto", package="events", syntax="proto3", dependency=["google/protobuf/struct.proto"]
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, of in fields:
            label = _Field.LABEL_REPEATED if field.endswith("*") else _Field.LABEL_OPTIONAL
            made = message.field.add(name=field.rstrip("*"), number=number, type=kind, label=label)
            if of is not None:
                made.type_name = f".{of}" if "." in of else f".events.{of}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(struct_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"events.{name}")) for name in _MESSAGES}


CLASSES = _classes()


def events_of(path: Path) -> list[Any]:
    """Every Event of a file, which must be whole."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == masked(data[:8])
        body = data[12 : 12 + length]
        assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked(body)
        found.append(CLASSES["Event"].FromString(body))
        data = data[16 + length :]
    return found


def masked(data: bytes) -> int:
    """Bit by bit, from the polynomial's definition."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ 0x82F63B78 * (value & 1)
    value ^= 0xFFFFFFFF
    return ((value >> 15 | (value << 17) & 0xFFFFFFFF) + 0xA282EAD8) % 2**32
