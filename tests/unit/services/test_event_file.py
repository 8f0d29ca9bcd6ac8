"""TensorBoard's files, read back by protobuf."""

from pathlib import Path

import pytest

from services.trackers import event_file
from services.trackers.event_file import EventFile, crc32c, hparams, records, scalar, summary_steps, text
from tests.event_protos import CLASSES, events_of


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_the_checksum_is_castagnolis(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


def write(path: Path, *steps: int) -> None:
    file = EventFile(path, wall_time=1.5)
    for step in steps:
        file.write(step=step, wall_time=100.0 + step, values=[scalar("train/a", 0.25 * step), text("rollouts", "ä|b")])
    file.close()


def test_protobuf_reads_what_was_written(tmp_path: Path) -> None:
    write(path := tmp_path / "events", 0, 1, 300)
    version, *events = events_of(path)
    assert (version.file_version, version.wall_time) == ("brain.Event:2", 1.5)
    assert [(event.step, event.wall_time) for event in events] == [(0, 100.0), (1, 101.0), (300, 400.0)]
    for event in events:
        number, words = event.summary.value
        assert (number.tag, number.simple_value) == ("train/a", 0.25 * event.step)
        assert (words.tag, words.metadata.plugin_data.plugin_name) == ("rollouts", "text")
        assert (words.tensor.dtype, [dim.size for dim in words.tensor.tensor_shape.dim]) == (7, [1])
        assert [each.decode() for each in words.tensor.string_val] == ["ä|b"]


def test_settings_are_those_of_the_hparams_plugin() -> None:
    encoded = hparams({"lr": 1e-5, "steps": 40, "on": True, "name": "tiny"}, group="job-1", started_at=12.0)
    value = CLASSES["Value"].FromString(encoded)
    assert (value.tag, value.metadata.plugin_data.plugin_name) == ("_hparams_/session_start_info", "hparams")
    found = CLASSES["HParamsPluginData"].FromString(value.metadata.plugin_data.content)
    start = found.session_start_info
    assert (found.version, start.group_name, start.start_time_secs) == (0, "job-1", 12.0)
    values = {entry.key: getattr(entry.value, entry.value.WhichOneof("kind")) for entry in start.hparams}
    assert values == {"lr": 1e-5, "steps": 40.0, "on": True, "name": "tiny"}


@pytest.mark.parametrize("lost", [1, 4, 5, 30])
def test_what_a_crash_left_half_written_is_no_step(tmp_path: Path, lost: int) -> None:
    write(path := tmp_path / "events", 0, 7, 8)
    assert [*summary_steps(path)] == [0, 7, 8]
    path.write_bytes(path.read_bytes()[:-lost])
    assert [*summary_steps(path)] == [0, 7]


def test_damage_ends_the_reading(tmp_path: Path) -> None:
    write(path := tmp_path / "events", 0, 7, 8)
    with path.open("rb") as file:
        whole = [*records(file)]
    data = bytearray(path.read_bytes())
    data[sum(16 + len(record) for record in whole[:2]) + 20] ^= 1
    path.write_bytes(data)
    assert [*summary_steps(path)] == [0]


def test_a_file_is_never_written_over_and_a_step_is_a_count(tmp_path: Path) -> None:
    write(path := tmp_path / "events", 1)
    with pytest.raises(FileExistsError):
        EventFile(path, wall_time=0)
    file = EventFile(tmp_path / "other", wall_time=0)
    with pytest.raises(ValueError, match="expected a step of 0 or more"):
        file.write(step=-1, wall_time=0, values=[])
    file.close()


def test_long_content_has_its_length() -> None:
    value = CLASSES["Value"].FromString(event_file.text("t", "x" * 100_000))
    assert len(value.tensor.string_val[0]) == 100_000
