"""Rewards by name: what a spec may ask for, and what the API lists.

Built-in rewards register themselves with `@register`. An installed package adds one with an entry point of
that name in the group `equipoise.rewards`:

    [project.entry-points."equipoise.rewards"]
    politeness = "my_package.rewards:Politeness"

Importing this module imports no reward, and a plugin is imported when its name is first asked for. What is
slow to import (a comparison library, a model) the reward itself imports, no earlier than when it is built.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rewards.base import Reward

ENTRY_POINT_GROUP = "equipoise.rewards"
_VERIFIERS = (
    *("clarity", "format", "instructions", "json_schema", "language", "length", "math", "numeric", "regex"),
    *("repetition", "text", "tool_call", "worked"),
)
_BUILTIN_MODULES = (
    *(f"rewards.verifiers.{module}" for module in _VERIFIERS),
    *(f"rewards.models.{module}" for module in ("bradley_terry", "process", "regression")),
    *(f"rewards.judges.{module}" for module in ("judge", "pairwise")),
)
MODEL_FORMAT = "model"  # of an option's JSON schema: it names a model's directory or a hub id
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")

_registered: dict[str, type[Reward]] = {}

RewardType = TypeVar("RewardType", bound=type[Reward])


class OptionsError(ValueError):
    """Options that a reward does not take: (option, what is wrong) of each, the option empty for several together."""

    def __init__(self, reward: str, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        said = "; ".join(f"option {option!r}: {message}" if option else message for option, message in problems)
        super().__init__(f"reward {reward!r}: {said}")


@dataclass(frozen=True, kw_only=True)
class RewardInfo:
    """What a person needs in order to choose a reward."""

    name: str
    summary: str
    """One line."""
    range: tuple[float, float]
    options: dict[str, Any]
    """JSON schema of the options."""
    plugin: str | None = None
    """Module and class, for a reward of an installed package."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A reward as it is known without importing a plugin."""

    name: str
    plugin: str | None
    info: RewardInfo | None
    """None for a plugin that nobody has asked for yet."""


def register(reward: RewardType) -> RewardType:
    """Class decorator: makes the reward available under its `name`.

    ValueError for a bad or a taken name, and for what lacks a part of a reward.
    """
    _check(reward)
    if not _NAME.fullmatch(reward.name):
        raise ValueError(f"{reward.name!r} names no reward: use lower-case letters, digits and underscores")
    taken = _registered.setdefault(reward.name, reward)
    if taken is not reward:
        raise ValueError(f"reward {reward.name!r} is already registered by {taken.__module__}")
    return reward


def names() -> list[str]:
    """Every reward that `resolve` knows, sorted."""
    _load_builtins()
    return sorted({*_registered, *_plugins()})


def resolve(name: str) -> type[Reward]:
    """The class registered under `name`.

    Raises ValueError with the nearest name for an unknown one, RuntimeError for a plugin that does not load.
    """
    _load_builtins()
    if name not in _registered:
        if name not in _plugins():
            raise ValueError(f"unknown reward {_quote(name)}{_suggest(name, names())}")
        _load(name)
    return _registered[name]


def plugin_package(name: str) -> str | None:
    """The distribution that a plugin is of, with its version: `my-package 1.0`; None of a reward of our own."""
    if name not in _plugins() or _is_builtin(name):
        return None
    found = {point.dist for point in _plugins()[name] if point.dist is not None}
    return " and ".join(sorted(f"{dist.name} {dist.version}" for dist in found))


def parse_options(name: str, options: Mapping[str, object]) -> BaseModel:
    """The validated options of a reward. OptionsError names each bad field, and never repeats a bad value."""
    schema = resolve(name).Options
    try:
        return schema.model_validate(dict(options))
    except ValidationError as error:
        raise OptionsError(name, [_explain(problem, schema) for problem in error.errors(include_input=False)]) from None


def problems(name: str, options: Mapping[str, object]) -> list[tuple[str, str]]:
    """(option, what is wrong) of valid options that can't be used on this machine, where the reward can tell."""
    reward = resolve(name)
    find = getattr(reward, "problems", None)
    return [] if find is None else list(find(parse_options(name, options)))


def range_of(name: str, options: Mapping[str, object]) -> tuple[float, float]:
    """(lo, hi) of its scores with these options, as far as files of this machine tell; infinite without a bound."""
    reward = resolve(name)
    find = getattr(reward, "range_of", None)
    low, high = _declared_range(reward) if find is None else find(parse_options(name, options))
    return float(low), float(high)


def needs_answer(name: str, options: Mapping[str, object]) -> bool:
    """Whether it has no score for a row without a ground truth."""
    return bool(getattr(parse_options(name, options), "needs_answer", False))


def columns_read(name: str, options: Mapping[str, object]) -> tuple[str, ...]:
    """Further columns of the data, without which it has no score for any row, as far as it tells."""
    return tuple(getattr(parse_options(name, options), "columns_read", ()))


