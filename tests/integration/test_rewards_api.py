"""Rewards over HTTP on a real Redis behind a real socket: options are checked, pairs are scored, nothing hangs."""

import json
import logging
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator import children
from orchestrator.checks.access import Access
from orchestrator.state.embedded_redis import connect
from orchestrator.state.store import JobStore
from rewards import registry
from services.api import rewards as rewards_api
from services.errors import ApiProblem
from services.keys import digest
from services.server import ApiServer
from services.settings import Settings
from tests.judge_server import answers, says, serving, write_profiles
from tests.support import install

KEY = "eqp_test"
SECRET = "hunter2-do-not-repeat"
SAMPLES = [
    {"prompt": "30-1+6=", "completion": "\\boxed{35}", "answer": "35", "completion_tokens": 10},
    {"prompt": "30-1+6=", "completion": "\\boxed{\\frac{70}{2}}", "answer": "35", "completion_tokens": 50},
    {"prompt": "30-1+6=", "completion": "no idea", "answer": "35", "completion_tokens": 200, "truncated": True},
]


@pytest.fixture(scope="module")
def http(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    client = connect(redis_url)
    server = ApiServer("127.0.0.1", 0)
    settings = Settings(state_dir=tmp_path_factory.mktemp("rewards"), key_sha256=digest(KEY))
    server.start(JobStore(client, owner=f"rewards-{uuid.uuid4().hex}"), settings)
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as http:
        yield http
    server.stop()
    client.close()


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"]
    assert SECRET not in answer.text
    document = dict(answer.json()["error"])
    assert document.keys() == {"type", "code", "message", "param"}
    return document


def run(http: httpx.Client, *rewards: Any, samples: Any = SAMPLES, **more: Any) -> httpx.Response:
    chosen = [{"name": reward} if isinstance(reward, str) else reward for reward in rewards]
    return http.post("/v1/rewards/run", json={"rewards": chosen, "samples": samples, **more})


def test_options_come_back_with_their_defaults(http: httpx.Client) -> None:
    answer = http.post("/v1/rewards/validate", json={"name": "math", "options": {"timeout_s": 1.5}})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "object": "reward.validation",
        "valid": True,
        "name": "math",
        "range": [0.0, 1.0],
        "options": {"missing": "error", "require_boxed": True, "timeout_s": 1.5},
    }
    assert http.post("/v1/rewards/validate", json={"name": "clarity"}).json()["valid"] is True


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"name": "maths"}, "name", "did you mean 'math'"),
        ({"name": "math", "options": {"timeout": 1}}, "options.timeout", "did you mean 'timeout_s'"),
        ({"name": "math", "options": {"timeout_s": SECRET}}, "options.timeout_s", "valid number"),
        ({"name": "math", "options": {"timeout_s": -1}}, "options.timeout_s", "greater than 0"),
        ({"name": "math", "options": []}, "options", "dictionary"),
        ({"name": 5}, "name", "string"),
        ({"options": {}}, "name", "required"),
        ({"name": "math", "extra": 1}, "extra", "unknown field; fields are name, options"),
        ({"name": "math", "option": {}}, "option", "unknown field, did you mean 'options'?"),
        ([], None, "body"),
        ("math", None, "body"),
    ],
)
def test_what_is_wrong_is_named(http: httpx.Client, body: Any, param: str | None, words: str) -> None:
    error = error_of(http.post("/v1/rewards/validate", json=body), 422)
    assert (error["code"], error["param"]) == ("invalid_reward", param)
    assert words in error["message"]


def test_pairs_are_scored(http: httpx.Client) -> None:
    capped = {"name": "conciseness", "options": {"max_tokens": 20}}
    answer = run(http, "math", "conciseness", capped, max_tokens=200)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert document["object"] == "reward.run"
    assert [reward["name"] for reward in document["rewards"]] == ["math", "conciseness", "conciseness"]
    scores = [reward["scores"] for reward in document["rewards"]]
    assert scores[0] == [1.0, 1.0, 0.0]
    assert scores[1] == pytest.approx([0.95, 0.75, 0.0])
    assert scores[2] == pytest.approx([0.5, 0.0, 0.0])
    assert document["samples"][0] == {"completion_tokens": 10, "estimated": False}


def test_rewards_see_what_follows_the_thoughts(http: httpx.Client) -> None:
    texts = (r"it is \boxed{3}? </think> \boxed{4}", r"it is \boxed{4}", r"\boxed{4} </think> no")
    samples = [{"prompt": "2+2", "completion": text, "answer": "4", "completion_tokens": 9} for text in texts]
    for thoughts, expected in (({}, [1.0, 1.0, 1.0]), ({"thoughts_end": "</think>"}, [1.0, 0.0, 0.0])):
        document = run(http, "math", samples=samples, **thoughts).json()
        assert document["rewards"][0]["scores"] == expected
        assert document["samples"][0] == {"completion_tokens": 9, "estimated": False}


