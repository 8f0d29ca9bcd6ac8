"""Datasets on a real Redis behind a real socket: what is kept, what is refused, and who sees it."""

import io
import json
import os
import socket
import stat
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from typer.testing import CliRunner

from orchestrator.inputs import load_splits
from orchestrator.rollouts.prompts import DatasetError
from orchestrator.spec import parse_spec
from orchestrator.state.embedded_redis import connect
from orchestrator.state.store import JobStore
from orchestrator.storage.datasets import Datasets, resolve
from services.body_deadline import Pace
from services.cli import app as cli
from services.keys import digest
from services.server import ApiServer
from services.settings import Dashboard, Limits, Settings

KEY = "eqp_test"
SECRET = "hunter2-do-not-repeat"
ROWS = [{"prompt": f"{i}+1", "answer": str(i + 1)} for i in range(30)]
SPEC: dict[str, Any] = {
    "name": "a job",
    "steps": 4,
    "policy": {"model": "quickstart"},
    "rollout": {"max_tokens": 64},
    "objectives": [
        {"name": "accuracy", "reward": {"name": "math"}},
        {"name": "short", "reward": {"name": "conciseness"}},
    ],
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A server whose own owner has a name of its own, and what it keeps."""

    url: str
    state: Path
    owner: str
    store: JobStore

    def http(self, key: str = KEY) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {key}"}, timeout=30)

    def key(self, *scopes: str, owner: str) -> str:
        with self.http() as http:
            made = http.post("/v1/keys", json={"name": "made", "scopes": scopes, "owner": owner})
        return str(made.json()["key"])


@contextmanager
def serving(redis_url: str, state: Path, **limits: Any) -> Iterator[Place]:
    client = connect(redis_url)
    owner = f"data-{uuid.uuid4().hex}"
    server = ApiServer("127.0.0.1", 0)
    store = JobStore(client, owner=owner)
    settings = Settings(state_dir=state, key_sha256=digest(KEY), limits=Limits(**limits), dashboard=Dashboard())
    server.start(store, settings)
    try:
        yield Place(url=server.url, state=state, owner=owner, store=store)
    finally:
        server.stop()
        client.close()


@pytest.fixture(scope="module")
def place(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with serving(redis_url, tmp_path_factory.mktemp("datasets"), dataset_bytes=100_000) as place:
        yield place


@pytest.fixture
def http(place: Place) -> Iterator[httpx.Client]:
    with place.http() as http:
        yield http


def jsonl(*rows: Any) -> bytes:
    return b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)


def table(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def upload(http: httpx.Client, content: Any, format: str = "jsonl", name: str = "sums", **more: str) -> httpx.Response:
    return http.post("/v1/datasets", params={"name": name, "format": format, **more}, content=content)


def unique(count: int = 1) -> bytes:
    return jsonl(*({"prompt": uuid.uuid4().hex, "answer": "1"} for _ in range(count)))


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"]
    assert SECRET not in answer.text
    document = dict(answer.json()["error"])
    assert document.keys() == {"type", "code", "message", "param"}
    return document


def kept(place: Place, owner: str | None = None) -> list[str]:
    folder = place.state / "datasets" / (owner or place.owner)
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# -- what is kept -------------------------------------------------------------------------------------------


CSV = ("prompt,answer\n" + "".join(f'"{row["prompt"]}",{row["answer"]}\n' for row in ROWS)).encode()


@pytest.mark.parametrize(("format", "content"), [("jsonl", jsonl(*ROWS)), ("csv", CSV), ("parquet", table(ROWS))])
def test_a_file_is_kept_as_it_came(place: Place, http: httpx.Client, format: str, content: bytes) -> None:
    made = upload(http, content, format)
    assert made.status_code == 201, made.text
    document = made.json()
    assert document["object"] == "dataset"
    assert (document["rows"], document["bytes"], document["format"]) == (30, len(content), format)
    assert made.headers["location"] == f"/v1/datasets/{document['id']}"
    assert http.get(made.headers["location"]).json() == document
    assert str(place.state) not in made.text
    directory = place.state / "datasets" / place.owner / document["id"]
    assert (directory / f"data.{format}").read_bytes() == content
    for path in (directory, directory.parent, directory.parent.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert resolve(f"dataset:{document['id']}", place.owner, place.state) == directory / f"data.{format}"
    rows = http.get(f"/v1/datasets/{document['id']}/rows", params={"after": 2, "limit": 2}).json()
    assert rows["data"] == [{"row": row, "prompt": f"{row - 1}+1", "answer": str(row)} for row in (3, 4)]
    assert rows["has_more"] is True
    last = http.get(f"/v1/datasets/{document['id']}/rows", params={"after": 28}).json()
    assert ([row["row"] for row in last["data"]], last["has_more"]) == ([29, 30], False)


def test_the_same_content_is_the_same_dataset(http: httpx.Client) -> None:
    content = unique(3)
    first = upload(http, content, name="first")
    second = upload(http, content, name="second")
    assert (first.status_code, second.status_code) == (201, 200)
    assert second.json() == first.json()
    other = upload(http, content, answer="")  # read in another way: another dataset
    assert other.status_code == 201
    assert other.json()["columns"] == {"prompt": "prompt", "answer": None, "domain": None, "details": []}
    assert other.json()["id"] != first.json()["id"]


def test_the_same_content_at_once_is_one_dataset(place: Place) -> None:
    content, before = unique(3), kept(place)

    def send(_: int) -> httpx.Response:
        with place.http() as http:
            while (answer := upload(http, content)).status_code == 429:  # two of an owner at once
                assert error_of(answer, 429)["code"] == "busy"
                time.sleep(0.02)
            return answer

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(send, range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(kept(place)) == len(before) + 1


def test_columns_and_chat_messages(http: httpx.Client) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x" * 5000}]
    content = jsonl({"question": chat, "extra": {"truth": 7}})
    made = upload(http, content, prompt="question", answer="extra.truth").json()
    assert made["columns"] == {"prompt": "question", "answer": "extra.truth", "domain": None, "details": []}
    (row,) = http.get(f"/v1/datasets/{made['id']}/rows").json()["data"]
    assert row["answer"] == "7"
    assert row["prompt"][0] == chat[0]
    assert len(row["prompt"][1]["content"]) == 4000


def test_domains_and_details(http: httpx.Client) -> None:
    content = jsonl({"prompt": "p", "answer": "1", "kind": "math", "x": {"schema": {"a": 1}}, "k": [2]})
    columns = {"domain": "kind", "details": ["x.schema", "k"]}
    made = upload(http, content, **columns).json()
    assert made["columns"] == {"prompt": "prompt", "answer": "answer", **columns}
    (row,) = http.get(f"/v1/datasets/{made['id']}/rows").json()["data"]
    assert (row["domain"], row["details"]) == ("math", {"schema": {"a": 1}, "k": [2]})
    assert "no row has 'sort'" in error_of(upload(http, content, domain="sort"), 422)["message"]
    assert error_of(upload(http, content, details=["a.k", "b.k"]), 422)
    assert upload(http, content).json()["id"] != made["id"]


def test_lists_and_deletes(place: Place) -> None:
    owner = f"lists-{uuid.uuid4().hex[:8]}"
    with place.http(place.key("read", "submit", owner=owner)) as http:
        made = [upload(http, unique()).json()["id"] for _ in range(3)]
        first = http.get("/v1/datasets", params={"limit": 2}).json()
        rest = http.get("/v1/datasets", params={"after": first["data"][-1]["id"]}).json()
        assert [found["id"] for found in first["data"] + rest["data"]] == made[::-1]
        assert (first["has_more"], rest["has_more"], rest["next_after"]) == (True, False, None)
        assert http.delete(f"/v1/datasets/{made[0]}").json() == {"object": "dataset", "id": made[0], "deleted": True}
        for method, path in (("GET", ""), ("GET", "/rows"), ("DELETE", "")):
            assert error_of(http.request(method, f"/v1/datasets/{made[0]}{path}"), 404)["code"] == "not_found"
        assert error_of(http.get("/v1/datasets", params={"after": made[0]}), 422)["param"] == "after"
        assert len(http.get("/v1/datasets").json()["data"]) == 2
        upload(http, unique())
        first = http.get("/v1/datasets", params={"limit": 1}).json()
        assert http.delete(f"/v1/datasets/{first['data'][0]['id']}").status_code == 200
        rest = http.get("/v1/datasets", params={"after": first["next_after"]}).json()
        assert [found["id"] for found in rest["data"]] == made[:0:-1]
    assert kept(place, owner) == sorted(made[1:])


# -- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "content", "words"),
    [
        ("jsonl", jsonl(ROWS[0], b"{", [1], {"prompt": SECRET}), ["row 2: not valid JSON", "row 3: expected an object",
                                                                 "row 4: no 'answer'"]),
        ("jsonl", b"", ["is empty"]),
        ("jsonl", b"\n \n", ["is empty"]),
        ("jsonl", jsonl({"prompt": " ", "answer": "1"}), ["row 1: 'prompt' is empty"]),
        ("jsonl", jsonl({"prompt": "\ud800", "answer": "1"}), ["row 1: not valid JSON (not UTF-8)"]),
        ("csv", b"prompt,answer\n1+1,2\n1,2,3\n,5\n", ["row 2: expected 2 values", "row 3: 'prompt' is empty"]),
        ("csv", b"prompt,prompt\n1,2\n", ["the header names a column twice"]),
        ("csv", b"prompt,answer\n1+1,2\n\"open,3\n", ["row 2: not valid CSV"]),
        ("csv", b"prompt,answer\n1+1,\xff\n", ["not UTF-8 text"]),
        ("csv", b"question,answer\n1+1,2\n", ["row 1: no 'prompt'; found question, answer"]),
        ("csv", b"", ["is empty"]),
        ("parquet", b"PAR1 not really PAR1", ["not a Parquet file"]),
        ("parquet", table([{"prompt": "1+1", "answer": "2"}, {"prompt": None, "answer": "2"}]),
         ["row 2: 'prompt': expected text"]),
        ("parquet", table([{"prompt": "1+1", "answer": "2"}])[:-20], ["not a Parquet file"]),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_whole(
    place: Place, http: httpx.Client, format: str, content: bytes, words: list[str]
) -> None:
    before = kept(place)
    error = error_of(upload(http, content, format), 422)
    assert error["code"] == "invalid_dataset"
    for word in words:
        assert word in error["message"]
    assert str(place.state) not in error["message"]
    assert kept(place) == before


def test_a_small_file_of_much_text_is_refused(place: Place, http: httpx.Client) -> None:
    before, rows = kept(place), 5100
    text = arrow.DictionaryArray.from_arrays(arrow.array([0] * rows, arrow.int32()), arrow.array(["x" * 100_000]))
    parquet.write_table(arrow.table({"prompt": text, "answer": ["1"] * rows}), sink := io.BytesIO(), compression="zstd")
    assert len(sink.getvalue()) < 5000
    error = error_of(upload(http, sink.getvalue(), "parquet"), 422)
    assert (error["code"], "more than 500000000 characters of text" in error["message"]) == ("invalid_dataset", True)
    assert kept(place) == before


def test_at_most_20_problems_are_named(http: httpx.Client) -> None:
    message = error_of(upload(http, jsonl(*({"prompt": ""} for _ in range(100)))), 422)["message"]
    assert message.count("row ") == 20
    assert "row 20:" in message
    assert message.endswith("and maybe more")


def test_a_dashboards_session_uploads_as_its_key_may(place: Place) -> None:
    asked: dict[str, Any] = {"params": {"name": "sums", "format": "jsonl"}, "headers": {"origin": place.url}}
    for scopes, status in ((("read", "submit"), 201), (("read",), 403)):
        key = place.key(*scopes, owner=f"pages-{uuid.uuid4().hex[:8]}")
        with httpx.Client(base_url=place.url, timeout=30) as browser:
            browser.post("/signin", data={"key": key}, headers={"origin": place.url})
            answer = browser.post("/datasets", content=unique(), **asked)
            assert answer.status_code == status, answer.text
            if status == 201:
                with place.http(key) as http:
                    assert http.get(f"/v1/datasets/{answer.json()['id']}").json()["rows"] == 1
                assert browser.post("/datasets", content=jsonl({"prompt": "x" * 200_000}), **asked).status_code == 413


@pytest.mark.parametrize("chunked", [False, True])
def test_a_file_that_is_too_large_is_413_and_leaves_nothing(place: Place, http: httpx.Client, chunked: bool) -> None:
    before = kept(place)
    line = json.dumps({"prompt": "1+1", "answer": "2"}).encode() + b"\n"
    count = 100_000 // len(line) + 1
    content = (line for _ in range(count)) if chunked else line * count
    error = error_of(upload(http, content), 413)
    assert error["code"] == "body_too_large"
    assert "100000 bytes" in error["message"]
    assert kept(place) == before


def test_the_largest_that_fits_is_taken_without_a_length(http: httpx.Client) -> None:
    head = json.dumps({"prompt": uuid.uuid4().hex, "answer": "2"}).encode()
    content = head + b"\n" + b" " * (100_000 - len(head) - 1)
    made = upload(http, (content[i : i + 7000] for i in range(0, len(content), 7000)))
    assert made.status_code == 201, made.text
    assert made.json()["bytes"] == 100_000


def test_an_upload_that_breaks_off_leaves_nothing(place: Place, http: httpx.Client) -> None:
    before = kept(place)
    head = f"POST /v1/datasets?name=x&format=jsonl HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
    with socket.create_connection(("127.0.0.1", httpx.URL(place.url).port or 0)) as connection:
        connection.sendall(head.encode() + b"content-length: 5000\r\n\r\n" + b" " * 100)
        for _ in range(100):
            if kept(place) != before:
                break
            time.sleep(0.05)
        assert kept(place) != before  # the draft
    for _ in range(100):
        if kept(place) == before:
            break
        time.sleep(0.05)
    assert kept(place) == before
    assert http.get("/livez").status_code == 200


@pytest.mark.parametrize("path", ["/v1/datasets?name=x&format=jsonl", "/v1/jobs", "/v1/rewards/run"])
def test_a_body_that_stops_coming_is_let_go_and_leaves_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(Pace, "allowed_s", lambda *_: 0.3)
    before = kept(place)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", httpx.URL(place.url).port or 0), timeout=20) as connection:
        connection.sendall(head.encode() + b"content-length: 5000\r\n\r\n" + b" " * 100)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))  # until the server closes it
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"body_timeout"' in answer
    assert kept(place) == before


def test_other_bodies_keep_their_own_limit(redis_url: str, tmp_path: Path) -> None:
    with serving(redis_url, tmp_path) as place, place.http() as http:
        big = unique(40_000)
        assert len(big) > 1 << 20
        assert upload(http, big).status_code == 201
        for path in ("/v1/jobs", "/v1/datasets/", "/v1/rewards/run"):
            error_of(http.post(path, content=big, headers={"content-type": "application/json"}), 413)


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"format": "xml"}, "format"),
        ({"format": "../../x"}, "format"),
        ({"name": ""}, "name"),
        ({"name": "a\x1bb"}, "name"),
        ({"name": "x" * 129}, "name"),
        ({"prompt": ""}, "prompt"),
        ({"owner": "other"}, "owner"),
        ({"id": "ds-000000000000"}, "id"),
    ],
)
def test_wrong_parameters_are_named(http: httpx.Client, params: dict[str, str], param: str) -> None:
    given = {"name": "x", "format": "jsonl", **params}
    assert error_of(http.post("/v1/datasets", params=given, content=unique()), 422)["param"] == param


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "a/b\\c", "..", "é ü"])
def test_a_name_is_no_path(place: Place, http: httpx.Client, name: str) -> None:
    made = upload(http, unique(), name=name).json()
    assert made["name"] == name
    assert (place.state / "datasets" / place.owner / made["id"] / "data.jsonl").is_file()


@pytest.mark.parametrize(
    "wrong", ["ds-0123456789ab", "ds-XYZ", "..", "%2e%2e", "%2e%2e%2f%2e%2e", "ds-..%2fx", "%00", "x" * 300, "DS-0"]
)
def test_an_id_that_names_nothing_is_404(http: httpx.Client, wrong: str) -> None:
    for method, path in (("GET", ""), ("GET", "/rows"), ("DELETE", "")):
        assert http.request(method, f"/v1/datasets/{wrong}{path}").status_code in (404, 405)


def test_a_link_in_place_of_the_file_is_not_followed(place: Place, http: httpx.Client, tmp_path: Path) -> None:
    made = upload(http, unique()).json()
    outside = tmp_path / "outside.jsonl"
    outside.write_bytes(jsonl({"prompt": SECRET, "answer": "1"}))
    file = place.state / "datasets" / place.owner / made["id"] / "data.jsonl"
    file.unlink()
    file.symlink_to(outside)
    with pytest.raises(DatasetError, match="its file is gone"):
        resolve(f"dataset:{made['id']}", place.owner, place.state)
    http.delete(f"/v1/datasets/{made['id']}")
    assert outside.exists()


def test_an_owner_may_have_so_many(redis_url: str, tmp_path: Path) -> None:
    with serving(redis_url, tmp_path, datasets=2) as place, place.http() as http:
        content = unique()
        assert [upload(http, each).status_code for each in (content, unique(), content)] == [201, 201, 200]
        answer = upload(http, unique())
        assert error_of(answer, 429)["code"] == "too_many_datasets"
        assert answer.headers["retry-after"]
        with place.http(place.key("submit", owner="another")) as other:
            assert upload(other, unique()).status_code == 201


def test_drafts_of_a_crash_go(tmp_path: Path) -> None:
    datasets = Datasets(tmp_path, "me")
    left, young = datasets.draft("jsonl"), datasets.draft("jsonl")
    for draft in (left, young):
        draft.close()
    os.utime(left.directory, (0, 0))
    datasets.draft("jsonl").discard()
    assert not left.directory.exists()
    assert young.directory.exists()


# -- owners -------------------------------------------------------------------------------------------------


def test_another_owners_dataset_does_not_exist(place: Place) -> None:
    content = unique()
    with (
        place.http(place.key("admin", owner="ours")) as ours,
        place.http(place.key("admin", owner="theirs")) as theirs,
    ):
        made = upload(ours, content).json()["id"]
        for method, path in (("GET", ""), ("GET", "/rows"), ("DELETE", "")):
            foreign = theirs.request(method, f"/v1/datasets/{made}{path}")
            absent = theirs.request(method, f"/v1/datasets/ds-000000000000{path}")
            assert (foreign.status_code, foreign.content) == (404, absent.content)
        assert made not in {found["id"] for found in theirs.get("/v1/datasets").json()["data"]}
        assert error_of(submit(theirs, f"dataset:{made}"), 422)["param"] == "data.train"
        assert upload(theirs, content).status_code == 201  # what ours has says nothing to theirs
        assert ours.get(f"/v1/datasets/{made}").status_code == 200


def test_a_reader_uploads_and_deletes_nothing(place: Place) -> None:
    with place.http(place.key("read", owner="ours")) as http:
        error_of(upload(http, unique()), 403)
        error_of(http.delete("/v1/datasets/ds-000000000000"), 403)
        assert http.get("/v1/datasets").status_code == 200


# -- in a spec ----------------------------------------------------------------------------------------------


def submit(http: httpx.Client, train: str, validation: str | None = None, **more: Any) -> httpx.Response:
    data = {"type": "files", "train": train, "validation": validation or train}
    spec = {**SPEC, "policy": {"model": "someone/model"}, "data": data, **more}
    return http.post("/v1/jobs", json=spec, params={"validate_only": True})


def test_a_spec_names_a_dataset(place: Place, http: httpx.Client) -> None:
    text = "question,truth\n" + "".join(f"{row['prompt']},{row['answer']}\n" for row in ROWS)
    csv = upload(http, text.encode(), "csv", prompt="question", answer="truth").json()["id"]
    plain = upload(http, jsonl(*ROWS)).json()["id"]
    answer = submit(http, f"dataset:{csv}", f"dataset:{plain}")
    assert answer.status_code == 200, answer.text
    spec = parse_spec(answer.json()["spec"])
    splits = load_splits(spec, place.state, model="none", encoder=lambda _: [1], owner=place.owner)
    assert [prompt.text for prompt in splits.train] == [row["prompt"] for row in ROWS]
    assert [prompt.answer for prompt in splits.validation] == [row["answer"] for row in ROWS]
    with pytest.raises(DatasetError, match="no such dataset"):
        load_splits(spec, place.state, model="none", encoder=lambda _: [1], owner="somebody")


def test_what_a_dataset_lacks_is_said_at_submission(place: Place, http: httpx.Client) -> None:
    bare = upload(http, jsonl({"prompt": uuid.uuid4().hex}), answer="").json()["id"]
    error = error_of(submit(http, f"dataset:{bare}"), 422)
    assert "was uploaded without answers" in error["message"]
    for wrong in ("dataset:", "dataset:ds-000000000000", "dataset:../../x", "dataset:/etc/passwd"):
        error = error_of(submit(http, wrong), 422)
        assert error["param"] == "data.train"
        assert "no such dataset" in error["message"]
        assert str(place.state) not in error["message"]


# -- paths --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """open/ and closed/, and links from one to the other."""
    base = tmp_path_factory.mktemp("files")
    for name in ("open", "closed", "open-too"):
        (base / name).mkdir()
        (base / name / "rows.jsonl").write_bytes(jsonl(*ROWS, {"prompt": SECRET}))
        (base / name / "good.jsonl").write_bytes(jsonl(*ROWS))
    (base / "open" / "link.jsonl").symlink_to(base / "closed" / "good.jsonl")
    (base / "open" / "folder").symlink_to(base / "closed")
    (base / "closed" / "link.jsonl").symlink_to(base / "open" / "good.jsonl")
    (base / "open" / "loop").symlink_to(base / "open" / "loop")
    return base


OUTSIDE = ["closed/good.jsonl", "closed/nothing.jsonl", "open/../closed/good.jsonl", "open/link.jsonl",
           "open/folder/good.jsonl", "open/loop/x.jsonl", "open-too/good.jsonl", ".", "open/../../x"]  # fmt: skip


def test_roots_bound_everybody(redis_url: str, tmp_path: Path, files: Path) -> None:
    with serving(redis_url, tmp_path, data_roots=(files / "open",)) as place:
        for key in (KEY, place.key("submit", owner="acme")):
            with place.http(key) as http:
                assert submit(http, str(files / "open/good.jsonl")).status_code == 200
                assert submit(http, str(files / "closed/link.jsonl")).status_code == 200  # where it leads counts
                said = set()
                for name in OUTSIDE:
                    error = error_of(submit(http, str(files / "open/good.jsonl"), str(files / name)), 422)
                    assert error["param"] == "data.validation", name
                    said.add(error["message"])
                assert len(said) == 1  # nothing tells what is there and what isn't
                for name in ("~/x.jsonl", "rows.jsonl", "pyproject.toml", "/etc/passwd", "/proc/self/environ"):
                    assert "operator allowed" in error_of(submit(http, name), 422)["message"]
                good = str(files / "open/good.jsonl")
                inside = error_of(submit(http, good, policy={"model": str(files / "open")}), 422)
                assert "config.json" in inside["message"]
                for more in ({"init_checkpoint": str(files / "closed")}, {"policy": {"model": str(files / "closed")}}):
                    assert "operator allowed" in error_of(submit(http, good, **more), 422)["message"]
                assert submit(http, good, policy={"model": "someone/model"}).status_code == 200


def test_urls_below_a_root_are_open_to_everybody_and_others_to_nobody(
    redis_url: str, tmp_path: Path, files: Path
) -> None:
    root = f"file://{files}/open"
    with serving(redis_url, tmp_path, data_urls=(root,)) as place:
        for key in (KEY, place.key("submit", owner="acme")):
            with place.http(key) as http:
                good = f"{root}/good.jsonl"
                assert submit(http, good).status_code == 200
                said = set()
                for name in ("closed/good.jsonl", "closed/nothing.jsonl", "open-too/good.jsonl", "open/link.jsonl"):
                    error = error_of(submit(http, good, f"file://{files}/{name}"), 422)
                    assert error["param"] == "data.validation", name
                    said.add(error["message"].replace(name, ""))
                assert len(said) == 1
                error = error_of(submit(http, good, f"{root}/rows.jsonl"), 422)
                assert error["message"].startswith("data.validation: row 31: ")
                assert SECRET not in error["message"]


def test_the_hubs_datasets_are_open_to_the_own_owner_unless_roots_bound_it(
    redis_url: str, tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(url: str, _: Path, **__: Any) -> Path:
        assert url == hub
        return files / "open/good.jsonl"

    monkeypatch.setattr("orchestrator.checks.preflight.fetch", fetched)  # the hub is out of reach
    hub = "hf://datasets/org/name/train.jsonl"
    with serving(redis_url, tmp_path / "free") as place:
        other = place.key("submit", owner="acme")
        with place.http() as own, place.http(other) as http:
            assert submit(own, hub).status_code == 200
            assert "operator allowed" in error_of(submit(own, "hf://org/model/train.jsonl"), 422)["message"]
            assert "operator allowed" in error_of(submit(http, hub), 422)["message"]
    with serving(redis_url, tmp_path / "bound", data_roots=(files / "open",)) as place, place.http() as own:
        assert "operator allowed" in error_of(submit(own, hub), 422)["message"]


def test_several_files_and_a_share_in_a_spec(redis_url: str, tmp_path: Path, files: Path) -> None:
    with serving(redis_url, tmp_path) as place, place.http() as http:

        def told(train: Any, validation: Any) -> httpx.Response:
            data = {"type": "files", "train": train, "validation": validation}
            spec = {**SPEC, "policy": {"model": "someone/model"}, "data": data}
            return http.post("/v1/jobs", json=spec, params={"validate_only": True})

        good = str(files / "open/good.jsonl")
        for train, validation in (([good], {"share": 0.5}), (str(files / "open/go*.jsonl"), [good])):
            assert told(train, validation).json()["spec"]["data"]["train"] == train
        error = error_of(told([good], {"share": 1e-9}), 422)
        assert error["message"].startswith("data.validation.share: 1e-09 holds back none of the 30 prompts; raise it")
        error = error_of(told([good, str(files / "open/rows.jsonl")], good), 422)
        assert error["message"].startswith("data.train.1: row 31: ")
        assert str(files) not in error["message"]
        error = error_of(told(str(files / "open/*.jsonl"), good), 422)
        assert error["message"].startswith("data.train: rows.jsonl: row 31: ")
        assert SECRET not in error["message"]


def test_without_roots_other_owners_have_datasets_alone(place: Place, files: Path) -> None:
    good = str(files / "open/good.jsonl")
    with place.http() as own, place.http(place.key("read", "submit", owner="acme")) as http:
        assert submit(own, good).status_code == 200
        assert error_of(submit(http, good), 422)["param"] == "data.train"
        assert "not open to this owner" in error_of(submit(http, "/no/such/file.jsonl"), 422)["message"]
        made = f"dataset:{upload(http, unique(3)).json()['id']}"
        assert submit(http, made).status_code == 200
        for more, field in (
            ({"policy": {"model": str(files / "open")}}, "policy.model"),
            ({"policy": {"model": "./services"}}, "policy.model"),
            ({"policy": {"model": "tests/integration"}}, "policy.model"),
            ({"policy": {"model": "a/../../x"}}, "policy.model"),
            ({"init_checkpoint": str(files / "open")}, "init_checkpoint"),
            ({"init_checkpoint": str(place.state / "jobs")}, "init_checkpoint"),
        ):
            assert error_of(submit(http, made, **more), 422)["param"] == field


def test_an_owners_own_checkpoints_are_open(place: Place) -> None:
    with (
        place.http(place.key("admin", owner="ours")) as ours,
        place.http(place.key("admin", owner="theirs")) as theirs,
    ):
        job = ours.post("/v1/jobs", json={**SPEC, "data": {"type": "quickstart"}}).json()["id"]
        spec = {**SPEC, "data": {"type": "quickstart"}}
        path = str(place.state / "jobs" / job / "checkpoints" / "000001" / "policy")
        for http, word in ((ours, "no directory"), (theirs, "not open to this owner")):
            answer = http.post("/v1/jobs", json={**spec, "init_checkpoint": path})
            assert word in error_of(answer, 422)["message"]


def test_a_fork_reaches_no_further(place: Place, files: Path) -> None:
    with place.http(place.key("admin", owner="forks")) as http:
        job = http.post("/v1/jobs", json={**SPEC, "data": {"type": "quickstart"}}).json()["id"]
        store = place.store.of_owner("forks")
        lease = store.claim(job, nonce=uuid.uuid4().hex, ttl_s=60).lease
        assert lease is not None
        directory = place.state / "jobs" / job / "checkpoints" / "000001"
        policy = directory / "policy"
        policy.mkdir(parents=True)
        for name, content in (("config.json", "{}"), ("x.safetensors", ""), ("tokenizer.json", "{}")):
            (policy / name).write_text(content)
        store.commit(lease, step=1, digest="0" * 64, record={})
        store.register_checkpoint(lease, step=1, path=str(directory), digest="0" * 64)
        data = {"type": "files", "train": str(files / "open/good.jsonl"), "validation": "/etc/passwd"}
        changes = {"data": data, "policy": {"model": "someone/model"}}
        answer = http.post(f"/v1/jobs/{job}/fork", json={"checkpoint": 1, "changes": changes})
        assert error_of(answer, 422)["param"] == "data.train"
        made = f"dataset:{upload(http, unique()).json()['id']}"
        changes["data"] = {**data, "train": made, "validation": made}
        problem = http.post(f"/v1/jobs/{job}/fork", json={"checkpoint": 1, "changes": changes})
        assert error_of(problem, 409)["code"] == "checkpoint_unusable"  # its files are sham; the rest was accepted


def test_roots_come_from_the_environment() -> None:
    given = {"EQUIPOISE_DATA_ROOTS": os.pathsep.join(["/a", "/b c"]), "EQUIPOISE_MODEL_ROOTS": "/m"}
    found = Limits.from_environment({**given, "EQUIPOISE_MAX_DATASET_BYTES": "9"})
    assert (found.data_roots, found.model_roots) == ((Path("/a"), Path("/b c")), (Path("/m"),))
    assert found.dataset_bytes == 9
    default = Limits.from_environment({})
    assert (default.data_roots, default.model_roots, default.dataset_bytes) == (None, (), 256 << 20)
    with pytest.raises(ValueError, match="EQUIPOISE_DATA_ROOTS: expected absolute paths"):
        Limits.from_environment({"EQUIPOISE_DATA_ROOTS": "data"})


# -- models -------------------------------------------------------------------------------------------------


def test_models_are_policies_and_checkpoints(redis_url: str, tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name, weights in (("good", "x.safetensors"), ("pickled", "x.bin")):
        (models / name).mkdir(parents=True)
        for file, content in (("config.json", "{}"), (weights, ""), ("tokenizer.json", "{}")):
            (models / name / file).write_text(content)
    (models / "link").symlink_to(tmp_path)
    with serving(redis_url, tmp_path / "state", model_roots=(models, tmp_path / "absent")) as place:
        store = place.store.of_owner("acme")
        with place.http(place.key("read", "submit", owner="acme")) as http, place.http() as own:
            job = http.post("/v1/jobs", json={**SPEC, "data": {"type": "quickstart"}}).json()["id"]
            lease = store.claim(job, nonce=uuid.uuid4().hex, ttl_s=60).lease
            assert lease is not None
            for step in (1, 2):
                store.commit(lease, step=step, digest="0" * 64, record={})
                store.register_checkpoint(lease, step=step, path=f"/c/{step}", digest="0" * 64)
            store.update_checkpoints(lease, {2: {"on_front": True}})
            found = http.get("/v1/models").json()
            assert found["object"] == "list"
            for model in found["data"]:
                assert model["object"] == "model"
                assert isinstance(model["created"], int)
                assert model["owned_by"]
            expected = ["quickstart", str(models / "good"), f"{job}:step-2"]
            assert [model["id"] for model in found["data"]] == expected
            assert [model["id"] for model in own.get("/v1/models").json()["data"]] == expected[:2]
            spec = {**SPEC, "data": {"type": "quickstart"}, "policy": {"model": str(models / "good")}}
            assert http.post("/v1/jobs", json=spec).status_code == 201


# -- the command --------------------------------------------------------------------------------------------


def test_the_command_uploads_lists_shows_and_deletes(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_URL", place.url)
    monkeypatch.setenv("EQUIPOISE_API_KEY", place.key("read", "submit", owner=f"cli-{uuid.uuid4().hex[:8]}"))

    def run(*words: str) -> Any:
        return CliRunner().invoke(cli, ["--state-dir", str(tmp_path), "datasets", *words])

    assert "no datasets yet" in run("list").stderr
    file = tmp_path / "sums.csv"
    file.write_text("q,answer\n1+1,2\n")
    made = run("upload", str(file), "--prompt-column", "q")
    assert made.exit_code == 0, made.output
    reference = made.stdout.strip()
    assert reference.startswith("dataset:ds-")
    assert "sums.csv" in run("list").stdout
    shown = run("show", reference).stdout
    assert "1: 1+1  ->  2" in shown
    assert json.loads(run("show", reference, "--json").stdout)["rows"] == 1
    assert "deleted" in run("delete", reference.removeprefix("dataset:")).stdout
    assert run("show", "../jobs").exit_code == 2
    assert "expected a .jsonl, .csv or .parquet file" in run("upload", str(tmp_path / "x.txt")).stderr
    assert "No such file" in run("upload", str(tmp_path / "x.csv")).stderr
