"""Prompts as the policy of a job will see them: through its chat template, with special tokens, cut as a job cuts them.

Needs transformers and the policy's tokenizer, and reads every split as the driver does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.inputs import load_splits, longest_prompt, prompt_encoder, resolve_model
from orchestrator.rollouts.prompts import Prompt
from orchestrator.spec import JobSpec
from policies.models import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def rendered(spec: JobSpec, state_dir: Path, *, split: str, rows: int) -> dict[str, Any]:
    """Figures of every split, and the first rows of one. Raises ModelError, DatasetError, RemoteAway, ValueError.

    `room` is what a prompt may have beside a completion; None where nothing bounds it.
    """
    model = resolve_model(spec, state_dir)
    tokenizer = load_tokenizer(model, revision=spec.policy.revision)
    splits = load_splits(spec, state_dir, model=model, encoder=prompt_encoder(spec, tokenizer))
    by_name = splits.by_name
    if split not in by_name:
        raise ValueError(f"no split '{split}'; there is {', '.join(by_name)}")
    special = special_tokens(tokenizer)
    figures = splits.figures()
    for name, prompts in by_name.items():
        figures[name]["with_special_tokens"] = sum(bool(written(prompt, special)) for prompt in prompts)
    room = longest_prompt(spec, model)
    return {
        "splits": figures,
        "room": room if room < 2**31 else None,
        "split": split,
        "rows": [_row(prompt, tokenizer, special) for prompt in by_name[split][:rows]],
    }


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def written(prompt: Prompt, special: list[str]) -> list[str]:
    """Special tokens that the row's own text has: the policy sees them as such, also where they end a turn."""
    text = "\n".join(message["content"] for message in prompt.messages)
    return [token for token in special if token in text]


def _row(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, special: list[str]) -> dict[str, Any]:
    text = tokenizer.decode(list(prompt.tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return {
        "row": prompt.row,
        "tokens": len(prompt.tokens),
        "rendered": text,
        "text": prompt.text,
        "answer": prompt.answer,
        "domain": prompt.domain,
        "details": dict(prompt.details),
        "special_tokens": written(prompt, special),
    }