def test_a_sample_has_a_domain_details_and_a_chat(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def ask(_: str, question: dict[str, Any], **__: Any) -> dict[str, Any]:
        asked.append(question)
        return {"scores": [[None, 0.5]], "heads": [{"safe": [None, 0.5]}], "cost": 0.0}

    monkeypatch.setattr(children, "ask", ask)
    chat = [{"role": "user", "content": "hi"}]
    first = {"prompt": "p", "completion": "c", "domain": "code", "details": {"schema": {"a": 1}}, "messages": chat}
    document = run(http, "math", samples=[first, {"prompt": "p", "completion": "c"}]).json()
    assert document["rewards"][0]["scores"] == [None, 0.5]
    assert document["rewards"][0]["heads"] == {"safe": [None, 0.5]}
    batch = asked[0]["batch"]
    assert (batch["domains"], batch["details"]) == (["code", None], [{"schema": {"a": 1}}, {}])
    assert batch["messages"] == [chat, [{"role": "user", "content": "p"}]]


def test_rewards_are_listed_and_one_is_described(http: httpx.Client) -> None:
    listed = {reward["name"]: reward for reward in http.get("/v1/rewards").json()["data"]}
    assert listed == {reward["name"]: reward for reward in http.get("/v1/rewards?details=1").json()["data"]}
    one = http.get("/v1/rewards/math").json()
    assert one == {"object": "reward", **listed["math"]}
    assert one["plugin"] is None
    assert error_of(http.get(f"/v1/rewards/{SECRET}"), 404)
    assert error_of(http.get("/v1/rewards?detail=1"), 422)["code"] == "unknown_parameter"


def test_a_plugin_is_listed_without_being_imported(
    http: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", "broken", {"broken": "1 / 0"}, {registry.ENTRY_POINT_GROUP: {"broken": "broken:X"}})
    monkeypatch.syspath_prepend(tmp_path / "site")
    registry._plugins.cache_clear()
    try:
        listed = {reward["name"]: reward for reward in http.get("/v1/rewards").json()["data"]}
        unknown = {"summary": None, "range": None, "options": None}
        assert listed["broken"] == {"name": "broken", "plugin": "broken:X", **unknown}
        for path in ("/v1/rewards/broken", "/v1/rewards?details=1"):
            assert error_of(http.get(path), 500)["code"] == "plugin_broken"
    finally:
        registry._plugins.cache_clear()


def test_tokens_are_estimated_where_they_are_not_given(http: httpx.Client) -> None:
    samples = [{"prompt": "p", "completion": "x" * 41}]
    document = run(http, "conciseness", samples=samples, max_tokens=110).json()
    assert document["samples"] == [{"completion_tokens": 11, "estimated": True}]
    assert document["rewards"][0]["scores"] == pytest.approx([0.9])


def test_a_reward_that_cannot_score_is_named(http: httpx.Client) -> None:
    samples = [{"prompt": "1+1", "completion": SECRET}]
    error = error_of(run(http, "clarity", "math", samples=samples), 422)
    assert (error["code"], error["param"]) == ("reward_failed", "rewards.1")
    assert error["message"] == ("rewards.1: row 0 has no ground truth; this reward needs an answer for every prompt")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"rewards": []}, "rewards"),
        ({"rewards": [{"name": "math"}] * 33}, "rewards"),
        ({"rewards": [{"name": "math"}, {"name": SECRET}]}, "rewards.1.name"),
        ({"rewards": [{"name": "math"}, {"name": "math", "options": {"x": 1}}]}, "rewards.1.options.x"),
        ({"samples": []}, "samples"),
        ({"samples": SAMPLES[:1] * 65}, "samples"),
        ({"samples": [{"prompt": SECRET}]}, "samples.0.completion"),
        ({"samples": [{**SAMPLES[0], "completon": SECRET}]}, "samples.0.completon"),
        ({"samples": [{**SAMPLES[0], "completion_tokens": -1}]}, "samples.0.completion_tokens"),
        ({"samples": [{**SAMPLES[0], "answer": 35}]}, "samples.0.answer"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"thoughts_end": ""}, "thoughts_end"),
        ({"owner": "other"}, "owner"),
    ],
)
def test_a_wrong_run_is_422(http: httpx.Client, change: dict[str, Any], param: str) -> None:
    body = {"rewards": [{"name": "math"}], "samples": SAMPLES, **change}
    error = error_of(http.post("/v1/rewards/run", json=body), 422)
    assert (error["code"], error["param"]) == ("invalid_reward", param)


