"""A policy small enough to train from nothing in about a minute, and a task on which its rewards disagree.

The task is a running sum such as `30-1+6-9+1=`. The policy is taught three styles of answer:

    short    \\boxed{27}                                              few tokens, mostly wrong
    compact  -1=29 \\n +6=35 \\n -9=26 \\n +1=27 \\n \\boxed{27}           a line per operation, mostly right
    verbose  first we get 30-1=29 \\n then we get 29+6=35 \\n ...       the same in words, mostly right, long

Compact lines sometimes merge two operations, which saves tokens and costs accuracy. The short style is the
likeliest one, so that greedy decoding of the untrained policy is short and mostly wrong: accuracy, conciseness
and clarity conflict, and a policy aligned for accuracy is better under greedy decoding too.
Only the functions that train or sample import torch and transformers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import shutil
import tempfile
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from policies.disk import sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Style = Literal["short", "compact", "verbose", "other"]
STYLES: tuple[Style, ...] = ("short", "compact", "verbose", "other")
SPLIT_SIZES: Mapping[str, int] = MappingProxyType({"train": 4000, "validation": 200, "test": 500})
MAX_COMPLETION_TOKENS = 64
MANIFEST = "quickstart.json"
MAX_POSITIONS = 128

_LOWEST, _HIGHEST = 10, 59  # every running total stays in this range, so that it has two digits
_SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
_WORDS = ("first ", "then ", "we ", "get ", "\\boxed{")
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)

_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_STEP = re.compile(r"(first we get |then we get |)\d*([+-]\d)+=\d+")


def chat_template() -> str:
    return _CHAT_TEMPLATE


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the policy is made. Any change gives another hash, hence another cached policy.

    Two lessons. First arithmetic step by step, compact and verbose in equal parts, for `steps` and then on, by
    `extension_steps` up to `max_steps`, until learned. Then `mixing_steps` with the style shares of the
    finished policy, while the learning rate decays to zero: too few to learn to answer without steps.
    """

    short_share: float = 0.55
    compact_share: float = 0.25
    merge_probability: float = 0.12
    hidden_size: int = 128
    layers: int = 3
    heads: int = 4
    intermediate_size: int = 384
    rope_theta: float = 100.0  # sequences are shorter than 100 tokens
    initializer_range: float = 0.05  # the usual 0.02 takes three times the steps to learn to copy at this width
    batch_size: int = 32
    steps: int = 400
    extension_steps: int = 100
    max_steps: int = 900
    mixing_steps: int = 200
    warmup_steps: int = 40
    learning_rate: float = 3e-3
    gate_problems: int = 256
    min_lesson_accuracy: float = 0.6  # of the worse of compact and verbose answers, sampled, to end the first lesson
    min_stepwise_accuracy: float = 0.4  # the same of the finished policy, which now merges operations
    max_greedy_accuracy: float = 0.45

    def digest(self, seed: int) -> str:
        """A short hash of what decides the weights: recipe, seed, vocabulary, template, and examples of the task."""
        rng = random.Random(0)
        problems = [problem for problem, _ in zip(sample_problems(rng, held_out=False), range(20), strict=False)]
        examples = [(p.prompt, [_render(p, style, self, rng) for style in STYLES[:3]]) for p in problems]
        parts = [asdict(self), seed, examples, task_vocabulary(), _CHAT_TEMPLATE]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A running sum: a start, then changes of one digit each."""

    start: int
    changes: tuple[int, ...]

    @property
    def prompt(self) -> str:
        return f"{self.start}{''.join(f'{change:+d}' for change in self.changes)}="

    @property
    def answer(self) -> str:
        return str(self.start + sum(self.changes))

    @property
    def held_out(self) -> bool:
        """True for the eighth of all problems that is kept for validation and test: a property of the prompt
        alone, so that training data and splits never overlap whatever their seeds are."""
        return zlib.crc32(self.prompt.encode()) % 8 == 0


@dataclass(frozen=True, kw_only=True)
class StyleFigures:
    """Share of the completions in a style, and share of right answers inside it (0 where there are none)."""

    share: float
    accuracy: float


def sample_problems(rng: random.Random, *, held_out: bool) -> Iterator[Problem]:
    """An endless stream of problems of 3 to 5 operations from one side of the held-out border."""
    while True:
        start = total = rng.randint(_LOWEST, _HIGHEST)
        changes: list[int] = []
        for _ in range(rng.randint(3, 5)):
            options = [c for c in range(-9, 10) if c not in (0, *changes) and _LOWEST <= total + c <= _HIGHEST]
            changes.append(rng.choice(options))
            total += changes[-1]
        problem = Problem(start=start, changes=tuple(changes))
        if problem.held_out == held_out:
            yield problem


def write_splits(directory: Path, *, seed: int = 0, sizes: Mapping[str, int] = SPLIT_SIZES) -> dict[str, Path]:
    """Write one JSONL file per split, rows `{"prompt": "30-1+6-9+1=", "answer": "27"}`; return their paths.

    No prompt is in two splits or twice in one. Validation and test hold prompts that the policy was never
    trained on; any other split name draws from the problems that it may have been. Whoever reads meanwhile, as another
    job with the same seed and sizes may, finds a whole file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"splits {seed}")
    seen: set[str] = set()
    paths: dict[str, Path] = {}
    for name in sorted(sizes):
        rows: list[str] = []
        problems = sample_problems(rng, held_out=name in ("validation", "test"))
        while len(rows) < sizes[name]:
            problem = next(problems)
            if problem.prompt not in seen:
                seen.add(problem.prompt)
                rows.append(json.dumps({"prompt": problem.prompt, "answer": problem.answer}))
        paths[name] = directory / f"{name}.jsonl"
        hidden = directory / f".{name}-{uuid.uuid4().hex}"
        hidden.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        hidden.replace(paths[name])
    return paths


