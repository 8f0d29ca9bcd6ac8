import json
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from policies import quickstart
from policies.quickstart import (
    MANIFEST,
    Problem,
    Recipe,
    classify_style,
    ensure_policy,
    sample_problems,
    style_figures,
    write_splits,
)

MICRO = Recipe(
    hidden_size=32, layers=1, heads=1, intermediate_size=32, batch_size=4, steps=2, max_steps=2, mixing_steps=2,
    gate_problems=4, min_lesson_accuracy=0.0, min_stepwise_accuracy=0.0, max_greedy_accuracy=1.0,
)  # fmt: skip
SIZES = {"train": 300, "validation": 50, "test": 70}


@pytest.fixture(scope="module", autouse=True)
def _few_threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_policy(tmp_path_factory.mktemp("policy"), show_progress=False, recipe=MICRO)


def read_rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_splits_are_right_disjoint_and_of_the_asked_sizes(tmp_path: Path) -> None:
    rows = {name: read_rows(path) for name, path in write_splits(tmp_path, seed=3, sizes=SIZES).items()}
    assert {name: len(split) for name, split in rows.items()} == SIZES
    prompts = [row["prompt"] for split in rows.values() for row in split]
    assert len(set(prompts)) == len(prompts)
    for split in rows.values():
        for row in split:
            assert set(row["prompt"]) <= set("0123456789+-=")
            assert sum(map(int, re.findall(r"[+-]?\d+", row["prompt"]))) == int(row["answer"])


def test_a_split_that_is_written_again_is_whole_for_its_readers(tmp_path: Path) -> None:
    """Two jobs of one seed share their files."""
    path = write_splits(tmp_path, sizes={"train": 50})["train"]
    whole, over, seen = path.read_text(), threading.Event(), set()

    def read() -> None:
        while not over.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(300):
        write_splits(tmp_path, sizes={"train": 50})
    over.set()
    reader.join()
    assert seen == {whole}
    assert [file.name for file in tmp_path.iterdir()] == ["train.jsonl"]


def test_splits_depend_on_the_seed_alone(tmp_path: Path) -> None:
    texts = [
        [path.read_text() for path in write_splits(tmp_path / str(n), seed=seed, sizes=SIZES).values()]
        for n, seed in enumerate((0, 0, 1))
    ]
    assert texts[0] == texts[1]
    assert all(same != other for same, other in zip(texts[0], texts[2], strict=True))


def test_training_problems_never_meet_validation_or_test(tmp_path: Path) -> None:
    paths = write_splits(tmp_path, sizes={"validation": 200, "test": 500})
    held_out = {row["prompt"] for path in paths.values() for row in read_rows(path)}
    source = sample_problems(random.Random(5), held_out=False)
    assert held_out.isdisjoint(next(source).prompt for _ in range(5000))


def test_running_totals_stay_two_digits_long() -> None:
    source = sample_problems(random.Random(0), held_out=False)
    for _ in range(500):
        problem = next(source)
        totals = [problem.start + sum(problem.changes[:n]) for n in range(len(problem.changes) + 1)]
        assert 3 <= len(problem.changes) <= 5
        assert all(10 <= total <= 59 for total in totals)


@pytest.mark.parametrize(
    ("completion", "style"),
    [
        (r"\boxed{27}", "short"),
        ("-1=29\n+6=35\n\\boxed{35}", "compact"),
        ("-1+6=35\n\\boxed{35}\n", "compact"),
        ("first we get 30-1=29\nthen we get 29+6=35\n\\boxed{35}", "verbose"),
        ("-1=29\nthen we get 29+6=35\n\\boxed{35}", "verbose"),
        ("-1=29\n+6=", "other"),
        ("-1=29\nso what\n\\boxed{35}", "other"),
        (r"\boxed{27} \boxed{27}", "other"),
        ("", "other"),
    ],
)
def test_classify_style(completion: str, style: str) -> None:
    assert classify_style(completion) == style


