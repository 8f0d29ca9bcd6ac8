"""Both clients against a real server, through a connection that loses answers, and over TLS."""

import logging
import re
import select
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from starlette.responses import PlainTextResponse

from orchestrator.state.embedded_redis import connect
from orchestrator.state.states import JobStatus
from orchestrator.state.store import JobStore, Lease
from services.client import NO_RETRY, ApiError, AsyncClient, Client, Retry, Unreachable
from services.keys import digest
from services.processes import announce, api_server
from services.server import ApiServer, ServerError
from services.settings import Listen, Settings, Tls, write_credentials
from tests.api_support import step_record
from tests.support import self_signed

PROJECT = Path(__file__).parents[2]
KEY = "eqp_client_test"
QUICK = Retry(attempts=8, first_wait_s=0.02)
SPEC: dict[str, Any] = {
    "name": "a job",
    "steps": 4,
    "policy": {"model": "quickstart"},
    "data": {"type": "quickstart"},
    "rollout": {"max_tokens": 64},
    "objectives": [
        {"name": "accuracy", "reward": {"name": "math"}, "weight": 0.6},
        {"name": "conciseness", "reward": {"name": "conciseness"}, "weight": 0.4},
    ],
}


@pytest.fixture
def store(redis_url: str) -> Iterator[JobStore]:
    connection = connect(redis_url)
    yield JobStore(connection, owner=f"client-{uuid.uuid4().hex}")
    connection.close()


def begin(store: JobStore, state_dir: Path, listen: Listen) -> ApiServer:
    server = api_server(listen)
    server.start(store, Settings(state_dir=state_dir, key_sha256=digest(KEY), poll_s=0.02))
    return server


@pytest.fixture
def server(store: JobStore, tmp_path: Path) -> Iterator[ApiServer]:
    server = begin(store, tmp_path, Listen(port=0))
    yield server
    server.stop()


class Lossy:
    """A TCP proxy. `fate` gives for each connection how many bytes of answers pass before it is cut; None: all."""

    def __init__(self, port: int, fate: Callable[[int], int | None]) -> None:
        self._port, self._fate = port, fate
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = self.cut = 0
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> "Lossy":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # which ends the accept that waits; closing alone does not
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._pass, args=(client, self._fate(self.connections)), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _pass(self, client: socket.socket, left: int | None) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as upstream:
            while True:
                for ready in select.select([client, upstream], [], [])[0]:
                    try:
                        data = ready.recv(65536)
                        if not data:
                            return
                        if ready is upstream and left is not None:
                            data, left = data[:left], left - len(data)
                        (upstream if ready is client else client).sendall(data)
                    except OSError:
                        return
                    if left is not None and left < 0:
                        self.cut += 1
                        return


def claim(store: JobStore, job_id: str) -> Lease:
    lease = store.claim(job_id, nonce=uuid.uuid4().hex, ttl_s=60).lease
    assert lease is not None
    store.set_status(lease, JobStatus.RUNNING)
    return lease


def commit(store: JobStore, lease: Lease, step: int) -> None:
    half = {"accuracy": 0.5, "conciseness": 0.5}
    record = {"objectives": {"accuracy": {"mean": 0.5, "std": 0.1}}, "weights": {"strategy": half, "applied": half}}
    store.commit(lease, step=step, digest=str(step), record=record)


# -- answers that are lost ----------------------------------------------------------------------------------


def lose_first(count: int) -> Callable[[int], int | None]:
    return lambda connection: 0 if connection <= count else None


def test_a_submission_whose_answers_are_lost_makes_one_job(server: ApiServer) -> None:
    with Lossy(server.port, lose_first(3)) as lossy, Client(lossy.url, KEY, retry=QUICK) as client:
        job = client.submit(SPEC)
        assert (lossy.cut, lossy.connections) == (3, 4)
        assert [found["id"] for found in client.iter_jobs()] == [job["id"]]


def test_the_same_awaited(server: ApiServer) -> None:
    async def run(url: str) -> None:
        async with AsyncClient(url, KEY, retry=QUICK) as client:
            job = await client.submit(SPEC)
            assert [found["id"] async for found in client.iter_jobs()] == [job["id"]]

    with Lossy(server.port, lose_first(3)) as lossy:
        anyio.run(run, lossy.url)
        assert lossy.cut == 3


def test_a_steer_whose_answer_is_lost_is_told_as_such_and_made_once(server: ApiServer) -> None:
    with Client(server.url, KEY) as client:
        job_id = client.submit(SPEC)["id"]
        with Lossy(server.port, lose_first(1)) as lossy, Client(lossy.url, KEY, retry=QUICK) as unlucky:
            with pytest.raises(Unreachable, match="broke off"):
                unlucky.steer(job_id, if_match=1, mode="manual")
            assert lossy.connections == 1
        assert [entry["version"] for entry in client.steering(job_id)["log"]][-1] == client.steering(job_id)["version"]
        assert (client.steering(job_id)["version"], client.steering(job_id)["mode"]) == (2, "manual")