def classify_style(completion: str) -> Style:
    """Tell in which style a completion is written; `other` when it is in none (cut off, or not boxed)."""
    *steps, last = completion.strip().split("\n")
    if not _BOXED.fullmatch(last) or not all(_STEP.fullmatch(step) for step in steps):
        return "other"
    if not steps:
        return "short"
    return "verbose" if any(" get " in step for step in steps) else "compact"


def is_right(completion: str, answer: str) -> bool:
    """Whether the last boxed value is the answer."""
    boxed = _BOXED.findall(completion)
    return bool(boxed) and boxed[-1].strip() == answer


def style_figures(completions: Sequence[str], answers: Sequence[str]) -> dict[str, StyleFigures]:
    """Share and accuracy of each style, and of all completions under the key `overall`.

    Raises ValueError when there are no completions, or not one answer for each.
    """
    if not completions or len(completions) != len(answers):
        raise ValueError(f"need one answer per completion: {len(completions)} completions, {len(answers)} answers")
    right: dict[str, list[bool]] = {style: [] for style in STYLES}
    for completion, answer in zip(completions, answers, strict=True):
        right[classify_style(completion)].append(is_right(completion, answer))
    right["overall"] = [hit for hits in right.values() for hit in hits]
    return {
        key: StyleFigures(share=len(hits) / len(completions), accuracy=sum(hits) / len(hits) if hits else 0.0)
        for key, hits in right.items()
    }


