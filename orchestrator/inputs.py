"""What a job starts from: its model, the tokens of its prompts, and its splits."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import routing
from orchestrator.rollouts.prompts import Contents, DatasetError, Prompt, encode
from orchestrator.rollouts.split_files import SplitFiles, each_of
from orchestrator.spec import JobSpec
from orchestrator.specs.data import SETS, Columns, FilesData
from orchestrator.storage.datasets import locate
from orchestrator.storage.remote import LONG_PAUSES_S, is_url
from orchestrator.storage.remote_data import fetch, files_of
from policies.disk import sha256_of
from policies.models import (
    ADAPTER_WEIGHTS,
    ModelError,
    adapter_base,
    check_chat,
    check_directory,
    check_shown,
    check_system,
    check_texts,
    context_length,
    encode_prompt,
    hub_config,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("equipoise.driver")


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Encoded prompts. `test` is empty where the spec names none."""

    train: list[Prompt]
    validation: list[Prompt]
    test: list[Prompt]
    sets: dict[str, list[Prompt]] = field(default_factory=dict)  # by what they are called among the splits
    sha256: dict[str, str] = field(default_factory=dict)  # of each file that the spec names
    dropped: dict[str, int] = field(default_factory=dict)  # by split, prompts that were too long

    @property
    def by_name(self) -> dict[str, list[Prompt]]:
        """Those that there are."""
        found = {"train": self.train, "validation": self.validation, "test": self.test, **self.sets}
        return {name: prompts for name, prompts in found.items() if prompts}

    def figures(self) -> dict[str, dict[str, int]]:
        """By split, how many prompts there are, how many were dropped, and how long they are in tokens."""
        lengths = {name: sorted(len(prompt.tokens) for prompt in prompts) for name, prompts in self.by_name.items()}
        return {
            name: {
                "prompts": len(tokens),
                "dropped": self.dropped.get(name, 0),
                "median_tokens": tokens[len(tokens) // 2],
                "longest_tokens": tokens[-1],
            }
            for name, tokens in lengths.items()
        }


def resolve_model(
    spec: JobSpec, state_dir: Path, *, data_dir: Path | None = None, on_stage: Callable[[str], None] = lambda _: None
) -> str:
    """A directory or hub id that transformers and vLLM load.

    Trains the quickstart policy where it is asked for. An adapter that the job starts from is merged into `data_dir`,
    once, so that its base stays what it was.
    """
    if spec.init_checkpoint is not None:
        path = Path(spec.init_checkpoint).expanduser()
        if not path.is_dir():
            raise ModelError(f"init_checkpoint: {path} is no directory; give that of an exported checkpoint")
        if adapter_base(path) is not None:
            merged = (data_dir or state_dir / "policies") / f"merged-{sha256_of(path / ADAPTER_WEIGHTS)[:16]}"
            if not merged.is_dir():
                on_stage("merging the adapter that the job starts from")
                from policies.merging import merge_adapter

                merge_adapter(path, merged)
            return str(merged)
        check_directory(path)
        return str(path)
    if spec.policy.model == "quickstart":
        from policies.quickstart import ensure_policy

        return str(ensure_policy(state_dir / "policies", seed=spec.seed, show_progress=False))
    if Path(spec.policy.model).expanduser().exists() or spec.policy.model.startswith((".", "/", "~")):
        path = Path(spec.policy.model).expanduser()
        check_directory(path)
        return str(path.resolve())
    return spec.policy.model


def prompt_encoder(
    spec: JobSpec, tokenizer: PreTrainedTokenizerBase, *, is_resumed: bool = False
) -> Callable[[Any], list[int]]:
    """Makes tokens of a prompt, text or messages. Raises ModelError where the spec and the tokenizer do not fit.

    So does what it returns, for a prompt. A job that `is_resumed` goes on though its template does not show its system
    message, or one of a prompt, which new ones may not.
    """
    chat, rollout = spec.policy.chat, spec.rollout
    is_plain = chat.template == "none"
    template = None if is_plain or tokenizer.chat_template is None else tokenizer.get_chat_template()
    check_chat(template, chat.system, chat.template_kwargs)
    if chat.system is not None and not is_resumed:
        check_system(tokenizer, chat.system, chat.template_kwargs)
    texts = {f"rollout.stop.{i}": text for i, text in enumerate(rollout.stop)}
    if rollout.thoughts_end is not None:
        texts["rollout.reasoning.end"] = rollout.thoughts_end
    check_texts(tokenizer, texts)
    options: dict[str, Any] = {"system": chat.system, "template_kwargs": chat.template_kwargs, "is_plain": is_plain}
    encode = functools.partial(encode_prompt, tokenizer, **options)
    return encode if template is None or is_resumed else _checking(encode)


def _checking(encode: Callable[[Any], list[int]]) -> Callable[[Any], list[int]]:
    """The same, with a look at the first prompt of each sequence of roles: a template goes by these."""
    seen: set[tuple[str, ...]] = set()

    def checked(prompt: str | list[dict[str, str]]) -> list[int]:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        roles = tuple(message["role"] for message in messages)
        if roles not in seen:
            check_shown(encode, messages)
            seen.add(roles)
        return encode(prompt)

    return checked


def load_splits(
    spec: JobSpec,
    state_dir: Path,
    *,
    model: str,
    encoder: Callable[[Any], list[int]],
    owner: str = "local",
    data_dir: Path | None = None,
    is_resumed: bool = False,
) -> Splits:
    """Every split, encoded. Raises DatasetError naming the file and the row."""
    files = split_files(spec, state_dir, owner, data_dir)
    longest = longest_prompt(spec, model, is_resumed=is_resumed)
    drop = isinstance(spec.data, FilesData) and spec.data.overlong == "drop"
    splits: dict[str, list[Prompt]] = {}
    dropped: dict[str, int] = {}
    for name, each in files.items():
        splits[name], dropped[name] = [], 0
        try:
            for path, rows in groupby(each_of(each, lenient=is_resumed), itemgetter(0)):
                found, count = encode((row for _, row in rows), str(path), encoder, longest=longest, drop=drop)
                splits[name] += found
                dropped[name] += count
        except DatasetError as error:  # in the words of the spec, not of where its file was fetched to
            raise DatasetError(each.in_words_of_spec(str(error))) from None
        if not splits[name]:
            raise DatasetError(f"data.{name}: each of its {dropped[name]} prompts has more than {longest} tokens")
    if shown := [name for name, split in splits.items() if any(p.messages[-1]["role"] == "assistant" for p in split)]:
        log.warning("prompts of %s end with the assistant's turn, which new jobs may not have", ", ".join(shown))
    used = {**splits, "validation": splits["validation"][: spec.evaluation.prompts]}
    for where, message in routing.problems(spec, {name: Contents.of(prompts) for name, prompts in used.items()}):
        raise DatasetError(f"{where}: {message}")
    sums = {
        name: sha256_of(*each.paths)
        for name, each in files.items()
        if isinstance(spec.data, FilesData) and not each.is_held_out  # what is held back follows from the train split
    }
    return Splits(
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test", []),
        sets={name: prompts for name, prompts in splits.items() if name.startswith(SETS)},
        sha256=sums,
        dropped=dropped,
    )


def check_data(spec: JobSpec, splits: Splits, trained_with: Mapping[str, str]) -> None:
    """Raises ValueError where a split's file is not the one that the job was trained with."""
    for split, digest in trained_with.items():
        if splits.sha256.get(split) != digest:
            name = ", ".join(spec.data.names(split)) if isinstance(spec.data, FilesData) else ""
            was = f"it has another content than the job was trained with (sha256 {digest})"
            raise ValueError(f"data.{split}: {name}: {was}; put the old file back, or submit the job again")


def split_files(spec: JobSpec, state_dir: Path, owner: str, data_dir: Path | None = None) -> dict[str, SplitFiles]:
    """By split; the quickstart task's files are written first, those of URLs fetched, and datasets held."""
    if isinstance(spec.data, FilesData):
        data = spec.data
        return {split: _files_of(data, split, owner, state_dir, data_dir) for split in data.splits}
    from policies.quickstart import write_splits

    sizes = {"train": spec.data.train, "validation": spec.data.validation, "test": spec.data.test}
    folder = state_dir / "data" / ("quickstart-" + "-".join(str(size) for size in (spec.seed, *sizes.values())))
    written = write_splits(folder, seed=spec.seed, sizes=sizes)
    return {name: SplitFiles(paths=(path,), columns=Columns()) for name, path in written.items()}


def _files_of(data: FilesData, split: str, owner: str, state_dir: Path, data_dir: Path | None) -> SplitFiles:
    columns, folder = data.columns, data_dir or state_dir / "data"
    paths: dict[Path, str | None] = {}  # with their URLs
    for name in data.names(split):
        if is_url(name):
            for url in files_of(name, data.hub_split(split), folder, pauses_s=LONG_PAUSES_S):
                paths[fetch(url, folder, pauses_s=LONG_PAUSES_S)] = url
        else:
            found, columns = locate(name, data.columns, owner, state_dir, data_dir)
            paths |= dict.fromkeys(found)
    return SplitFiles(
        paths=tuple(paths),
        columns=columns,
        limit=data.limit,
        share=data.held_back if split in ("train", "validation") else None,
        is_held_out=split == "validation" and data.held_back is not None,
        named={path: url for path, url in paths.items() if url is not None},
    )


def longest_prompt(spec: JobSpec, model: str, *, is_resumed: bool = False) -> int:
    """Tokens that a prompt may have beside rollout.max_tokens. Raises ModelError where there is no room at all.

    A hub id's own context holds new jobs back alone: the others began before it was looked at.
    """
    if Path(model).is_dir():
        config = check_directory(Path(model))
    else:
        config = {} if is_resumed else hub_config(model, revision=spec.policy.revision)
    lengths = [length for length in (spec.policy.max_model_len, context_length(config)) if length]
    if not lengths:
        return 2**31
    room = min(lengths) - spec.rollout.max_tokens
    if room < 1:
        raise ModelError(
            f"rollout.max_tokens is {spec.rollout.max_tokens}, but the context of {min(lengths)} tokens must hold "
            "the prompt as well; lower rollout.max_tokens or raise policy.max_model_len"
        )
    return room
