"""What a spec says of the language model."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from orchestrator.specs.base import Positive, Spec

Target = Annotated[str, Field(pattern=r"^[A-Za-z_]\w{0,63}$")]


class LoraSpec(Spec):
    """A low-rank adapter (arXiv 2106.09685) learns in the policy's place: W + alpha / rank B A."""

    rank: int = Field(16, ge=1, le=1024, description="of each adapted layer's change")
    alpha: Positive = Field(32.0, le=65_536, description="the change is scaled by alpha / rank")
    targets: tuple[Target, ...] | None = Field(
        None,
        max_length=64,
        description="adapted layers, by the last part of their names, such as q_proj; every linear layer of the "
        "transformer blocks when absent",
    )

    merge: bool | None = Field(
        None,
        description="whether checkpoints have the whole merged policy, as large as the model, or the adapter alone, of "
        "which `equipoise merge` makes one; when absent, the adapter alone, but the whole policy in jobs that start "
        "from init_checkpoint, whose base nobody else keeps",
    )

    @field_validator("targets")
    @classmethod
    def _once(cls, targets: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if targets is None:
            return None
        if not targets:
            raise ValueError("name a layer at least, or leave targets out for all of them")
        for i, target in enumerate(targets):
            if target in targets[:i]:
                raise ValueError(f"'{target}' stands twice; name every layer once")
        return targets


TAKEN = frozenset({
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "messages",
    "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize", "tokenizer_kwargs",
    "truncation",
})  # fmt: skip
"""What a prompt is made with already, and no variable of a template."""


class ChatSpec(Spec):
    """What the policy's chat template is given beside a row's prompt, in training and evaluation."""

    template: Literal["own", "none"] = Field(
        "own",
        description="`own`: prompts go through the policy's chat template, if it has one, a text as the user's "
        "message; `none`: texts are given as they are, as to a base model, and chat messages are refused",
    )
    system: str | None = Field(
        None,
        min_length=1,
        max_length=100_000,
        description="system message before each prompt that has none of its own; rewards see prompts without it",
    )
    template_kwargs: dict[str, JsonValue] = Field(
        default_factory=dict,
        max_length=32,
        description="variables of the chat template, such as {enable_thinking: false}; one that it does not have is "
        "refused",
    )

    @field_validator("template_kwargs")
    @classmethod
    def _are_the_templates(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in value:
            if name in TAKEN or not name.isidentifier():
                raise ValueError(f"'{name[:64]}' is no variable of a chat template that can be set; leave it out")
        return value

    @model_validator(mode="after")
    def _has_a_template(self) -> Self:
        if self.template == "none" and (self.system is not None or self.template_kwargs):
            raise ValueError("template: none shows neither a system message nor variables; leave them out")
        return self


class PolicySpec(Spec):
    """The language model that is aligned."""

    model: str = Field(
        min_length=1,
        description="`quickstart` (a tiny model that is trained on first use), a Hugging Face directory, or a hub id",
    )
    revision: str | None = Field(None, description="commit of a hub id; ignored for a directory")
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16",
        description="of the engines and of the learner's arithmetic; what learns is kept in float32",
    )
    max_model_len: int | None = Field(
        None, ge=16, description="tokens of prompt and completion together; the model's own limit when absent"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, more time")
    cpu_offload: bool = Field(
        False,
        description="on GPUs, the learner's weights, gradients and moments are the host's, and a block's weights come "
        "when it is their turn (FSDP2): slower, for policies that fit no other way",
    )
    compile: bool = Field(
        False,
        description="on a GPU, fuse what the learner's blocks do between their products (torch.compile): faster "
        "updates after a slower first one",
    )
    lora: LoraSpec | None = Field(
        None,
        description="train an adapter instead of every parameter: a fraction of the memory, and small checkpoints of "
        "the learner; wants a higher optimizer.lr. `{}` takes the defaults",
    )
    chat: ChatSpec = Field(ChatSpec(), description="system message and variables of the chat template")