def truth_check(name: str) -> tuple[Callable[[str], bool], str] | None:
    """(whether some completion could meet a ground truth, what one has to be), of a reward that can tell."""
    reward = resolve(name)
    takes = getattr(reward, "takes_truth", None)
    return None if takes is None else (takes, getattr(reward, "wanted_truth", "another one"))


def named_models(name: str, options: Mapping[str, object]) -> dict[str, object]:
    """The options that name a model, by name, for whoever decides what may be read from this machine."""
    fields = resolve(name).Options.model_fields
    extras = {option: field.json_schema_extra for option, field in fields.items()}
    wanted = [
        option for option, extra in extras.items() if isinstance(extra, dict) and extra.get("format") == MODEL_FORMAT
    ]
    return {option: options[option] for option in wanted if option in options}


def build(name: str, options: Mapping[str, object]) -> Reward:
    """A reward that is ready to score. Call it where the scoring happens: it may load a model."""
    return resolve(name)(parse_options(name, options))


def listed() -> list[Listed]:
    """Every reward, by name; no plugin is imported."""
    found, plugins = names(), _plugins()
    return [
        Listed(
            name=name,
            plugin=_modules(plugins[name]) if name in plugins and not _is_builtin(name) else None,
            info=_info(_registered[name]) if name in _registered else None,
        )
        for name in found
    ]


def describe_one(name: str) -> RewardInfo:
    """Raises as `resolve`."""
    return _info(resolve(name))


def describe() -> list[RewardInfo]:
    """Every reward, by name. Loads every plugin."""
    return [_info(resolve(name)) for name in names()]


def _info(reward: type[Reward]) -> RewardInfo:
    summary = (reward.__doc__ or "").strip().partition("\n")[0]
    schema = reward.Options.model_json_schema()
    plugin = None if _is_builtin(reward.name) else f"{reward.__module__}:{reward.__qualname__}"
    return RewardInfo(name=reward.name, summary=summary, range=_declared_range(reward), options=schema, plugin=plugin)


def _declared_range(reward: type[Reward]) -> tuple[float, float]:
    """Without a bound where a plug-in declares none."""
    low, high = getattr(reward, "range", (-math.inf, math.inf))
    return float(low), float(high)


def _check(reward: type[Reward]) -> None:
    """ValueError for what is no reward: it would break the list of all of them, or fail in a job."""
    if not isinstance(reward, type):
        raise ValueError(f"expected a class with name, Options and score(), not a {type(reward).__name__}")
    if not isinstance(getattr(reward, "name", None), str):
        raise ValueError(f"{reward.__qualname__} has no `name`: give it the one that a spec asks for")
    options = getattr(reward, "Options", None)
    if not (isinstance(options, type) and issubclass(options, BaseModel)):
        raise ValueError(f"{reward.__qualname__} has no `Options`: give it a subclass of rewards.base.RewardOptions")
    if not callable(getattr(reward, "score", None)):
        raise ValueError(f"{reward.__qualname__} has no method score(batch)")
    try:
        low, high = _declared_range(reward)
    except (TypeError, ValueError):
        raise ValueError(f"the range of {reward.__qualname__} must be two numbers, (lo, hi)") from None
    if not low <= high:  # NaN is neither, and no JSON has it
        raise ValueError(f"the range of {reward.__qualname__} must be (lo, hi) with lo at most hi, not {(low, high)}")


def _is_builtin(name: str) -> bool:
    return name in _registered and _registered[name].__module__.startswith("rewards.")


@cache
def _load_builtins() -> None:
    for module in _BUILTIN_MODULES:
        importlib.import_module(module)


@cache
def _plugins() -> dict[str, list[EntryPoint]]:
    """By name; more than one where packages offer different things under the same name."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        offers = found.setdefault(point.name, [])
        if point.value not in [offer.value for offer in offers]:
            offers.append(point)
    return found


def _modules(offers: list[EntryPoint]) -> str:
    return " and ".join(offer.value for offer in offers)


def _load(name: str) -> None:
    offers = _plugins()[name]
    where = f"the plugin for reward {name!r} ({_modules(offers)})"
    if len(offers) > 1:
        raise RuntimeError(f"{where} is offered by more than one installed package; keep one of them")
    try:
        reward = offers[0].load()
        _check(reward)
        if reward.name != name:
            raise ValueError(f"it is named {reward.name!r}")
        _info(reward)  # before it is registered: options without a schema would break the list of all rewards
        register(reward)
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises at import: the plugin must be named
        raise RuntimeError(f"{where} does not load: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _explain(problem: Mapping[str, Any], schema: type[BaseModel]) -> tuple[str, str]:
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return _quote(field)[1:-1], f"no such option{_suggest(field, schema.model_fields)}"
    message = problem["msg"].removeprefix("Value error, ")
    named, _, rest = message.partition(": ")
    return (named, rest) if not field and named in schema.model_fields else (field, message)


def _suggest(wrong: str, valid: Iterable[str]) -> str:
    choices = sorted(valid)
    nearest = get_close_matches(wrong, choices, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ";"
    return f"{hint} valid: {', '.join(choices) or 'none'}"


def _quote(text: str) -> str:
    return repr(text if len(text) <= 64 else text[:61] + "...")
