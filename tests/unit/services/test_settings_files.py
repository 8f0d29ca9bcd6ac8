import stat
from pathlib import Path

import pytest

from services import own_key
from services.keys import digest, new_key
from services.settings import (
    Settings,
    credentials_path,
    default_state_dir,
    gpu_gib,
    memory_gib,
    read_credentials,
    secret,
    write_credentials,
)


def test_the_state_directory_is_chosen_then_xdg_then_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert default_state_dir({"EQUIPOISE_STATE_DIR": "~/x", "XDG_STATE_HOME": "/xdg"}) == Path("/home/me/x")
    assert default_state_dir({"XDG_STATE_HOME": "/xdg"}) == Path("/xdg/equipoise")
    assert default_state_dir({}) == Path("/home/me/.local/state/equipoise")


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    assert read_credentials(tmp_path) is None
    first, is_new = write_credentials(tmp_path, "http://127.0.0.1:1")
    assert is_new is True
    assert stat.S_IMODE(credentials_path(tmp_path).stat().st_mode) == 0o600
    second, is_new = write_credentials(tmp_path, "http://127.0.0.1:2")
    assert (second.key, second.url, is_new) == (first.key, "http://127.0.0.1:2", False)
    assert read_credentials(tmp_path) == second
    assert [path.name for path in tmp_path.iterdir()] == ["api.json"]


def test_a_given_key_replaces_the_kept_one(tmp_path: Path) -> None:
    write_credentials(tmp_path, "http://x")
    given, is_new = write_credentials(tmp_path, "http://x", "eqp_mine")
    assert (given.key, is_new) == ("eqp_mine", True)


def test_a_gpus_memory_is_the_operators_or_80() -> None:
    assert [gpu_gib({"EQUIPOISE_GPU_GIB": text}) for text in ("", "24", "47.5")] == [80, 24, 47.5]
    for text in ("0", "-1", "nan", "24 GiB", "1e3", "9" * 400):
        with pytest.raises(ValueError, match=r"EQUIPOISE_GPU_GIB: expected"):
            gpu_gib({"EQUIPOISE_GPU_GIB": text})


def test_a_machines_memory_is_the_operators_or_not_known() -> None:
    assert [memory_gib({"EQUIPOISE_MEMORY_GIB": text}) for text in ("", "24", "1536.5")] == [None, 24, 1536.5]
    for text in ("0", "-1", "nan", "24 GiB", "1e3", "9" * 400):
        with pytest.raises(ValueError, match=r"EQUIPOISE_MEMORY_GIB: expected"):
            memory_gib({"EQUIPOISE_MEMORY_GIB": text})


@pytest.mark.parametrize("content", ["", "{", '{"url": "http://x"}', "[]", "\xff"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    credentials_path(tmp_path).write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"api\.json is damaged; delete it"):
        read_credentials(tmp_path)


def test_keys_are_long_and_unlike() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("eqp_") and len(key) > 40 for key in keys)
    assert len(digest("x")) == 64


def test_a_secret_is_the_variable_or_the_file_that_it_names(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n")
    named = {"EQUIPOISE_API_KEY_FILE": str(file)}
    assert secret("EQUIPOISE_API_KEY", {}) is None
    assert secret("EQUIPOISE_API_KEY", named) == "from-file"
    assert secret("EQUIPOISE_API_KEY", {**named, "EQUIPOISE_API_KEY": "given"}) == "given"


@pytest.mark.parametrize(("content", "why"), [(None, "No such file"), (b"\xff\xfe", "not UTF-8"), (b" \n", "is empty")])
def test_a_file_of_a_secret_that_holds_none_is_named(tmp_path: Path, content: bytes | None, why: str) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=f"EQUIPOISE_REDIS_URL_FILE: {file}.*{why}"):
        secret("EQUIPOISE_REDIS_URL", {"EQUIPOISE_REDIS_URL_FILE": str(file)})


def test_a_key_in_a_file_of_its_own_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a mounted Secret is: replaced by a rename. A file that is away or empty changes nothing."""
    monkeypatch.setattr(own_key, "_LOOK_EVERY_S", 0.0)
    first, second = new_key(), new_key()
    file = tmp_path / "api-key"
    file.write_text(f"{first}\n")
    own = own_key.OwnKey(Settings(state_dir=tmp_path, key_sha256=digest(first), key_file=file))
    assert own.may_change
    assert own.sha256 == digest(first)
    (tmp_path / "next").write_text(f"{second}\n")
    (tmp_path / "next").rename(file)
    assert own.sha256 == digest(second)
    file.write_text("\n")
    assert own.sha256 == digest(second)
    file.unlink()
    assert own.sha256 == digest(second)