@pytest.mark.parametrize("awaited", [False, True])
def test_a_stream_that_is_cut_again_and_again_misses_and_repeats_nothing(
    server: ApiServer, store: JobStore, awaited: bool
) -> None:
    job_id = store_job(server)
    seen: list[int] = []

    def cuts(connection: int) -> int | None:
        return 400 * connection if connection < 12 else None  # amid the headers, an event, between events

    async def follow(url: str) -> None:
        async with AsyncClient(url, KEY, retry=QUICK) as client:
            async for event in client.stream_events(job_id):
                seen.append(event["seq"])

    def read() -> None:
        if awaited:
            anyio.run(follow, lossy.url)
            return
        with Client(lossy.url, KEY, retry=QUICK) as client:
            seen.extend(event["seq"] for event in client.stream_events(job_id))

    with Lossy(server.port, cuts) as lossy, ThreadPoolExecutor(1) as threads:
        reader = threads.submit(read)
        lease = claim(store, job_id)
        for number in range(40):
            store.event(job_id, "note", {"number": number, "text": "x" * 50})
        with Client(server.url, KEY) as client:
            client.cancel(job_id)
            store.finish(lease, JobStatus.CANCELLED)
            reader.result(60)
            kept = [event["seq"] for event in client.iter_events(job_id)]
        assert lossy.cut >= 5
    assert seen == kept == list(range(1, len(kept) + 1))
    assert len(kept) > 40


def store_job(server: ApiServer) -> str:
    with Client(server.url, KEY) as client:
        return client.submit(SPEC)["id"]


def test_waiting_outlives_a_server_that_restarts(store: JobStore, tmp_path: Path) -> None:
    server = begin(store, tmp_path, Listen(port=0))
    job_id = store_job(server)
    with Client(server.url, KEY, retry=QUICK) as client, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.wait, job_id, poll_s=0.02)
        server.stop()
        time.sleep(0.1)
        again = begin(store, tmp_path, Listen(port=server.port))
        store.request_cancel(job_id)
        assert waiting.result(30)["status"] == "cancelled"
        again.stop()


# -- what the client says -----------------------------------------------------------------------------------


