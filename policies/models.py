"""Loading and saving policies in Hugging Face format: safetensors only, no code from the model's directory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # as PEFT names them
BOUNDED_ATTENTION = "attn_logit_softcapping"  # of Gemma 2: vLLM keeps to it, transformers in its eager attention alone
WITH_OTHER_SENSES = frozenset({"gemma3", "gemma3n", "gemma4", "gemma4_unified", "qwen3_5", "qwen3_5_moe"})
"""Types of models that see or hear too, whose language model transformers trains and vLLM is sent by names it knows."""

_POLICY = re.compile(r"(ForCausalLM|LMHeadModel)$")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"  # as transformers names them


class ModelError(ValueError):
    """A policy that can't be loaded; the message says what was expected and what to do."""


class Base(NamedTuple):
    """The policy that an adapter was trained on."""

    model: str  # a directory or a hub id
    revision: str | None


def adapter_base(path: Path) -> Base | None:
    """Of a directory that has an adapter and no weights beside it; None of any other. Raises ModelError."""
    file = path / ADAPTER_CONFIG
    if not file.is_file() or _weights(path):
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        model, revision = config["base_model_name_or_path"], config.get("revision")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        model, revision = None, None
    if not isinstance(model, str) or not model or not isinstance(revision, str | None):
        raise ModelError(f"{file} does not name the adapter's base (base_model_name_or_path)")
    return Base(model, revision)


