"""Rules from installed packages as a spec names them: `{name: worst_first, options: {sharpness: 2}}`.

A spec of its own is made for each, so that names are checked, listed and suggested as those of our own rules are.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, JsonValue, create_model, field_validator

from orchestrator.specs.base import RuleSpec
from policies.plugins import build_plugin, can_load, load_plugin, plugin_names


class PluginSpec(RuleSpec):
    """A rule from an installed package, which is loaded and built once to see whether it takes the options.

    Where rules can't be loaded, options are taken as they are and needs are not known: the job's driver looks.
    """

    source = "an installed package"
    group: ClassVar[str]
    rule_name: ClassVar[str]

    name: str
    options: dict[str, JsonValue] = Field(
        default_factory=dict, validate_default=True, description="keyword arguments of the rule's class"
    )

    @field_validator("options")
    @classmethod
    def _taken(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if can_load():
            build_plugin(cls.group, cls.rule_name, value)
        return value

    @property
    def rule(self) -> type[Any] | None:
        """None where rules can't be loaded."""
        return load_plugin(self.group, self.rule_name) if can_load() else None

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # the class knows, and is only loaded when it is asked
        return frozenset(getattr(self.rule, "needs", ()))

    def arguments(self, objectives: tuple[str, ...]) -> dict[str, Any]:
        del objectives
        return dict(self.options)


def with_plugins(union: Any, base: type[PluginSpec]) -> Any:
    """A union of specs, joined by one for each installed plug-in whose name is none of theirs."""
    members = get_args(union)
    taken = {name for member in members for name in get_args(member.model_fields["name"].annotation)}
    found = [_plugin_spec(name, base) for name in plugin_names(base.group) if name not in taken]
    return Annotated[functools.reduce(operator.or_, found, union), Field(discriminator="name")]


def plugin_specs(union: Any) -> Iterator[type[PluginSpec]]:
    """The members of a union that are plug-ins."""
    for member in get_args(get_args(union)[0]):
        if issubclass(member, PluginSpec):
            yield member


def _plugin_spec(name: str, base: type[PluginSpec]) -> type[PluginSpec]:
    choice: Any = Literal[name]
    model = create_model(f"{base.__name__}_{name}", __base__=base, __doc__=base.__doc__, name=(choice, name))
    model.rule_name = name
    return model
