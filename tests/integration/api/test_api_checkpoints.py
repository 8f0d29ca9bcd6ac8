"""Checkpoints over HTTP: verified, exported and downloaded."""

import secrets
import shutil
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore
from orchestrator.storage.checkpoints import write_checkpoint
from services.client import ApiError, Client
from services.settings import Dashboard
from tests.api_support import KEY, SPEC, assert_error, claim, serving, step_record


def test_a_checkpoint_is_verified_and_exported(client: Client, store: JobStore, job_id: str, tmp_path: Path) -> None:
    def fill(directory: Path) -> None:
        (directory / "policy").mkdir()
        (directory / "policy" / "config.json").write_text("{}")

    lease = claim(store, job_id)
    store.commit(lease, step=1, digest="1", record=step_record())
    path, manifest = write_checkpoint(tmp_path / "checkpoints", step=1, fence=lease.fence, fill=fill)
    store.register_checkpoint(lease, step=1, path=str(path), digest=manifest.digest)
    figures = {"objectives": {"accuracy": 0.5, "conciseness": 0.1}, "standard_errors": {"accuracy": 0.01}}
    store.set_front(lease, {"points": [{"step": 1, **figures}]})
    assert [found["step"] for found in client.checkpoints(job_id)["data"]] == [1]

    target = tmp_path / "exported" / "model"
    assert client.export(job_id, 1, str(target))["path"] == str(target)
    assert (target / "config.json").read_text() == "{}"
    card = (target / "README.md").read_text()
    assert "| accuracy | `math` | 0.5 ± 0.01 | 0.6 |" in card, card

    (path / "policy" / "config.json").write_text("{ }")
    for step, directory, status in ((1, target, 409), (1, tmp_path / "other", 409), (2, tmp_path / "other", 425)):
        with pytest.raises(ApiError) as caught:
            client.export(job_id, step, str(directory))
        assert caught.value.status == status
    assert not (tmp_path / "other").exists()
    store.finish(lease, JobStatus.FAILED, "broke")
    with pytest.raises(ApiError, match="no checkpoint") as caught:  # and there never will be
        client.export(job_id, 2, str(tmp_path / "other"))
    assert caught.value.status == 404


def test_a_checkpoint_is_downloaded_as_it_was_made(
    client: Client, http: httpx.Client, store: JobStore, job_id: str, tmp_path: Path
) -> None:
    weights = secrets.token_bytes(3 * 2**20 + 17)  # neither a whole number of chunks nor of blocks

    def fill(directory: Path) -> None:
        (directory / "policy" / "nested").mkdir(parents=True)
        (directory / "policy" / "config.json").write_text("{}")
        (directory / "policy" / "model.safetensors").write_bytes(weights)
        (directory / "policy" / "nested" / ("n" * 150)).write_bytes(b"")
        (directory / "learner.safetensors").write_bytes(b"not for others")

    lease = claim(store, job_id)
    store.commit(lease, step=1, digest="1", record=step_record())
    path, manifest = write_checkpoint(tmp_path / "checkpoints", step=1, fence=lease.fence, fill=fill)
    store.register_checkpoint(lease, step=1, path=str(path), digest=manifest.digest)

    with tarfile.open(client.download(job_id, 1, tmp_path / "one.tar")) as archive:
        archive.extractall(tmp_path / "here", filter="data")
    folder = tmp_path / "here" / f"{job_id}-step-1"
    found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    card = found.pop("README.md").decode()
    assert f"job `{job_id}`, step 1," in card
    assert "This step was not evaluated." in card
    assert found == {"config.json": b"{}", "model.safetensors": weights, f"nested/{'n' * 150}": b""}
    client.download(job_id, 1, tmp_path / "two.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()

    with http.stream("GET", f"/v1/jobs/{job_id}/checkpoints/1/download") as answer:  # begun, then retired
        shutil.rmtree(path)
        assert len(answer.read()) == int(answer.headers["content-length"]) == (tmp_path / "one.tar").stat().st_size
    error = assert_error(http.get(f"/v1/jobs/{job_id}/checkpoints/1/download"), 409)
    assert str(tmp_path) not in error["message"]
    assert_error(http.get(f"/v1/jobs/{job_id}/checkpoints/2/download"), 425)
    assert_error(http.get(f"/v1/jobs/{job_id}/checkpoints/0/download"), 404)


def test_a_dashboards_session_downloads_it_as_the_api_sends_it(store: JobStore, tmp_path: Path) -> None:
    def fill(directory: Path) -> None:
        (directory / "policy").mkdir()
        (directory / "policy" / "model.safetensors").write_bytes(secrets.token_bytes(2**21))

    with serving(store, tmp_path, dashboard=Dashboard()) as server, Client(server.url, KEY) as client:
        job_id = client.submit(SPEC)["id"]
        lease = claim(store, job_id)
        store.commit(lease, step=1, digest="1", record=step_record())
        path, manifest = write_checkpoint(tmp_path / "checkpoints", step=1, fence=lease.fence, fill=fill)
        store.register_checkpoint(lease, step=1, path=str(path), digest=manifest.digest)
        client.download(job_id, 1, tmp_path / "one.tar")
        made = client.create_key(name="reader", scopes=["read"])
        with httpx.Client(base_url=server.url) as browser:
            browser.post("/signin", data={"key": made["key"]}, headers={"origin": server.url})
            answer = browser.get(f"/jobs/{job_id}/checkpoints/1/download")
            assert answer.content == (tmp_path / "one.tar").read_bytes()
            assert answer.headers["content-disposition"] == f'attachment; filename="{job_id}-step-1.tar"'
            assert "no checkpoint is kept at step 0" in browser.get(f"/jobs/{job_id}/checkpoints/0/download").text
            client.revoke_key(made["id"])
            assert browser.get(f"/jobs/{job_id}/checkpoints/1/download").headers["location"].startswith("/signin?")


@pytest.mark.parametrize("to", ["relative/path", "", 5, None, "/nul\x00"])
def test_an_export_needs_an_absolute_path(http: httpx.Client, job_id: str, to: Any) -> None:
    assert_error(http.post(f"/v1/jobs/{job_id}/checkpoints/1/export", json={"to": to}), 422)


def test_exports_are_the_operators_choice(store: JobStore, tmp_path: Path) -> None:
    with serving(store, tmp_path, local_exports=False) as server, Client(server.url, KEY) as client:
        job_id = client.submit(SPEC)["id"]
        with pytest.raises(ApiError) as caught:
            client.export(job_id, 1, str(tmp_path / "x"))
        assert (caught.value.status, caught.value.code) == (403, "exports_disabled")
