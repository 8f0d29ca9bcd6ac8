"""Generated data for reward models: completions whose attributes are computed from their words, and tiny backbones.

`make_quickstart_reward_model` trains a model with three heads for the quickstart task, for jobs that a learned reward
drives.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ATTRIBUTES = ("length", "digits", "polite", "loud", "ending")
ENDINGS = {".": 0.0, "!": 0.5, "?": 1.0}
PLAIN = tuple(a + b for a in "bdfgk" for b in "aeiou")
DIGITS = tuple("0123456789")
LOUD = tuple(word.upper() for word in PLAIN[:10])
POLITE = ("please", "thanks")
# What matters in a domain, named by the prompt's first word: a mix of the heads must look at the prompt.
UTILITIES: Mapping[str, Mapping[str, float]] = {
    "count": {"digits": 1.0},
    "write": {"length": 0.7, "loud": -0.7},
    "ask": {"polite": 1.0, "ending": 0.4},
}
SHORTEST, LONGEST = 4, 24
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% if message['role'] == 'assistant' %}"
    "{{ eos_token }}{% else %}{{ sep_token }}{% endif %}{% endfor %}"
)


def completion(rng: random.Random) -> str:
    """Words in shares that differ from text to text, and an ending."""
    shares = [rng.random() ** 2 + 0.02 for _ in range(4)]
    kinds = rng.choices((PLAIN, DIGITS, POLITE, LOUD), shares, k=rng.randint(SHORTEST, LONGEST))
    return " ".join([*(rng.choice(kind) for kind in kinds), rng.choice(tuple(ENDINGS))])


def attributes(text: str) -> dict[str, float]:
    """What there is to know about a completion, each in [0, 1]."""
    *words, end = text.split()
    return {
        "length": (len(words) - SHORTEST) / (LONGEST - SHORTEST),
        "digits": sum(word in DIGITS for word in words) / len(words),
        "polite": sum(word in POLITE for word in words) / len(words),
        "loud": sum(word in LOUD for word in words) / len(words),
        "ending": ENDINGS[end],
    }


def prompt(rng: random.Random) -> tuple[str, str]:
    """A prompt and its domain."""
    domain = rng.choice(tuple(UTILITIES))
    return f"{domain} {' '.join(rng.choices(PLAIN, k=3))}", domain


def utility(domain: str, text: str) -> float:
    """How good a completion truly is in its domain."""
    known = attributes(text)
    return sum(weight * known[name] for name, weight in UTILITIES[domain].items())


def ratings(count: int, *, heads: Sequence[str] = ATTRIBUTES, missing: float = 0.0, seed: int = 0) -> list[Row]:
    """Rows of ratings, of which a share is missing."""
    rng = random.Random(f"ratings {seed}")
    rows: list[Row] = []
    for _ in range(count):
        (text, domain), answer = prompt(rng), completion(rng)
        known = {name: attributes(answer)[name] for name in heads if rng.random() >= missing}
        rows.append({"prompt": text, "completion": answer, "ratings": known, "domain": domain})
    return rows


def pairs(count: int, *, slope: float = math.inf, rejected: int = 1, seed: int = 0) -> list[Row]:
    """Rows of pairs: the better of two with probability sigmoid(slope * difference of utility).

    With several rejected ones the best of all is chosen.
    """
    rng = random.Random(f"pairs {seed}")
    rows: list[Row] = []
    for _ in range(count):
        text, domain = prompt(rng)
        answers = sorted((completion(rng) for _ in range(1 + rejected)), key=lambda a: utility(domain, a), reverse=True)
        gap = utility(domain, answers[0]) - utility(domain, answers[1])
        if rejected == 1 and slope < math.inf and rng.random() > 1 / (1 + math.exp(-slope * gap)):
            answers.reverse()
        worse: Any = answers[1] if rejected == 1 else answers[1:]
        rows.append({"prompt": text, "chosen": answers[0], "rejected": worse, "margin": gap, "domain": domain})
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_backbone(
    directory: Path, *, kind: str = "qwen3", size: Mapping[str, int] | None = None, seed: int = 0
) -> Path:
    """A causal language model of random weights that reads the words above, `qwen3` or `llama`."""
    vocabulary = [*PLAIN, *DIGITS, *LOUD, *POLITE, *ENDINGS, *UTILITIES]
    tokenizer = word_tokenizer(vocabulary, r"\w+|[.!?]")
    return save_backbone(directory, tokenizer, kind=kind, size=size, positions=64, seed=seed)


def word_tokenizer(vocabulary: Sequence[str], pattern: str) -> Any:
    """A tokenizer whose tokens are the matches of a pattern; what lies between them is dropped."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ("<pad>", "<s>", "</s>", "<unk>", "<sep>")
    words = {word: i for i, word in enumerate([*special, *dict.fromkeys(vocabulary)])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    names = ("pad_token", "bos_token", "eos_token", "unk_token", "sep_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False,
        **dict(zip(names, special, strict=True)),
    )


def save_backbone(
    directory: Path, tokenizer: Any, *, kind: str, size: Mapping[str, int] | None, positions: int, seed: int
) -> Path:
    """Random weights of a small causal language model, saved with its tokenizer."""
    import torch
    import transformers

    name = {"qwen3": "Qwen3", "llama": "Llama"}[kind]
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2} | dict(size or {})
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(tokenizer),
        intermediate_size=3 * shape["hidden_size"],
        num_key_value_heads=shape["num_attention_heads"],
        head_dim=shape["hidden_size"] // shape["num_attention_heads"],
        max_position_embeddings=positions,
        initializer_range=0.05,  # narrow models learn faster than from the usual 0.02
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **shape,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{name}ForCausalLM")(config).float()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


