"""What is wrong with a job's files is said before it is accepted, with the field that names them."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from orchestrator import children
from orchestrator.build import prompt_encoder
from orchestrator.checks.access import Access
from orchestrator.checks.doubts import doubts
from orchestrator.checks.preflight import look, preflight
from orchestrator.rollouts.prompts import Contents, DatasetError, Prompt, encode
from orchestrator.spec import JobSpec, parse_spec
from orchestrator.specs.data import Columns
from orchestrator.storage.datasets import Datasets
from policies.models import ModelError, load_tokenizer
from rewards import registry
from rewards.base import RewardBatch
from rewards.verifiers.rows import MissingRow
from tests.judge_server import write_profiles
from tests.support import make_policy

CONTEXT = 20
COMPARING = ("exact", "math", "numeric", "right_within", "text", "tool_call")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": CONTEXT}))
    (folder / "model.safetensors").write_bytes(b"")
    tokenizer = Tokenizer(WordLevel({"word": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    row = json.dumps({"prompt": "word " * 5, "answer": "1"})
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(f"{row}\n{row}\n")
    return {"type": "files"} | {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation", "test")}


def make_spec(model: Path | str, data: dict[str, Any], **changes: Any) -> JobSpec:
    return parse_spec(
        {
            "name": "preflight",
            "steps": 1,
            "policy": {"model": str(model)},
            "data": data,
            "objectives": [
                {"name": "brevity", "reward": {"name": "conciseness"}},
                {"name": "accuracy", "reward": {"name": "math"}},
            ],
            "rollout": {"max_tokens": 10},
            **changes,
        }
    )


def problem(spec: JobSpec) -> tuple[str, str]:
    """The one problem, in one line."""
    ((field, message),) = preflight(spec)
    assert "\n" not in message
    return field, message


def test_nothing_is_wrong(model: Path, data: dict[str, Any]) -> None:
    assert preflight(make_spec(model, data)) == []


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"rollout": {"max_tokens": 10**9}}, "rollout.max_tokens", "in a context of 128 tokens"),
        ({"rollout": {}}, "rollout.max_tokens", "1024 leaves no room for a prompt in a context of 128 tokens"),
        ({"policy": {"max_model_len": 16}, "rollout": {"max_tokens": 64}}, "rollout.max_tokens", "of 16 tokens"),
        ({"rollout": {"max_tokens": 9, "tensor_parallel": 3}}, "rollout.tensor_parallel", "use 1 or 2 or 4"),
        ({"policy": {"lora": {"targets": ["q_projj"]}}}, "policy.lora.targets.0", "did you mean 'q_proj'"),
    ],
)
def test_the_quickstart_policy_is_checked_before_it_is_made(change: dict[str, Any], field: str, words: str) -> None:
    change["policy"] = {"model": "quickstart", **change.get("policy", {})}
    found, message = problem(make_spec("quickstart", {"type": "quickstart"}, **change))
    assert found == field
    assert words in message


def test_the_quickstart_needs_no_files() -> None:
    assert preflight(make_spec("quickstart", {"type": "quickstart"})) == []


def test_a_hub_id_is_not_looked_up(data: dict[str, Any]) -> None:
    assert preflight(make_spec("someone/model", data)) == []


@pytest.mark.parametrize("name", ["https://huggingface.co/Qwen/Qwen3-1.7B", "a/b/c", " ", "someone/", "a b"])
def test_what_is_neither_a_directory_nor_a_hub_id(data: dict[str, Any], name: str) -> None:
    field, message = problem(make_spec(name, data))
    assert field == "policy.model"
    assert message.startswith("neither a directory nor a hub id such as")


def test_a_name_that_no_path_can_have_is_refused_and_not_looked_for(data: dict[str, Any], tmp_path: Path) -> None:
    access = Access(owner="ann", state_dir=tmp_path, roots=())
    assert "policy.model" not in [field for field, _ in access.problems(make_spec("a" * 300, data))]  # a hub id
    assert "policy.model" in [field for field, _ in access.problems(make_spec("/" + "a" * 300, data))]


def learned(model: str, **options: str) -> JobSpec:
    rated = {"name": "rated", "reward": {"name": "regression", "options": {"model": model, **options}}}
    rated["range"] = [0, 1]
    return make_spec("quickstart", {"type": "quickstart"}, objectives=[rated], gold={"reward": rated["reward"]})


@pytest.mark.parametrize(
    ("model", "option", "words"),
    [
        ("/nope", "model", "no such directory; give"),
        ("./nope", "model", "no such directory; give"),
        ("~nobody-of-that-name/x", "model", "no such directory; give"),
        ("/" + "x" * 300, "model", "no such directory; give"),
        ("foo/bar", "revision", "a hub id needs a commit of 40 hexadecimal digits"),
    ],
)
def test_a_reward_model_that_is_not_there(model: str, option: str, words: str) -> None:
    places = [f"{field}.options.{option}" for field in ("objectives.0.reward", "gold.reward")]
    found = preflight(learned(model))
    assert [field for field, _ in found] == places
    assert all(message.startswith(words) for _, message in found)


def test_a_reward_asks_for_cuda_only_where_it_has_a_gpu() -> None:
    document = learned("foo/bar", revision="0" * 40, device="cuda").model_dump(mode="json")
    found = preflight(parse_spec(document))
    assert [field for field, _ in found] == ["objectives.0.reward.options.device", "gold.reward.options.device"]
    assert all("no GPU is reserved; set hosting.num_gpus" in message for _, message in found)
    for reward in (document["objectives"][0]["reward"], document["gold"]["reward"]):
        reward["hosting"]["num_gpus"] = 0.5
    assert preflight(parse_spec(document)) == []


def test_a_reward_model_is_looked_at(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    assert preflight(learned(str(model))) == []
    assert preflight(learned(f"~/{model.name}")) == []
    assert preflight(learned("foo/bar", revision="0" * 40)) == []
    assert preflight(learned("foo/bar", revision="0" * 40, device="auto")) == []
    (model / "config.json").unlink()
    ((field, message), _) = preflight(learned(str(model)))
    assert field == "objectives.0.reward.options.model"
    assert message.startswith("this path has no config.json; save a model there")


def test_a_reward_model_that_is_refused_is_not_looked_at(tmp_path: Path) -> None:
    """Else the answer would tell what there is."""
    (tmp_path / "there").mkdir()
    access = Access(owner="ann", state_dir=tmp_path / "state", roots=())
    there, absent = (preflight(learned(str(tmp_path / name)), access) for name in ("there", "absent"))
    assert there == absent
    assert len(there) == 2


def test_a_judge_that_the_operator_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = {"name": "judged", "reward": {"name": "judge", "options": {"profile": "strikt", "rubric": "style"}}}
    brief = {"name": "brief", "reward": {"name": "conciseness"}}
    spec = make_spec("quickstart", {"type": "quickstart"}, objectives=[brief, judged])
    field = "objectives.1.reward.options.profile"
    monkeypatch.delenv("EQUIPOISE_JUDGES", raising=False)
    assert problem(spec) == (
        field, "this installation has no judges; its operator names a file of profiles by EQUIPOISE_JUDGES",
    )  # fmt: skip
    file = write_profiles(tmp_path, strict={"base_url": "https://judges.example.com/v1", "api_key_file": "/no/such"})
    monkeypatch.setenv("EQUIPOISE_JUDGES", str(file))
    assert problem(spec) == (field, "no such profile; did you mean 'strict'? there are strict")
    judged["reward"]["options"]["profile"] = "strict"
    spec = make_spec("quickstart", {"type": "quickstart"}, objectives=[brief, judged])
    assert problem(spec) == (field, "the profile's api_key_file can't be used: its operator must see to it")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_missing_dataset(model: Path, data: dict[str, Any], split: str) -> None:
    Path(data[split]).unlink()
    assert problem(make_spec(model, data)) == (f"data.{split}", "no such file")


def test_no_test_split_is_fine(model: Path, data: dict[str, Any]) -> None:
    del data["test"]
    assert preflight(make_spec(model, data)) == []


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x.jsonl", "x" * 5000 + ".jsonl"])
def test_a_path_that_can_not_be(model: Path, data: dict[str, Any], name: str) -> None:
    field, message = problem(make_spec(model, {**data, "train": name}))
    assert field == "data.train"
    assert message.endswith(("no such file", "File name too long"))


def test_a_malformed_row(model: Path, data: dict[str, Any]) -> None:
    with Path(data["validation"]).open("a") as file:
        file.write('{"question": "1"}\n')
    field, message = problem(make_spec(model, data))
    assert field == "data.validation"
    assert message == "row 3: no 'prompt'; found question"


def test_no_problem_repeats_what_was_sent(model: Path, data: dict[str, Any]) -> None:
    sent = {**data, "train": "/sent/a.jsonl", "test": "dataset:sent", "columns": {"prompt": "sent", "answer": "sent.b"}}
    found = preflight(make_spec("/sent/model", sent, init_checkpoint="/sent/init"))
    assert [field for field, _ in found] == ["init_checkpoint", "data.train", "data.validation", "data.test"]
    found += preflight(make_spec(model, sent, init_checkpoint=str(model)))
    (model / "config.json").write_text("{")
    found += preflight(make_spec(model, data))
    for _, message in found:
        assert "sent" not in message
        assert str(model.parent) not in message
    assert "row 1: no data.columns.prompt; found prompt, answer" in [message for _, message in found]


def test_rows_beyond_the_limit_do_not_matter(model: Path, data: dict[str, Any]) -> None:
    with Path(data["train"]).open("a") as file:
        file.write("broken\n")
    assert preflight(make_spec(model, {**data, "limit": 2})) == []


@pytest.mark.parametrize(
    "name", ["./absent", "/absent/model", "~/absent-model", "~nobody-of-that-name/model", "/" + "x" * 300]
)
def test_a_missing_model_directory(data: dict[str, Any], name: str) -> None:
    field, message = problem(make_spec(name, data))
    assert field == "policy.model"
    assert message.startswith("this path is no directory") or message == "File name too long"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "config.json").write_text('{"auto_map": {}}'), "code of its own"),
        (
            lambda folder: (folder / "config.json").write_text('{"quantization_config": {"quant_method": "mxfp4"}}'),
            "quantized weights (mxfp4), which can't be trained",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "model.bin"),
            "only pickled weights (model.bin)",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer"),
    ],
    ids=["config", "json", "code", "quantized", "weights", "pickled", "tokenizer"],
)
def test_a_directory_that_is_no_safe_model(model: Path, data: dict[str, Any], change: Any, words: str) -> None:
    change(model)
    field, message = problem(make_spec(model, data))
    assert field == "policy.model"
    assert words in message


def test_the_checkpoint_to_start_from_is_looked_at(model: Path, data: dict[str, Any]) -> None:
    assert preflight(make_spec("quickstart", {"type": "quickstart"}, init_checkpoint=str(model))) == []
    field, message = problem(make_spec(model, data, init_checkpoint=str(model / "absent")))
    assert (field, message) == ("init_checkpoint", "this path is no directory; give that of an exported checkpoint")


@pytest.mark.parametrize("name", ["quickstart", "someone/model"])
def test_a_job_starts_from_no_name(name: str) -> None:
    field, message = problem(make_spec("quickstart", {"type": "quickstart"}, init_checkpoint=name))
    assert (field, message) == ("init_checkpoint", "this path is no directory; give that of an exported checkpoint")


@pytest.mark.parametrize(("max_tokens", "max_model_len"), [(CONTEXT, None), (CONTEXT + 1, None), (16, 16)])
def test_no_room_for_a_prompt(model: Path, data: dict[str, Any], max_tokens: int, max_model_len: int | None) -> None:
    policy = {"model": str(model), "max_model_len": max_model_len}
    field, message = problem(make_spec(model, data, rollout={"max_tokens": max_tokens}, policy=policy))
    assert field == "rollout.max_tokens"
    assert f"a context of {max_model_len or CONTEXT} tokens" in message


def test_a_long_prompt(model: Path, data: dict[str, Any]) -> None:
    with Path(data["train"]).open("a") as file:
        for words in (CONTEXT - 10, CONTEXT - 9):
            file.write(json.dumps({"prompt": "word " * words, "answer": "1"}) + "\n")
    field, message = problem(make_spec(model, data))
    assert field == "data.train"
    assert "row 4: the prompt has 11 tokens, but the context leaves room for 10 beside rollout.max_tokens" in message
    assert preflight(make_spec(model, {**data, "overlong": "drop"})) == []


def test_a_system_message_takes_room_beside_prompts_that_have_none(model: Path, data: dict[str, Any]) -> None:
    own = [{"role": "system", "content": "word"}, {"role": "user", "content": "word"}]
    Path(data["train"]).write_text(json.dumps({"prompt": own, "answer": "1"}) + "\n")
    chat = {"system": "word " * (CONTEXT - 4)}
    access = Access(owner="ann", state_dir=model.parent, roots=None)
    for server in (None, access):
        found = preflight(make_spec(model, data, policy={"model": str(model), "chat": chat}), server)
        assert [field for field, _ in found] == ["data.validation", "data.test"]
        assert all("the prompt has" in message for _, message in found)


def test_a_variable_that_the_chat_template_lacks(model: Path, data: dict[str, Any]) -> None:
    (model / "chat_template.jinja").write_text("{% if enable_thinking %}<think>{% endif %}{{ messages }}")
    for name, found in (("enable_thinking", []), ("enable_thinkng", ["policy.chat.template_kwargs"])):
        policy = {"model": str(model), "chat": {"template_kwargs": {name: True}}}
        assert [field for field, _ in preflight(make_spec(model, data, policy=policy))] == found


def test_a_variable_that_the_quickstart_policys_template_lacks() -> None:
    policy = {"model": "quickstart", "chat": {"system": "be brief", "template_kwargs": {"enable_thinking": True}}}
    field, message = problem(make_spec("quickstart", {"type": "quickstart"}, policy=policy))
    assert (field, "has no variable 'enable_thinking'" in message) == ("policy.chat.template_kwargs", True)


def test_a_system_message_that_the_template_leaves_out_is_told(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(make_policy(tmp_path / "policy")))
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    spec = make_spec("quickstart", {"type": "quickstart"}, policy={"model": "x/y", "chat": {"system": "be brief"}})
    with pytest.raises(ModelError, match=r"policy\.chat\.system"):
        prompt_encoder(spec, tokenizer)
    prompt_encoder(spec, tokenizer, is_resumed=True)([{"role": "user", "content": "2+2="}])  # it ran before


def test_prompts_may_go_past_the_chat_template(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(make_policy(tmp_path / "policy")))
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    spec = make_spec("quickstart", {"type": "quickstart"}, policy={"model": "x/y", "chat": {"template": "none"}})
    assert tokenizer.decode(prompt_encoder(spec, tokenizer)("2+2=")) == "2+2="


def test_a_prompt_of_which_the_template_shows_nothing_is_told_with_its_row(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(make_policy(tmp_path / "policy")))
    tokenizer.chat_template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    spec = make_spec("quickstart", {"type": "quickstart"}, policy={"model": "x/y"})
    rows: list[Any] = ["1+1=", [{"role": "user", "content": "2+2="}], [{"role": "human", "content": "3+3="}]]
    prompts = [Prompt(content=content, text="", answer=None, row=i) for i, content in enumerate(rows, start=1)]
    assert len(encode(prompts[:2], "f", prompt_encoder(spec, tokenizer), longest=9)[0]) == 2
    with pytest.raises(DatasetError, match=r"f: row 3: message 1: .* role 'human'"):
        encode(prompts, "f", prompt_encoder(spec, tokenizer), longest=9)
    assert len(encode(prompts, "f", prompt_encoder(spec, tokenizer, is_resumed=True), longest=9)[0]) == 3


@pytest.mark.parametrize(
    ("rollout", "field"),
    [
        ({"include_stop": True}, "rollout.include_stop"),
        ({"stop": ["x", "</think>\n\nQuestion:"], "reasoning": {}}, "rollout.stop.1"),
        ({"stop": ["</think>\n\nQuestion:"], "reasoning": {}, "include_stop": True}, None),
        ({"stop": ["</think>\n\nQuestion:"]}, None),
    ],
)
def test_a_stop_text_that_does_nothing_or_takes_the_thoughts_end_away(
    rollout: dict[str, Any], field: str | None
) -> None:
    spec = make_spec("quickstart", {"type": "quickstart"}, rollout={"max_tokens": 10, **rollout})
    assert [place for place, _ in preflight(spec)] == ([] if field is None else [field])


@pytest.mark.parametrize(("loss", "found"), [({}, ["guardrails.1.metric"]), ({"kl_coef": 1e-6}, [])])
def test_a_guardrail_on_a_kl_that_nobody_measures(loss: dict[str, Any], found: list[str]) -> None:
    rails = [{"metric": "entropy", "min": 0.1}, {"metric": "kl", "max": 0.05, "action": "pause"}]
    spec = make_spec("quickstart", {"type": "quickstart"}, guardrails=rails, loss=loss)
    problems = preflight(spec)
    assert [field for field, _ in problems] == found
    assert all("loss.kl_coef" in message for _, message in problems)


def test_a_shorter_context_of_the_spec_counts(model: Path, data: dict[str, Any]) -> None:
    policy = {"model": str(model), "max_model_len": 16}
    assert preflight(make_spec(model, data, policy=policy)) == []
    found = preflight(make_spec(model, data, policy=policy, rollout={"max_tokens": 12}))
    assert [field for field, _ in found] == ["data.train", "data.validation", "data.test"]


@pytest.mark.parametrize("reward", [{"name": name} for name in COMPARING])
def test_a_reward_without_its_ground_truth(model: Path, data: dict[str, Any], reward: dict[str, Any]) -> None:
    objectives = [{"name": "brevity", "reward": {"name": "conciseness"}}, {"name": "right", "reward": reward}]
    unanswered = {**data, "columns": {"answer": None}}
    field, message = problem(make_spec(model, unanswered, objectives=objectives))
    assert field == "objectives.1.reward.name"
    assert message == f"'{reward['name']}' compares with a ground truth, but data.columns.answer is null"
    gold = make_spec(model, unanswered, objectives=objectives[:1], gold={"reward": reward})
    assert problem(gold) == ("gold.reward.name", message)


def test_a_reward_that_reads_another_column_needs_no_answer(model: Path, data: dict[str, Any]) -> None:
    for split in ("train", "validation", "test"):
        Path(data[split]).write_text(json.dumps({"prompt": "word", "calls": []}) + "\n")
    called = {"name": "called", "reward": {"name": "tool_call", "options": {"column": "calls"}}}
    other = {**data, "columns": {"answer": None, "details": ["calls"]}}
    assert preflight(make_spec(model, other, objectives=[called])) == []


@pytest.mark.parametrize(
    ("reward", "details", "field"),
    [
        ({"name": "tool_call", "options": {"column": "calls"}}, [], "objectives.0.reward.options.column"),
        ({"name": "tool_call", "options": {"column": "calls"}}, ["more.calls"], None),
        (
            {"name": "json_schema", "options": {"column": "more.calls"}},
            ["more.calls"],
            "objectives.0.reward.options.column",
        ),
        ({"name": "instructions"}, ["kwargs"], "objectives.0.reward.name"),
        ({"name": "instructions"}, ["instruction_id_list"], None),
        ({"name": "instructions", "options": {"constraints": [{"id": "punctuation:no_comma"}]}}, [], None),
    ],
)
def test_a_column_that_a_reward_reads_has_to_be_named(
    model: Path, data: dict[str, Any], reward: dict[str, Any], details: list[str], field: str | None
) -> None:
    row = {"prompt": "word", "calls": [], "more": {"calls": []}, "instruction_id_list": [], "kwargs": []}
    for split in ("train", "validation", "test"):
        Path(data[split]).write_text(json.dumps(row) + "\n")
    read = {**data, "columns": {"answer": None, "details": details}}
    found = preflight(make_spec(model, read, objectives=[{"name": "x", "reward": reward}]))
    assert [place for place, _ in found] == ([] if field is None else [field])


@pytest.mark.parametrize(("name", "is_server"), [*((name, False) for name in COMPARING), ("math", True)])
def test_an_empty_answer_that_a_reward_would_stop_at(
    model: Path, data: dict[str, Any], name: str, is_server: bool, tmp_path: Path
) -> None:
    access = Access(owner="ann", state_dir=tmp_path, roots=None) if is_server else None
    answers = {"train": ["", "1", " \n", "1"], "validation": ["1", "1", "", "1"]}
    for split in ("train", "validation", "test"):
        rows = zip(("chat", "math", "math", "math"), answers.get(split, ["1"] * 4), strict=True)
        text = (json.dumps({"prompt": "word", "kind": kind, "answer": answer}) + "\n" for kind, answer in rows)
        Path(data[split]).write_text("".join(text))

    def found(*, prompts: int = 200, options: dict[str, str] | None = None, **domains: Any) -> list[tuple[str, str]]:
        objectives = [
            {"name": "brevity", "reward": {"name": "conciseness"}},
            {"name": "right", "reward": {"name": name, "options": options or {}}, **domains},
        ]
        rows = {**data, "columns": {"domain": "kind"}}
        return preflight(make_spec(model, rows, objectives=objectives, evaluation={"prompts": prompts}), access)

    said = f"the answer is empty, and '{name}' compares with it; fill it in, or set objectives.1.reward.options.missing"
    assert found(prompts=2) == [("data.train", f"row 1: {said} to skip")]
    assert found(domains=["math"]) == [
        ("data.train", f"row 3: {said} to skip"),
        ("data.validation", f"row 3: {said} to skip"),
    ]
    assert found(options={"missing": "skip"}) == []
    text = "".join(json.dumps({"prompt": "word", "kind": "math", "answer": "1"}) + "\n" for _ in range(38))
    for split in answers:  # now 2 of 42 rows, and 1: no more than hosting.max_bad_share, which a job goes on with
        Path(data[split]).write_text(Path(data[split]).read_text() + text)
    assert found() == []


@pytest.mark.parametrize("is_server", [False, True])
@pytest.mark.parametrize(
    ("name", "answers", "row"),
    [
        ("math", ["1", "Half of 48 is 24.\nSo it is 24 + 48 = 72.", "So 5."], 2),
        ("math", ["1", "Half of 48 is 24.\nSo it is 24 + 48 = 72.\n#### 72", "So 5."], None),
        ("numeric", ["1", "24 + 48 = 72", "72"], 2),
        ("text", ["1", "24 + 48 = 72\n72", "72"], None),
    ],
)
def test_an_answer_that_no_completion_could_meet(
    model: Path, data: dict[str, Any], name: str, answers: list[str], row: int | None, is_server: bool, tmp_path: Path
) -> None:
    access = Access(owner="ann", state_dir=tmp_path, roots=None) if is_server else None
    text = (json.dumps({"prompt": "word", "answer": answer, "kind": "a"}) + "\n" for answer in answers)
    Path(data["train"]).write_text("".join(text))
    document = {**data, "columns": {"domain": "kind"}}
    objectives = [{"name": "right", "reward": {"name": name}}, {"name": "brevity", "reward": {"name": "conciseness"}}]
    found = preflight(make_spec(model, document, objectives=objectives), access)
    assert [field for field, _ in found] == ([] if row is None else ["data.train"])
    for _, message in found:
        assert message.startswith(f"row {row}: '{name}' needs a ground truth that is ")
    elsewhere = [{**objectives[0], "domains": ["b"]}, objectives[1]]
    assert not any("ground truth" in said for _, said in preflight(make_spec(model, document, objectives=elsewhere)))


@pytest.mark.parametrize("is_server", [False, True])
def test_prompts_of_other_splits_that_are_trained_on_are_counted(
    model: Path, data: dict[str, Any], is_server: bool, tmp_path: Path
) -> None:
    access = Access(owner="ann", state_dir=tmp_path, roots=None) if is_server else None
    chat = [{"role": "user", "content": "word"}]
    prompts = {
        "train": ["word", "word word", chat],
        "validation": [chat, "other", "word word"],
        "test": ["other", [{"role": "system", "content": "word"}, *chat], "other"],
    }
    for split, contents in prompts.items():
        Path(data[split]).write_text("".join(json.dumps({"prompt": p, "answer": "1"}) + "\n" for p in contents))
    spec = make_spec(model, data)
    found = look(spec, access)
    assert found.problems == []
    assert {split: (c.rows, c.repeated, c.validated, c.twice) for split, c in found.contents.items()} == {
        "train": (3, 0, 0, 1), "validation": (3, 2, 0, 0), "test": (3, 0, 2, 1),
    }  # fmt: skip
    assert [doubt for doubt in doubts(spec, found.contents) if doubt[0].startswith("data.")] == [
        (
            "data.train",
            "1 of its 3 prompts are in it before, so that an epoch asks them again; keep each once, unless you weigh "
            "them so",
        ),
        (
            "data.validation",
            "2 of its 3 prompts are trained on too, so its figures also tell what was learnt by heart; hold some back",
        ),
        (
            "data.test",
            "2 of its 3 prompts are in the validation split too, which picks the points, so its figures have the same "
            "luck; use other prompts",
        ),
        ("data.test", "1 of its 3 prompts are in it before, so its standard errors are too small; keep each once"),
    ]


@pytest.mark.parametrize("is_server", [False, True])
@pytest.mark.parametrize(
    ("prompt", "changes", "is_asked"),
    [
        ("1+1? End with Answer: $Answer.", {}, True),
        (r"1+1? Put it into \boxed{}.", {}, False),
        ([{"role": "system", "content": r"Use \boxed{}."}, {"role": "user", "content": "1+1?"}], {}, False),
        ("1+1?", {"policy": {"model": "org/m", "chat": {"system": r"Use \boxed{}."}}}, False),
        (
            "1+1?",
            {"objectives": [{"name": "a", "reward": {"name": "math", "options": {"require_boxed": False}}}]},
            False,
        ),
        ("1+1?", {"objectives": [{"name": "a", "reward": {"name": "numeric"}}]}, False),
    ],
)
def test_answers_in_a_box_that_nobody_asks_for_are_asked_about(
    data: dict[str, Any], prompt: Any, changes: dict[str, Any], is_asked: bool, is_server: bool, tmp_path: Path
) -> None:
    rows = [json.dumps({"prompt": prompt, "answer": "2"}), json.dumps({"prompt": "2+2?", "answer": "4"})]
    Path(data["train"]).write_text("\n".join(rows) + "\n")
    spec = make_spec("org/m", data, **changes)
    access = Access(owner="ann", state_dir=tmp_path, roots=None) if is_server else None
    asked = dict(doubts(spec, look(spec, access).contents))
    field = "objectives.1.reward.options.require_boxed"
    assert (field in asked) is is_asked
    assert not is_asked or asked[field].startswith(r"true, so that only what stands in a \boxed{} counts, and no train")


def test_a_split_that_is_the_training_itself_is_asked_about(model: Path, data: dict[str, Any]) -> None:
    for split in ("validation", "test"):
        ((field, message),) = doubts(make_spec(model, {**data, split: data["train"]}))
        assert field == f"data.{split}"
        assert message.startswith("these are trained on too, so")
    few = {"train": Contents(rows=100, twice=9, boxed=9), "validation": Contents(rows=1000, repeated=9, twice=9)}
    assert doubts(make_spec(model, data), few) == []


def test_a_test_split_that_is_the_validation_is_asked_about(model: Path, data: dict[str, Any]) -> None:
    ((field, message),) = doubts(make_spec(model, {**data, "test": data["validation"]}))
    assert field == "data.test"
    assert message.startswith("these are in the validation split too, which picks the points")


def test_targets_that_the_policy_does_not_have(data: dict[str, Any], tmp_path: Path) -> None:
    policy = make_policy(tmp_path / "policy")

    def found(*targets: str) -> list[tuple[str, str]]:
        lora = {"targets": list(targets)}
        return preflight(make_spec(policy, data, policy={"model": str(policy), "lora": lora}))

    assert found("q_proj", "down_proj") == []
    ((field, message),) = found("q_proj", "v_prj")
    assert field == "policy.lora.targets.1"
    assert message.startswith("no linear layer 'v_prj' in the policy's blocks, did you mean 'v_proj'?; there are down_")


def test_every_reward_that_needs_an_answer_says_so() -> None:
    """Those that raise on a row without one."""
    batch = RewardBatch(
        prompts=("p",), completions=(r"\boxed{1}",), answers=(None,), completion_tokens=(1,), truncated=(False,),
        max_tokens=9,
    )  # fmt: skip
    alone = [info.name for info in registry.describe() if not info.plugin and not info.options.get("required")]
    for name in set(alone) - {"instructions", "json_schema", "language", "regex"}:  # these read other columns
        if name in COMPARING:
            with pytest.raises(MissingRow):
                registry.build(name, {}).score(batch)
        else:
            registry.build(name, {}).score(batch)
        assert registry.needs_answer(name, {}) == (name in COMPARING)


def test_every_problem_is_named_at_once(model: Path, data: dict[str, Any]) -> None:
    Path(data["train"]).unlink()
    Path(data["test"]).write_text("")
    (model / "config.json").unlink()
    assert [field for field, _ in preflight(make_spec(model, data))] == ["policy.model", "data.train", "data.test"]


def test_a_server_reads_no_rows_itself(
    model: Path, data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are a stranger's: a child reads them, also those of a dataset, whose use was not known when it came."""
    datasets = Datasets(tmp_path / "state", "ann")
    draft = datasets.draft("jsonl")
    draft.write(json.dumps({"prompt": "word " * 11, "answer": "1"}).encode())
    draft.close()
    kept, _ = datasets.keep(draft, name="x", columns=Columns(), rows=1)
    access = Access(owner="ann", state_dir=tmp_path / "state", roots=None)
    referring = {**data, "train": f"dataset:{kept.id}", "validation": f"dataset:{kept.id}", "test": None}
    ((field, message), _) = preflight(make_spec(model, referring), access)
    assert field == "data.train"
    assert message.startswith("row 1: the prompt has 11 tokens, but the context leaves room for 10")
    monkeypatch.setattr("orchestrator.checks.dataset_check.read", Mock(side_effect=AssertionError("read here")))
    monkeypatch.setattr("orchestrator.checks.preflight.read", Mock(side_effect=AssertionError("read here")))
    ask = Mock(side_effect=children.ask)
    monkeypatch.setattr(children, "ask", ask)
    assert len(preflight(make_spec(model, referring), access)) == 2
    assert ask.call_count == 1  # for both
    assert ask.call_args.kwargs["owner"] == "ann"
    assert preflight(make_spec("someone/model", referring), access) == []
    assert ask.call_count == 2
    Path(data["test"]).write_text("{}\n")
    ((field, message),) = preflight(make_spec("someone/model", data), access)
    assert (field, message) == ("data.test", "row 1: no 'prompt'; found ")
    monkeypatch.setattr(children, "ask", Mock(side_effect=children.ChildBusy))
    with pytest.raises(children.ChildBusy):
        preflight(make_spec(model, referring), access)