@pytest.mark.parametrize("style", ["short", "compact", "verbose"])
def test_taught_answers_are_right_and_in_their_style(style: str) -> None:
    source, rng = sample_problems(random.Random(1), held_out=False), random.Random(2)
    for problem in (next(source) for _ in range(100)):
        completion = quickstart._render(problem, style, Recipe(merge_probability=0.3), rng)
        assert classify_style(completion) == style
        assert quickstart.is_right(completion, problem.answer)


def test_style_figures() -> None:
    completions = [r"\boxed{27}", r"\boxed{3}", "-1=29\n\\boxed{29}", "?"]
    figures = style_figures(completions, ["27", "4", "29", "1"])
    assert (figures["short"].share, figures["short"].accuracy) == (0.5, 0.5)
    assert (figures["compact"].share, figures["compact"].accuracy) == (0.25, 1.0)
    assert (figures["verbose"].share, figures["verbose"].accuracy) == (0.0, 0.0)
    assert (figures["overall"].share, figures["overall"].accuracy) == (1.0, 0.5)
    for bad in (([], []), (["a"], [])):
        with pytest.raises(ValueError, match="one answer per completion"):
            style_figures(*bad)


def test_the_digest_changes_with_recipe_seed_and_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Recipe().digest(0) == Recipe().digest(0)
    digests = {Recipe().digest(0), Recipe().digest(1), replace(Recipe(), steps=401).digest(0)}
    monkeypatch.setattr(quickstart, "_CHAT_TEMPLATE", "{{ bos_token }}")
    assert len(digests | {Recipe().digest(0)}) == 4


def test_the_policy_loads_in_transformers_with_its_chat_template(policy: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    model = AutoModelForCausalLM.from_pretrained(policy)
    messages = [{"role": "user", "content": "30-1+6-9+1="}]
    batch = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert tokenizer.convert_ids_to_tokens(batch["input_ids"][0]) == ["<s>", "3", "0", "-1", "+6", "-9", "+1", "="]
    ids_BT = model.generate(**batch, max_new_tokens=2, do_sample=False)
    assert ids_BT.shape[0] == 1
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


@pytest.mark.parametrize("text", ["first we get 30-1=29\nthen we get 29+6=35\n\\boxed{35}", "Why, is 3 + 12 = 15?"])
def test_the_tokenizer_gives_text_back(policy: Path, text: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.unk_token_id not in ids


def test_every_taught_answer_ends_within_the_token_limit(policy: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    longest = Problem(start=30, changes=(-1, 6, -9, 1, 8))
    answer = quickstart._render(longest, "verbose", Recipe(), random.Random(0)) + tokenizer.eos_token
    assert len(tokenizer.encode(answer)) <= quickstart.MAX_COMPLETION_TOKENS


def test_a_second_call_is_cached_and_a_damaged_folder_is_made_again(policy: Path) -> None:
    made_at = (policy / MANIFEST).stat().st_mtime_ns
    assert ensure_policy(policy.parent, show_progress=False, recipe=MICRO) == policy
    assert (policy / MANIFEST).stat().st_mtime_ns == made_at

    weights = (policy / "model.safetensors").read_bytes()
    (policy / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert ensure_policy(policy.parent, show_progress=False, recipe=MICRO) == policy
    assert (policy / "model.safetensors").read_bytes() == weights

    (policy / MANIFEST).unlink()
    ensure_policy(policy.parent, show_progress=False, recipe=MICRO)
    assert (policy / MANIFEST).is_file()
    assert [path.name for path in policy.parent.iterdir()] == [policy.name]


def test_a_policy_below_the_gate_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quality gate after 4 steps"):
        ensure_policy(tmp_path, show_progress=False, recipe=replace(MICRO, min_stepwise_accuracy=0.5))
    assert list(tmp_path.iterdir()) == []


def test_the_light_part_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, policies.quickstart; assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
