"""From a prompt and a completion to the tokens that a reward model reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rewards.base import Message, RewardBatch
from rewards.models.directory import ModelError, context_length, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Chat = Sequence[Message]
Overflow = Literal["truncate_left", "error"]


class ChatEncoder:
    """Tokens through the chat template. Where the tokenizer has none, prompt and completion are a pair for one that
    marks pairs ([CLS] prompt [SEP] completion [SEP], as encoders are trained), and stand end to end for others.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, overflow: Overflow) -> None:
        self.tokenizer = tokenizer
        self._first = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
        self._has_pairs = tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None
        self._special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self.max_length = max_length
        self._overflow = overflow

    @classmethod
    def load(cls, path: Path, config: dict[str, Any], max_length: int | None, overflow: Overflow) -> ChatEncoder:
        """`max_length` None stands for the model's own limit. Raises ModelError."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ModelError(f"no tokenizer at {path}: {first_line(error)}") from None
        limit = context_length(config)
        if max_length is not None and limit is not None and max_length > limit:
            raise ModelError(f"max_length: the model was made for {limit} tokens at most")
        longest = max_length or limit
        if longest is None:
            raise ModelError("max_length: the model's config does not say how much it can read; give a number")
        return cls(tokenizer, longest, overflow)

    def completions(self, batch: RewardBatch) -> list[list[int]]:
        """Tokens of each row: the chat with the completion as the assistant's answer."""
        return [
            self.fit(self.encode(chat, self.clean(completion)), row)
            for row, (chat, completion) in enumerate(zip(batch.messages, batch.completions, strict=True))
        ]

    def prompts(self, chats: Sequence[Chat]) -> list[list[int]]:
        """Tokens of each chat up to where the answer starts."""
        return [self.fit(self.encode(chat, None), row) for row, chat in enumerate(chats)]

    def clean(self, completion: str) -> str:
        """Without the spelling of special tokens, by which a policy could end its answer and go on as the user."""
        before = None
        while before != completion:  # what is left may spell another one
            before = completion
            for token in self._special:
                completion = completion.replace(token, "")
        return completion

    def encode(self, chat: Chat, completion: str | None) -> list[int]:
        """In full length. Raises ModelError for a chat of several messages without a template."""
        if self.tokenizer.chat_template is None:
            if len(chat) != 1 or chat[0]["role"] != "user":
                raise ModelError(
                    "the prompt is a chat, but the reward model's tokenizer has no chat template; add one to its "
                    "directory as chat_template.jinja"
                )
            prompt = chat[0]["content"]
            if self._has_pairs and completion is not None:
                return list(self.tokenizer.encode(prompt, completion))
            return list(self.tokenizer.encode(prompt + (completion or "")))
        messages = [dict(message) for message in chat]
        if completion is not None:
            messages.append({"role": "assistant", "content": completion})
        return list(
            self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=completion is None, tokenize=True, return_dict=False
            )
        )

    def fit(self, tokens: list[int], row: int) -> list[int]:
        """Cut at the start, or refused, where it is too long; the row is named.

        The token that begins every text stays: encoders read their score there.
        """
        if not tokens:
            raise ModelError(f"row {row} has no tokens at all")
        if len(tokens) > self.max_length and self._overflow == "error":
            raise ModelError(
                f"row {row} has {len(tokens)} tokens, more than max_length ({self.max_length}); raise it, or set "
                "overflow: truncate_left"
            )
        if len(tokens) <= self.max_length:
            return tokens
        kept = self.beginning(tokens)
        return tokens[:kept] + tokens[len(tokens) - self.max_length + kept :]

    def beginning(self, tokens: list[int]) -> int:
        """How many tokens of the row's beginning are no text: one, [CLS] or <s>, or none."""
        return int(tokens[0] in self._first)


def unique(rows: Sequence[list[int]]) -> tuple[list[list[int]], list[int]]:
    """The different rows, and for each row where it is among them: the rollouts of a prompt share it."""
    places: dict[tuple[int, ...], int] = {}
    index = [places.setdefault(tuple(row), len(places)) for row in rows]
    return [list(row) for row in places], index


def by_length(rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Indices of rows of similar length, so that little is padding."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