def test_ranks_that_cannot_share_the_heads_are_told(model: Path, data: dict[str, Any]) -> None:
    def ranks(count: int) -> JobSpec:
        return make_spec(model, data, rollout={"max_tokens": 10, "tensor_parallel": count})

    assert preflight(ranks(3)) == []  # nothing is known of its heads
    config = {"max_position_embeddings": CONTEXT, "num_attention_heads": 4, "num_key_value_heads": 2}
    (model / "config.json").write_text(json.dumps(config))
    assert problem(ranks(3)) == (
        "rollout.tensor_parallel", "the policy's attention heads can't be shared evenly among 3; use 1 or 2 or 4"
    )  # fmt: skip
    assert preflight(ranks(4)) == []


def test_what_no_machine_of_the_cluster_can_hold_is_told(
    model: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asking(device: str) -> JobSpec:
        hosted = {"name": "conciseness", "hosting": {"num_gpus": 0.5}}
        objectives = [{"name": "short", "reward": hosted}, {"name": "accuracy", "reward": {"name": "math"}}]
        rollout = {"max_tokens": 10, "tensor_parallel": 2}
        return make_spec(model, data, rollout=rollout, objectives=objectives, resources={"device": device})

    assert preflight(asking("cuda")) == []
    monkeypatch.setenv("EQUIPOISE_RAY_MACHINES", "learner=1,rollout=1,reward=0")
    engines, rewards = preflight(asking("cuda"))
    assert engines == (
        "rollout.tensor_parallel",
        "no machine for rollout has more GPUs than 1 (EQUIPOISE_RAY_MACHINES, the operator's); "
        "an engine's are all in one machine",
    )
    assert rewards[0] == "objectives.0.reward.hosting.num_gpus"
    assert preflight(asking("auto")) == preflight(asking("cpu")) == [rewards]
    monkeypatch.setenv("EQUIPOISE_RAY_DEVICE", "cuda")
    assert preflight(asking("auto")) == [engines, rewards]
    monkeypatch.setenv("EQUIPOISE_RAY_MACHINES", "rollout=2")
    assert preflight(asking("cuda")) == []


def test_a_transport_that_the_device_lacks_is_told(model: Path, data: dict[str, Any]) -> None:
    rollout = {"max_tokens": 10, "transport": "shared_memory"}
    ((field, problem),) = preflight(make_spec(model, data, rollout=rollout, resources={"device": "cuda"}))
    assert (field, "on CPU alone" in problem) == ("rollout.transport", True)
    assert preflight(make_spec(model, data, rollout=rollout)) == []  # auto: perhaps on CPU
    rollout |= {"transport": "nccl"}
    ((field, problem),) = preflight(make_spec(model, data, rollout=rollout, resources={"device": "cpu"}))
    assert (field, "nccl takes weights from GPU to GPU" in problem) == ("rollout.transport", True)
    assert problem.endswith("; use auto")
    assert preflight(make_spec(model, data, rollout=rollout)) == []  # auto: perhaps on GPUs