def test_a_judge_is_listed_checked_and_asked_without_its_address(
    http: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="equipoise.audit")
    reward = {"name": "judge", "options": {"profile": "strict", "rubric": "style"}}
    assert "judge" in {found["name"] for found in http.get("/v1/rewards").json()["data"]}
    monkeypatch.delenv("EQUIPOISE_JUDGES", raising=False)
    assert http.get("/v1/judges").json()["data"] == []
    error = error_of(run(http, reward), 422)
    assert error["param"] == "rewards.0.options.profile"
    assert "this installation has no judges" in error["message"]
    (tmp_path / "key").write_text(SECRET)
    with serving(says('{"reason": "fine", "score": 10}')) as judge:
        profile = {"base_url": judge.url, "allow_private": True, "api_key_file": str(tmp_path / "key")}
        profile["price_per_million_output_tokens"] = 1e6
        monkeypatch.setenv("EQUIPOISE_JUDGES", str(write_profiles(tmp_path, strict=profile, cheap=profile)))
        listed = http.get("/v1/judges")
        assert listed.json()["data"] == [{"object": "judge", "name": name} for name in ("cheap", "strict")]
        checked = http.post("/v1/rewards/validate", json=reward)
        assert checked.status_code == 200, checked.text
        scored = run(http, reward, "conciseness")
        assert scored.status_code == 200, scored.text
        assert scored.json()["rewards"][0]["scores"] == [1.0, 1.0, 1.0]
        assert judge.headers[0]["authorization"] == f"Bearer {SECRET}"
        assert scored.json()["cost"] == 30.0  # of ten tokens each
        told = [json.loads(record.message) for record in caplog.records if "judges_cost" in record.message]
        assert [line["judges_cost"] for line in told] == [30.0]
        voted = {**reward, "options": {**reward["options"], "votes": 16, "temperature": 0.7}}
        many = error_of(run(http, voted, samples=SAMPLES[:1] * 5), 422)
        assert "asked 80 questions, at most 64 are" in many["message"]
        judge.script = answers(401, SECRET)
        refused = run(http, reward)
        assert "JudgeUnavailableError: judge 'strict': it answered 401" in error_of(refused, 422)["message"]
        for answer in (listed, checked, scored, refused):
            assert str(judge.port) not in answer.text
    (tmp_path / "judges.yaml").write_text(f"judges: [{SECRET}]")
    assert error_of(http.get("/v1/judges"), 500)["code"] == "judges_broken"
    assert "equipoise judges" in error_of(http.post("/v1/rewards/validate", json=reward), 422)["message"]


def test_algebra_without_end_is_cut_short(http: httpx.Client) -> None:
    samples = [{"prompt": "p", "completion": "\\boxed{9^{9^{9^9}}}", "answer": "x+1"}]
    began = time.monotonic()
    reward = {"name": "math", "options": {"timeout_s": 0.5}}
    assert run(http, reward, samples=samples).json()["rewards"][0]["scores"] == [0.0]
    assert time.monotonic() - began < 60


def test_a_run_that_takes_too_long_is_503_and_leaves_no_process(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewards_api, "_TIMEOUT_S", 2.0)
    samples = [{"prompt": "p", "completion": f"\\boxed{{9^{{9^{{9^{i}}}}}}}", "answer": "x+1"} for i in range(5, 40)]
    reward = {"name": "math", "options": {"timeout_s": 60.0}}
    answer = run(http, reward, samples=samples)
    assert error_of(answer, 503)["code"] == "reward_timeout"
    assert answer.headers["retry-after"]
    for _ in range(50):
        if not _children():
            break
        time.sleep(0.1)
    assert _children() == []


def _children() -> list[str]:
    """Command lines of what scores."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"rewards.dry_run" in words:
            found.append(b" ".join(words).decode())
    return found


def test_a_child_knows_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tell_all.py").write_text(
        "import json, os, sys; json.load(sys.stdin); "
        f"print(json.dumps([name for name, value in os.environ.items() if {SECRET!r} in value or name == 'HF_HOME']))"
    )
    (tmp_path / "die.py").write_text("import os; os._exit(3)")
    (tmp_path / "hang.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("EQUIPOISE_REDIS_URL", f"redis://:{SECRET}@host")
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN", "WANDB_API_KEY", "SOME_PLUGINS_PASSWORD"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("HF_HOME", "/models")
    assert children.ask("tell_all", {}, timeout_s=20) == ["HF_HOME"]
    assert set(children.ask("tell_all", {}, timeout_s=20, sees=("EQUIPOISE_REDIS_URL",))) == {
        "HF_HOME",
        "EQUIPOISE_REDIS_URL",
    }
    with pytest.raises(children.ChildError, match="status 3"):
        children.ask("die", {}, timeout_s=20)
    with pytest.raises(children.ChildTimeout):
        children.ask("hang", {}, timeout_s=0.5)


def test_a_model_of_this_machine_is_not_open_to_other_owners(tmp_path: Path) -> None:
    """Neither checked nor loaded, whatever is there: the answer is the same as for nothing."""
    (tmp_path / "model").mkdir()
    choice = rewards_api.RewardChoice(name="regression", options={"model": str(tmp_path / "model")})
    with pytest.raises(ApiProblem, match=r"rewards\.0\.options\.model: paths on the server's machine") as caught:
        rewards_api._resolved(choice, "rewards.0", Access(owner="them", state_dir=tmp_path, roots=()))
    assert caught.value.status == 422
    open_to_all = Access(owner="local", state_dir=tmp_path, roots=None)
    with pytest.raises(ApiProblem, match=r"rewards\.0\.options\.model: this path has no config\.json"):
        rewards_api._resolved(choice, "rewards.0", open_to_all)
    for name, text in (("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", "")):
        (tmp_path / "model" / name).write_text(text)
    assert rewards_api._resolved(choice, "rewards.0", open_to_all)["name"] == "regression"