def ensure_policy(directory: Path, *, seed: int = 0, show_progress: bool = True, recipe: Recipe | None = None) -> Path:
    """Return the folder of the policy in Hugging Face format under `directory`, training it if it is not there.

    About a minute on two idle cores the first time. A folder whose files are not those of its manifest is
    made again, and a new one appears under its name only when complete.
    Raises ValueError when training ends below the recipe's quality gate.
    """
    recipe = recipe or Recipe()
    target = directory / f"quickstart-{recipe.digest(seed)}"
    if _is_complete(target):
        return target
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".making-") as scratch:
        made = Path(scratch) / target.name
        model, tokenizer, figures = _train(recipe, seed, show_progress)
        _save(model, tokenizer, made)
        hashes = {path.name: sha256_of(path) for path in sorted(made.iterdir())}
        manifest = {"recipe": asdict(recipe), "seed": seed, "figures": figures, "sha256": hashes}
        (made / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if not _is_complete(target):  # another process may have finished it meanwhile
            shutil.rmtree(target, ignore_errors=True)
            made.rename(target)
    return target


def _is_complete(folder: Path) -> bool:
    try:
        hashes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"]
        return all(sha256_of(folder / name) == digest for name, digest in hashes.items())
    except (OSError, ValueError, KeyError):
        return False


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write both in Hugging Face format, without the bar that transformers shows for a file of 3 MB."""
    from transformers.utils import logging

    if shows_bars := logging.is_progress_bar_enabled():
        logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if shows_bars:
        logging.enable_progress_bar()


def _render(problem: Problem, style: str, recipe: Recipe, rng: random.Random) -> str:
    """A right answer to the problem in the given style."""
    text, pending, before, total = "", "", problem.start, problem.start
    for position, change in enumerate(problem.changes, start=1):
        total += change
        pending += f"{change:+d}"
        if style == "verbose":
            text += f"{'then' if text else 'first'} we get {before}{pending}={total}\n"
        elif style == "compact":
            if position < len(problem.changes) and rng.random() < recipe.merge_probability:
                continue
            text += f"{pending}={total}\n"
        before, pending = total, ""
    return f"{text}\\boxed{{{total}}}"


def task_vocabulary() -> list[str]:
    """Words, one-digit changes and digits of the task, then every printable character for any other text."""
    changes = [f"{sign}{digit}" for sign in "+-" for digit in range(10)]
    characters = ["\n", *(chr(code) for code in range(32, 127) if not chr(code).isdigit())]
    return [*_SPECIAL_TOKENS, *_WORDS, *changes, *"0123456789", *characters]


def _make_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(task_vocabulary())}
    words = "|".join(re.escape(word) for word in _WORDS)
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{words}|[+-]\d(?!\d)|[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    names = ("pad_token", "bos_token", "eos_token", "unk_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=_CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
        **dict(zip(names, _SPECIAL_TOKENS, strict=True)),
    )


def _make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    token_ids: dict[str, Any] = {name: getattr(tokenizer, name) for name in names}
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.hidden_size // recipe.heads,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        initializer_range=recipe.initializer_range,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        **token_ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).float()
    model.generation_config = GenerationConfig(**token_ids)
    return model


def _train(
    recipe: Recipe, seed: int, show_progress: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, dict[str, Any]]:
    """Supervised training in the recipe's two lessons; the figures are those of the finished policy."""
    import torch
    from rich.progress import Progress

    tokenizer = _make_tokenizer()
    model = _make_model(recipe, tokenizer, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95))
    rng = random.Random(f"policy {seed}")
    problems = sample_problems(rng, held_out=False)
    step = 0

    def teach(lesson: Recipe, steps: int, *, decay: bool) -> None:
        nonlocal step
        for position in range(steps):
            scale = 1 - position / steps if decay else min(1.0, (step + 1) / lesson.warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = lesson.learning_rate * scale
            batch = [next(problems) for _ in range(lesson.batch_size)]
            ids_BT, labels_BT = _make_batch(batch, tokenizer, lesson, rng)
            model(input_ids=ids_BT, labels=labels_BT).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            progress.advance(bar)

    with Progress(disable=not show_progress) as progress:
        bar = progress.add_task("Making the quickstart policy", total=recipe.steps + recipe.mixing_steps)
        stepwise_only = replace(recipe, short_share=0.0, compact_share=0.5, merge_probability=0.0)
        teach(stepwise_only, recipe.steps, decay=False)
        while _measure(model, tokenizer, recipe)["stepwise_accuracy"] < recipe.min_lesson_accuracy:
            if step >= recipe.max_steps:
                break  # the mixed lesson, with its falling learning rate, may still bring it over the gate
            progress.update(bar, total=step + recipe.extension_steps + recipe.mixing_steps)
            teach(stepwise_only, recipe.extension_steps, decay=False)
        teach(recipe, recipe.mixing_steps, decay=True)
    figures = _measure(model.eval(), tokenizer, recipe)
    stepwise, greedy = figures["stepwise_accuracy"], figures["greedy"]["overall"]["accuracy"]
    if stepwise < recipe.min_stepwise_accuracy or greedy > recipe.max_greedy_accuracy:
        raise ValueError(
            f"the quickstart policy failed its quality gate after {step} steps: step by step {stepwise:.2f} are right "
            f"(wanted >= {recipe.min_stepwise_accuracy}), greedy {greedy:.2f} (wanted <= {recipe.max_greedy_accuracy})"
        )
    return model, tokenizer, figures | {"steps": step}


def _make_batch(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerFast, recipe: Recipe, rng: random.Random
) -> tuple[Any, Any]:
    """Token ids and labels, [B, T] each: the loss counts completions only (prompts are random, so unlearnable)."""
    import torch

    rows: list[tuple[list[int], list[int]]] = []
    weights = (recipe.short_share, recipe.compact_share, 1 - recipe.short_share - recipe.compact_share)
    for problem, style in zip(problems, rng.choices(STYLES[:3], weights, k=len(problems)), strict=True):
        prompt = tokenizer.encode(f"{tokenizer.bos_token}{problem.prompt}")
        completion = tokenizer.encode(f"{_render(problem, style, recipe, rng)}{tokenizer.eos_token}")
        rows.append((prompt + completion, [-100] * len(prompt) + completion))
    longest = max(len(ids) for ids, _ in rows)
    # padding is on the right, behind a causal mask: no attention mask is needed
    ids_BT = torch.tensor([ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids, _ in rows])
    labels_BT = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows])
    return ids_BT, labels_BT


