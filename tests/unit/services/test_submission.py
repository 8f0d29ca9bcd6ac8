"""A spec on its way from a terminal to the server: whose paths they are, and what is refused before it is sent."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.report import render_report
from orchestrator.spec import JobSpec, load_spec, parse_job, parse_spec
from orchestrator.spec_errors import SpecError
from orchestrator.stored_spec import read_stored
from services.client import ApiError
from services.spec_checks import strict_spec
from services.submission import again, anchored, anchored_changes, load, naming_files

JOBS = Path(__file__).parents[3] / "deploy" / "jobs"


def document(**changes: Any) -> dict[str, Any]:
    rated = {"name": "rated", "reward": {"name": "regression", "options": {"model": "./my-reward"}}, "range": [0, 1]}
    return {
        "name": "a job", "steps": 1, "policy": {"model": "quickstart"}, "data": {"type": "quickstart"},
        "objectives": [{"name": "accuracy", "reward": {"name": "math"}}, rated], "gold": {"reward": rated["reward"]},
        **changes,
    }  # fmt: skip


def test_a_reward_models_path_is_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    found = {}
    for model in ("./my-reward", "here", "~/my-reward", "/my-reward", "someone/model"):
        spec = document()
        spec["objectives"][1]["reward"]["options"]["model"] = model
        sent = anchored(parse_spec(spec))
        found[model] = sent["objectives"][1]["reward"]["options"]["model"]
        assert sent["gold"]["reward"]["options"]["model"] == found[model]
    assert found == {
        "./my-reward": f"{tmp_path}/my-reward", "here": f"{tmp_path}/here", "~/my-reward": "/home/me/my-reward",
        "/my-reward": "/my-reward", "someone/model": "someone/model",
    }  # fmt: skip


def test_paths_in_a_forks_changes_are_the_callers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rated = {"name": "rated", "reward": {"name": "regression", "options": {"model": "./my-reward"}}}
    changes = {"data": {"train": "new.jsonl", "test": "dataset:x"}, "policy": {"model": "./p"}, "objectives": [rated]}
    sent = anchored_changes(changes)
    assert sent["data"] == {"train": f"{tmp_path}/new.jsonl", "test": "dataset:x"}
    assert sent["policy"]["model"] == f"{tmp_path}/p"
    assert sent["objectives"][0]["reward"]["options"]["model"] == f"{tmp_path}/my-reward"
    assert rated["reward"] == {"name": "regression", "options": {"model": "./my-reward"}}  # the caller's own stays


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps": 3},
        {"data": 3, "policy": None, "objectives": "all", "gold": []},
        {"data": {"train": 3}, "objectives": [3, {}, {"reward": {"name": "nobody", "options": {"model": "./x"}}}]},
        {"objectives": [{"reward": {"name": "regression", "options": 3}}]},
    ],
)
def test_what_is_wrong_with_changes_the_server_says(changes: dict[str, Any]) -> None:
    assert anchored_changes(changes) == changes


def test_nothing_is_sent_that_nobody_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = document(optimizer={"lr": 1e-6}, gold={"reward": {"name": "exact"}})
    written["objectives"][1]["reward"]["options"]["model"] = "someone/model"
    path = tmp_path / "job.json"
    path.write_text(json.dumps(written))
    assert load(path) == written


def test_a_job_is_made_again_from_its_record_or_its_report(tmp_path: Path) -> None:
    """With the commit that its policy had, and what its version did where its spec says nothing."""
    policy = {"model": "org/model", "revision": None}
    data = {"type": "files", "train": "/data/train.jsonl", "validation": "/data/held_out.jsonl"}
    changes = {"policy": policy, "data": data, "optimizer": {"lr": 1e-6}}
    stored = json.loads(parse_spec(anchored_changes(document(**changes))).to_json())
    del stored["weighting"]["least"], stored["checkpoints"]["front"]  # of an earlier version
    made_of = {"policy": {"model": "org/model", "commit": "c" * 40}}
    events: list[dict[str, Any]] = [{"type": "job.queued"}, {"type": "job.software", "data": made_of}]
    (tmp_path / "again.yaml").write_text(again(stored, events), encoding="utf-8")
    spec = read_stored(json.dumps(stored))
    report = render_report(job={}, spec=spec.model_dump(mode="json"), steps=[], front=None, samples=[], events=events)
    (tmp_path / "report.html").write_text(report, encoding="utf-8")
    assert isinstance(spec, JobSpec)
    wanted = spec.model_copy(update={"policy": spec.policy.model_copy(update={"revision": "c" * 40})})
    for name in ("again.yaml", "report.html"):
        sent = load(tmp_path / name)
        assert parse_job(sent) == wanted
        assert (sent["weighting"]["least"], sent["checkpoints"]["front"]) == (0.0, 256)
    (tmp_path / "old.html").write_text("<html></html>")
    with pytest.raises(SpecError, match=r"old\.html: no report of a job, or one of an older version"):
        load_spec(tmp_path / "old.html")


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_is_sent_is_the_same_job(path: Path) -> None:
    spec = load_spec(path)
    whole = spec.model_dump(mode="json")
    sent = parse_job(load(path)).model_dump(mode="json")
    assert {name: sent[name] for name in sent if name not in ("data", "training")} == {
        name: whole[name] for name in whole if name not in ("data", "training")
    }


def test_a_refused_file_is_named_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"type": "files", "train": "dataset:x", "validation": "dataset:y", "sets": {"z": ["z.jsonl"]}}
    sent = anchored(parse_spec(document(policy={"model": "./policy"}, data=data)))
    named = rf"data\.sets\.z\.0: .*{tmp_path}/z\.jsonl.*: no such file"
    with pytest.raises(ApiError, match=named), naming_files(sent):
        raise ApiError(422, "invalid_spec", "data.sets.z.0: no such file", "data.sets.z.0")
    fields = ("objectives.1.reward.options.model", "policy.model", "data.train")
    lines = "; ".join(f"{field}: not there" for field in fields)
    with pytest.raises(ApiError) as caught, naming_files(sent):
        raise ApiError(422, "invalid_spec", lines, fields[0], retry_after_s=5, request_id="r1")
    assert (caught.value.param, caught.value.retry_after_s, caught.value.request_id) == (fields[0], 5, "r1")
    assert caught.value.message == (
        f"objectives.1.reward.options.model: {tmp_path}/my-reward: not there; policy.model: {tmp_path}/policy: not "
        "there; data.train: dataset:x: not there"
    )


@pytest.mark.parametrize("kind", ["alignment", "reward_model"])
def test_the_api_asks_more_of_a_new_name_than_of_a_stored_one(kind: str) -> None:
    training = {
        "name": "a job",
        "kind": kind,
        "training": {"model": "a/b", "train": ["t.jsonl"], "heads": [{"name": "good"}]},
    }
    new = document(kind=kind) if kind == "alignment" else training
    strict_spec(new)
    with pytest.raises(SpecError, match="name: has control characters"):
        strict_spec({**new, "name": "a\u2028b"})
    assert parse_job({**new, "name": "a\u2028b"}).name == "a\u2028b"