def test_a_wrong_key_is_told_and_never_logged(server: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = "eqp_" + "w" * 40
    with Client(server.url, wrong) as client:
        with pytest.raises(ApiError) as caught:
            client.submit(SPEC)
        assert client.ready() is False
        assert client.livez() == {"status": "ok"}
    assert caught.value.status == 401
    assert wrong not in caplog.text + str(caught.value)
    with Client(server.url, KEY) as client:
        assert client.ready() is True
        assert "equipoise_requests_total" in client.prometheus()
        assert client.readyz() == {"status": "ok"}
    assert KEY not in caplog.text


def test_everything_else_answers_in_its_type(server: ApiServer, store: JobStore, tmp_path: Path) -> None:
    """One call of each of the rest, with what the server really gives."""
    with Client(server.url, KEY) as client:
        job_id = client.submit(SPEC)["id"]
        lease = claim(store, job_id)
        for step in (1, 2, 3):
            commit(store, lease, step)
        assert [step["step"] for step in client.iter_metrics(job_id, after=1)] == [2, 3]
        assert client.compare([job_id])["data"][0]["id"] == job_id
        assert client.rule("gdpo")["data"][0]["kind"] == "estimator"
        assert {rule["kind"] for rule in client.rules(kind="budget")["data"]} == {"budget"}
        assert client.models()["data"][0]["id"] == "quickstart"
        assert client.validate_reward("conciseness")["valid"] is True
        with pytest.raises(ApiError) as caught:
            client.validate_reward("conciseness", {"no": 1})
        assert caught.value.param == "options.no"
        assert client.rollouts(job_id)["total"] == 0
        rows = tmp_path / "rows.csv"
        rows.write_text("read before\nprompt,answer\n1+1?,2\n2+2?,4\n")
        with rows.open("rb") as file:
            assert file.readline() == b"read before\n"
            dataset = client.upload_dataset(file, name="sums", format="csv")
        assert anyio.run(upload, server.url, rows)["id"] == dataset["id"]
        assert [row["answer"] for row in client.dataset_rows(dataset["id"])["data"]] == ["2", "4"]
        assert client.datasets()["data"] == [dataset] == list(client.iter_datasets())
        assert client.delete_dataset(dataset["id"])["deleted"] is True
        key = client.create_key(name="ci", scopes=["read"])
        assert [found["id"] for found in client.iter_keys()] == [found["id"] for found in client.keys()["data"]]
        assert client.revoke_key(key["id"])["revoked_at"] is not None
        hook = client.create_webhook(url="https://example.com/x", events=["job.failed"])
        assert [found["id"] for found in client.webhooks()["data"]] == [hook["id"]]
        client.delete_webhook(hook["id"])
        assert client.webhooks()["data"] == []


async def upload(url: str, path: Path) -> Any:
    async with AsyncClient(url, KEY) as client:
        with path.open("rb") as file:
            file.readline()
            return await client.upload_dataset(file, name="sums", format="csv")


# -- the README ---------------------------------------------------------------------------------------------


def readme_examples() -> list[str]:
    text = (PROJECT / "README.md").read_text()
    return [block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "services.client" in block]


def test_the_readmes_examples_run(
    server: ApiServer, store: JobStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(PROJECT)
    monkeypatch.setenv("EQUIPOISE_URL", server.url)
    monkeypatch.setenv("EQUIPOISE_API_KEY", KEY)
    blocking, awaited = readme_examples()

    def drive() -> None:
        """What a worker would do with the job."""
        deadline = time.monotonic() + 60
        while (job_id := store.next_queued()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        while store.steering(job_id).version < 2:  # the example steers it
            assert time.monotonic() < deadline
            time.sleep(0.02)
        lease = claim(store, job_id)
        point = {"step": 1, "objectives": {"accuracy": 0.75}, "on_front": True}
        store.commit(lease, step=1, digest="1", record=step_record())
        store.set_front(lease, {"points": [point], "hypervolume": 0.5})
        store.finish(lease, JobStatus.FAILED, "as a test")

    with ThreadPoolExecutor(1) as threads:
        driven = threads.submit(drive)
        exec(compile(blocking, "README.md", "exec"), {})
        driven.result(60)
    told = capsys.readouterr().out
    assert "job.queued" in told
    assert "0.75" in told

    job_id = store_job(server)
    claim(store, job_id)
    exec(compile(awaited, "README.md", "exec"), {})
    assert store.job(job_id).status is JobStatus.PAUSING


# -- TLS and open addresses ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    cert, key = self_signed(tmp_path_factory.mktemp("tls"))
    return Tls(cert=cert, key=key)


def test_over_tls_the_certificate_decides(store: JobStore, tmp_path: Path, certificate: Tls) -> None:
    server = begin(store, tmp_path, Listen(port=0, tls=certificate))
    try:
        assert server.url.startswith("https://127.0.0.1:")
        with Client(server.url, KEY, verify=certificate.cert) as client:
            job_id = client.submit(SPEC)["id"]
            assert client.job(job_id)["status"] == "queued"
        with Client(server.url, KEY) as client, pytest.raises(Unreachable) as caught:
            client.jobs()
        assert caught.value.code == "untrusted_certificate"
        assert "EQUIPOISE_CA_FILE" in str(caught.value)
        write_credentials(tmp_path, server.url, KEY, ca_file=server.ca_file)  # as `up` leaves it for the commands
        with Client.from_state(tmp_path, {}) as client:
            assert [job["id"] for job in client.iter_jobs()] == [job_id]

        async def run() -> list[str]:
            async with AsyncClient.from_state(tmp_path, {}) as client:
                return [job["id"] async for job in client.iter_jobs()]

        assert anyio.run(run) == [job_id]
        with Client(server.url.replace("https", "http"), KEY, retry=NO_RETRY) as client, pytest.raises(Unreachable):
            client.jobs()
    finally:
        server.stop()


def test_files_that_are_no_certificate_are_refused_before_anything_starts(tmp_path: Path, certificate: Tls) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    assert certificate.key is not None
    for tls in (
        Tls(cert=tmp_path / "absent.pem"),
        Tls(cert=junk),
        Tls(cert=certificate.cert),
        Tls(cert=certificate.cert, key=junk),
    ):
        with pytest.raises(ServerError, match=r"can't use .* for TLS"):
            ApiServer("127.0.0.1", 0, tls=tls)


def test_a_proxy_is_believed_only_where_it_is_named(store: JobStore, tmp_path: Path) -> None:
    for proxies, scheme in (((), "http"), (("10.0.0.0/8",), "http"), (("127.0.0.0/8",), "https")):
        server = begin(store, tmp_path, Listen(port=0, proxies=proxies))
        try:
            app = server._server.config.app  # type: ignore[union-attr]
            app.router.add_route("/scheme", lambda request: PlainTextResponse(request.url.scheme))
            headers = {"x-forwarded-proto": "https", "authorization": f"Bearer {KEY}"}
            with httpx.Client(base_url=server.url, headers=headers) as http:
                assert http.get("/scheme").text == scheme
        finally:
            server.stop()


@pytest.mark.parametrize(
    ("host", "options", "warns"),
    [
        ("127.0.0.1", {}, False), ("localhost", {}, False), ("127.5.6.7", {}, False), ("::1", {}, False),
        ("0.0.0.0", {}, True), ("::", {}, True), ("0.0.0.0", {"proxies": ("10.0.0.1",)}, False),
        ("0.0.0.0", {"tls": "certificate"}, False),
    ],
)  # fmt: skip
def test_an_open_address_without_encryption_is_told_loudly(
    host: str, options: dict[str, Any], warns: bool, certificate: Tls, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    if "tls" in options:
        options = {"tls": certificate}
    try:
        server = api_server(Listen(host=host, port=0, **options))
    except ServerError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    announce(server, tmp_path, None)
    server.stop()
    told = capsys.readouterr().err
    assert (told.count("WARNING") >= 5) is warns
    assert ("--tls-cert" in told and "--behind-proxy" in told) is warns
    assert any(record.levelno == logging.WARNING for record in caplog.records) is warns