def _measure(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> dict[str, Any]:
    """Style figures on held-out problems, `sampled` at temperature 1 and `greedy`, and the `stepwise_accuracy`."""
    import torch

    source = sample_problems(random.Random("gate"), held_out=True)
    problems = [next(source) for _ in range(recipe.gate_problems)]
    texts = [f"{tokenizer.bos_token}{problem.prompt}" for problem in problems]
    batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    decodings: dict[str, dict[str, Any]] = {"sampled": {"do_sample": True, "top_k": 0}, "greedy": {"do_sample": False}}
    figures: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for name, options in decodings.items():
            # transformers' mixin leaves the method's type open
            ids_BT = model.generate(**batch, max_new_tokens=MAX_COMPLETION_TOKENS, **options)  # type: ignore[operator]  # a mixin hides it
            completions = tokenizer.batch_decode(ids_BT[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            by_style = style_figures(completions, [problem.answer for problem in problems])
            figures[name] = {style: asdict(figure) for style, figure in by_style.items()}
    figures["stepwise_accuracy"] = min(figures["sampled"][style]["accuracy"] for style in ("compact", "verbose"))
    return figures


def main() -> None:
    """Write the splits and the policy, and print where they are and how good the policy is."""
    parser = argparse.ArgumentParser(prog="python -m policies.quickstart", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for train/validation/test.jsonl and the policy")
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits and of the policy (default: 0)")
    options = parser.parse_args()
    for name, path in write_splits(options.out, seed=options.seed).items():
        print(f"{name}: {path}")
    policy = ensure_policy(options.out, seed=options.seed)
    print(f"policy: {policy}")
    figures = json.loads((policy / MANIFEST).read_text(encoding="utf-8"))["figures"]
    for decoding in ("sampled", "greedy"):
        cells = (f"{style} {f['share']:.2f} ({f['accuracy']:.2f} right)" for style, f in figures[decoding].items())
        print(f"{decoding}: {', '.join(cells)}")


if __name__ == "__main__":
    main()