def check_directory(path: Path) -> dict[str, Any]:
    """The config of a Hugging Face directory. Raises ModelError where it is no loadable, safe policy."""
    if not path.is_dir():
        raise ModelError(f"{path} is no directory; give a Hugging Face directory, a hub id or 'quickstart'")
    if adapter_base(path) is not None:
        raise ModelError(f"{path} has an adapter alone; make a whole policy of it: equipoise merge ADAPTER DIRECTORY")
    _check_adapter(path, str(path))
    config_file = path / "config.json"
    if not config_file.is_file():
        raise ModelError(f"{path} has no config.json; expected a Hugging Face model directory")
    try:
        config = json.loads(config_file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ModelError(f"{config_file} is not valid JSON") from None
    if not isinstance(config, dict):
        raise ModelError(f"{config_file} is not a JSON object")
    if "auto_map" in config:
        raise ModelError(f"{path} wants to run code of its own (auto_map in config.json), which is never allowed")
    check_trainable(config, str(path))
    if not _weights(path):
        pickled = sorted(file.name for pattern in PICKLED for file in path.glob(pattern))
        found = f"only pickled weights ({', '.join(pickled[:3])}), which can run code" if pickled else "no weights"
        raise ModelError(f"{path} has {found}; save it with safetensors: model.save_pretrained(directory)")
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(f"{path} has no tokenizer; save it there: tokenizer.save_pretrained(directory)")
    return config


def check_trainable(config: dict[str, Any], name: str) -> None:
    """Raises ModelError for weights that no update can change, and for what is no language model, as configs say."""
    quantized = config.get("quantization_config") or _text(config).get("quantization_config")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        how = f" ({method})" if isinstance(method, str) else ""
        raise ModelError(
            f"{name} has quantized weights{how}, which can't be trained; take the model's bfloat16 release"
        )
    kinds = config.get("architectures")
    if (
        not isinstance(kinds, list)
        or not kinds
        or any(isinstance(kind, str) and _POLICY.search(kind) for kind in kinds)
    ):
        return
    if config.get("model_type") not in WITH_OTHER_SENSES:
        raise ModelError(
            f"{name} is a {kinds[0]}, which is no policy; expected a causal language model, such as Qwen3ForCausalLM"
        )


def _check_adapter(path: Path, name: str) -> None:
    """transformers takes the base that it names, which may be any directory of this machine, or adds it unseen."""
    if (path / ADAPTER_CONFIG).exists():
        raise ModelError(f"{name} has an adapter ({ADAPTER_CONFIG}), expected whole weights alone; take one without it")


def _weights(path: Path) -> bool:
    """Whether there are any in safetensors beside an adapter's own."""
    return any(file.name != ADAPTER_WEIGHTS for file in path.glob("*.safetensors"))


def hub_config(hub_id: str, *, revision: str | None = None) -> dict[str, Any]:
    """Its config; an empty one where it can't be read: loading the model then says why."""
    from huggingface_hub import hf_hub_download

    try:
        file = Path(hf_hub_download(hub_id, "config.json", revision=revision))
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def context_length(config: dict[str, Any]) -> int | None:
    """Tokens that the model was made for, where its config says so."""
    value = _text(config).get("max_position_embeddings")
    return value if isinstance(value, int) and value > 0 else None


def check_positions(config: PretrainedConfig, max_model_len: int | None) -> None:
    """Raises ModelError for engines' contexts in which LongRoPE (arXiv 2402.13753) would be two things.

    A context beyond the original one has long factors in vLLM, for every text; in transformers only a batch that has a
    longer text has. Where vLLM is not told, it stays within the original context.
    """
    text: Any = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings")
    if rope.get("rope_type") != "longrope" or original is None:
        return
    context = max_model_len or getattr(text, "original_max_position_embeddings", text.max_position_embeddings)
    if context > original:
        raise ModelError(
            f"policy.max_model_len: this model's positions (longrope) depend on the texts beside, beyond {original} "
            f"tokens; set it to {original} or less"
        )


def ranks_that_share(config: dict[str, Any], most: int) -> list[int]:
    """How many ranks of an engine vLLM can share the attention heads among; all numbers where the config has no heads.

    Each rank has as many; of keys and values, either as many or one that it shares with as many other ranks.
    """
    heads = _text(config).get("num_attention_heads")
    groups = _text(config).get("num_key_value_heads") or heads
    if not (isinstance(heads, int) and isinstance(groups, int) and heads > 0 and groups > 0):
        return [*range(1, most + 1)]
    fitting = (n for n in range(1, most + 1) if heads % n == 0)
    return [n for n in fitting if max(n, groups) % min(n, groups) == 0]


def _text(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part, where there are others."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def load_tokenizer(model: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The policy's tokenizer. Raises ModelError where there is none or it has no end-of-sequence token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer at {model}: {_first_line(error)}") from None
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {model} has no end-of-sequence token, so completions would never end")
    return tokenizer


def processor_files(model: str, *, revision: str | None = None) -> dict[str, bytes]:
    """By name, what vLLM wants beside the weights of a model that sees or hears, also for prompts of text alone.

    Raises ModelError where a hub id's can't be read.
    """
    path = Path(model)
    try:
        if not path.is_dir():
            from huggingface_hub import snapshot_download

            path = Path(snapshot_download(model, revision=revision, allow_patterns=list(PROCESSOR_FILES)))
        return {name: (path / name).read_bytes() for name in PROCESSOR_FILES if (path / name).is_file()}
    except (OSError, ValueError) as error:
        raise ModelError(f"can't read the processor of {model}: {_first_line(error)}") from None


def tokenizer_saver(tokenizer: PreTrainedTokenizerBase, processor: Mapping[str, bytes]) -> Callable[[Path], None]:
    """Writes what reads prompts beside a checkpoint's policy: `processor` are files of the initial one's, by name."""

    def save(directory: Path) -> None:
        tokenizer.save_pretrained(directory)
        for name, content in processor.items():
            (directory / name).write_bytes(content)

    return save


def load_model(
    model: str, *, revision: str | None = None, dtype: Literal["float32", "bfloat16"] = "float32"
) -> PreTrainedModel:
    """The policy, from safetensors, without its directory's code. Raises ModelError."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    path = Path(model)
    try:
        if path.is_dir():
            check_directory(path)
        else:
            path = _fetched(model, revision)
        answer: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except ModelError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"can't load {model}: {_first_line(error)}") from None
    loaded, report = answer
    if report["missing_keys"]:  # transformers would make them up at random
        raise ModelError(f"can't load {model}: it has no weights for {', '.join(sorted(report['missing_keys'])[:3])}")
    if getattr(loaded.config.get_text_config(), BOUNDED_ATTENTION, None) is not None:
        loaded.set_attn_implementation("eager")
    return loaded


def _fetched(hub_id: str, revision: str | None) -> Path:
    """Its files that loading takes, of one commit: never code or pickles, nor its weights in other formats."""
    from huggingface_hub import snapshot_download

    path = Path(snapshot_download(hub_id, revision=revision, allow_patterns=["*.json"], ignore_patterns=["*/*"]))
    _check_adapter(path, hub_id)
    config = json.loads((path / "config.json").read_text(encoding="utf-8")) if (path / "config.json").is_file() else {}
    if isinstance(config, dict):
        check_trainable(config, hub_id)
    index = json.loads((path / _INDEX).read_text(encoding="utf-8")) if (path / _INDEX).is_file() else {}
    places = index.get("weight_map", {}) if isinstance(index, dict) else {}
    shards = {file for file in places.values() if isinstance(file, str)} if isinstance(places, dict) else set()
    wanted = [_WEIGHTS, *sorted(file for file in shards if file.endswith(".safetensors"))]
    return Path(snapshot_download(hub_id, revision=path.name, allow_patterns=wanted))


def with_system(messages: list[dict[str, str]], system: str | None) -> list[dict[str, str]]:
    """A chat with a system message at its start, unless it has one of its own or none is given."""
    if system is None or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | list[dict[str, str]],
    *,
    system: str | None = None,
    template_kwargs: Mapping[str, Any] = MappingProxyType({}),
    is_plain: bool = False,
) -> list[int]:
    """Tokens of a prompt, through the chat template where the tokenizer has one, unless it `is_plain`.

    Raises ModelError for chat messages without a template, and for those that it refuses.
    """
    from jinja2 import TemplateError

    if is_plain or tokenizer.chat_template is None:
        if not isinstance(prompt, str):
            why = "policy.chat.template is none" if is_plain else "the tokenizer has no chat template"
            raise ModelError(f"the prompts are chat messages, but {why}")
        return _plain_tokens(tokenizer, prompt)
    messages = with_system([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt, system)
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False, **template_kwargs}
    try:
        return list(tokenizer.apply_chat_template(messages, **options))
    except TemplateError as error:
        raise ModelError(f"the policy's chat template refuses a prompt: {_first_line(error)}") from None


def _plain_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """With the beginning that the tokenizer adds, once, and without the end, behind which no policy would go on."""
    tokens, end = list(tokenizer.encode(text)), tokenizer.eos_token_id
    if tokens[-1:] == [end] and tokens[-len(own := tokenizer.encode(text, add_special_tokens=False)) :] != list(own):
        tokens.pop()
    return tokens[1:] if tokens[:2] == [tokenizer.bos_token_id] * 2 else tokens


def check_chat(template: str | None, system: str | None, template_kwargs: Mapping[str, Any]) -> None:
    """Raises ModelError where a policy's chat template would take no notice of them; None: it has no template."""
    if system is None and not template_kwargs:
        return
    if template is None:
        raise ModelError("policy.chat: the policy's tokenizer has no chat template; leave it out")
    for name in template_kwargs:
        if not re.search(rf"\b{name}\b", template):
            raise ModelError(f"policy.chat.template_kwargs: the policy's chat template has no variable '{name}'")


def check_system(tokenizer: PreTrainedTokenizerBase, system: str, template_kwargs: Mapping[str, Any]) -> None:
    """Raises ModelError where the chat template leaves a system message out. What it refuses, a prompt will tell."""
    try:
        one, other = (
            encode_prompt(tokenizer, "?", system=text, template_kwargs=template_kwargs)
            for text in (system, f"{system} x")  # not with and without: it may be the template's own
        )
    except ModelError:
        return
    if one == other:
        raise ModelError("policy.chat.system: the policy's chat template shows no system message; leave it out")


def template_file(path: Path) -> str | None:
    """The chat template in a policy's directory, as far as it is told without loading the tokenizer."""
    try:
        if (file := path / "chat_template.jinja").is_file():
            return file.read_text(encoding="utf-8")
        template = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None
    return template if isinstance(template, str) else None


def check_shown(encode: Callable[[list[dict[str, str]]], list[int]], messages: list[dict[str, str]]) -> None:
    """Raises ModelError for a message of which the chat template shows nothing: no policy could answer it."""
    shown = encode(messages)
    for i, message in enumerate(messages):
        others = ({**message, "content": text} for text in (f"{message['content']} x", "1"))
        if all(encode([*messages[:i], other, *messages[i + 1 :]]) == shown for other in others):
            raise ModelError(
                f"message {i + 1}: the policy's chat template shows nothing of a message of the role "
                f"'{message['role'][:40]}' with a text as its content; rename the role, or use another policy"
            )


def check_texts(tokenizer: PreTrainedTokenizerBase, texts: Mapping[str, str]) -> None:
    """Raises ModelError for one, by its field, that no completion has: special tokens are left out of its text."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for field, text in texts.items():
        if found := [token for token in special if token in text]:
            raise ModelError(f"{field}: '{found[0]}' is a special token, which the text of a completion is without")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