# ------------------------------------------------------------------------------------------------------- quickstart

QUICKSTART_HEADS = ("correctness", "conciseness", "clarity")
_TOKEN = r"first |then |we |get |\\boxed\{|[+-]\d(?!\d)|[\s\S]"
_BOX = re.compile(r"\\boxed\{(\d+)\}")


def quickstart_rows(count: int, *, seed: int = 0, held_out: bool = False) -> list[Row]:
    """Completions of the quickstart task in its three styles, whole and spoiled, with their known ratings."""
    from policies.quickstart import Recipe, _render, sample_problems

    rng, recipe = random.Random(f"quickstart rewards {seed}"), Recipe()
    problems = sample_problems(rng, held_out=held_out)
    rows: list[Row] = []
    for _ in range(count):
        problem = next(problems)
        style = rng.choice(("short", "compact", "verbose"))
        text = _render(problem, style, recipe, rng)
        if rng.random() < 0.4:
            text = _spoil(text, rng)
        known = quickstart_ratings(problem.prompt, text)
        rows.append({"prompt": problem.prompt, "completion": text, "ratings": known, "domain": style})
    return rows


def quickstart_ratings(prompt: str, text: str) -> dict[str, float]:
    """What is known of a completion, each in [0, 1].

    correctness   an estimate by the work that is shown, as no tiny model sees through sums: the share of the problem's
                  operations that stand on a line of their own, in order, and nothing without a box
    conciseness   1 less the share of the 64 tokens that it takes
    clarity       half for lines, half for lines in words; half of it without a box
    """
    from policies.quickstart import MAX_COMPLETION_TOKENS

    operations, boxed = re.findall(r"[+-]\d", prompt), bool(_BOX.search(text))
    lines = [line for line in text.split("\n") if re.fullmatch(r"((first|then) we get \d\d)?[+-]\d=\d+", line)]
    shown = 0
    for line in lines:
        if shown < len(operations) and f"{operations[shown]}=" in line:
            shown += 1
    worded = sum("we get" in line for line in lines) / max(1, len(lines))
    return {
        "correctness": shown / len(operations) * boxed,
        "conciseness": max(0.0, 1 - len(re.findall(_TOKEN, text)) / MAX_COMPLETION_TOKENS),
        "clarity": min(1.0, len(lines) / 2) * (0.5 + 0.5 * worded) * (1.0 if boxed else 0.5),
    }


def _spoil(text: str, rng: random.Random) -> str:
    """What a policy may try: to stop early, to leave out lines, to repeat them, or to write anything."""
    lines = text.split("\n")
    way = rng.choice(("cut", "leave out", "repeat", "scatter"))
    if way == "cut":
        return text[: rng.randrange(len(text))]
    if way == "leave out":
        del lines[rng.randrange(len(lines))]
    elif way == "repeat":
        lines.insert(0, rng.choice(lines))
    else:
        characters = list(text)
        for _ in range(rng.randint(1, 6)):
            characters[rng.randrange(len(characters))] = rng.choice("0123456789+-=\n {}abxyz")
        return "".join(characters)
    return "\n".join(lines)


def make_quickstart_reward_model(directory: Path, *, rows: int = 4000, epochs: int = 5) -> Path:
    """A reward model with the heads correctness, conciseness and clarity for the quickstart task, under `directory`.

    About a minute on one core. Its figures on held-out problems are in eval.json beside it.
    """
    from rewards.training import TrainSettings, train

    base = directory / "backbone"
    characters = [chr(code) for code in (10, *range(32, 127))]
    changes = [f"{sign}{digit}" for sign in "+-" for digit in range(10)]
    tokenizer = word_tokenizer(["first ", "then ", "we ", "get ", "\\boxed{", *changes, *characters], _TOKEN)
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    save_backbone(base, tokenizer, kind="qwen3", size=size, positions=128, seed=0)
    settings = TrainSettings.from_dict(
        {
            "model": str(base),
            "train": [str(write_rows(directory / "train.jsonl", quickstart_rows(rows)))],
            "validation": [str(write_rows(directory / "held_out.jsonl", quickstart_rows(500, seed=1, held_out=True)))],
            "heads": [{"name": name} for name in QUICKSTART_HEADS],
            "epochs": epochs,
            "batch_size": 64,
            "lr": 4e-3,
            "max_length": 128,
            "checkpoint_every": 1_000_000,
        }
    )
    result = train(settings, directory=directory, on_step=lambda _: None, should_stop=lambda: None)
    assert result.model is not None
    return result.model
