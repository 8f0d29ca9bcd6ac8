"""What each field of a spec takes, read from the spec's own JSON schema."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

Schema = Mapping[str, Any]
_IMPLIED = (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum"))  # the first says the second


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """A field of a rule."""

    name: str
    required: bool
    default: JsonValue
    allowed: str
    description: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of a spec with fields of its own."""

    path: str  # such as rollout or objectives[].hosting; "" is the top
    description: str
    options: tuple[Option, ...]


def sections(model: type[Any]) -> list[Section]:
    """A spec's parts, each before its own: its sections, and of a choice between several kinds each kind."""
    schema = model.model_json_schema()
    return list(_sections("", schema, schema.get("$defs", {})))


def _sections(path: str, schema: Schema, definitions: Schema) -> Iterator[Section]:
    description = inspect.cleandoc(schema.get("description", ""))
    yield Section(path=path, description=description, options=_options(schema, definitions))
    for name, field in schema["properties"].items():
        inner = f"{path}.{name}" if path else name
        for place, part in _parts(inner, field, definitions):
            yield from _sections(place, part, definitions)


def _parts(path: str, field: Schema, definitions: Schema) -> Iterator[tuple[str, Schema]]:
    """What a field's value is made of, where that has fields. Rules are left to their catalogue (rules.py)."""
    match field:
        case {"discriminator": {"propertyName": "name"}}:
            return
        case {"$ref": place}:
            found = definitions[place.rpartition("/")[2]]
            if "properties" in found:
                yield path, found
        case {"type": "array", "items": items}:
            yield from _parts(f"{path}[]", items, definitions)
        case {"anyOf": choices} | {"oneOf": choices}:
            for choice in choices:
                yield from _parts(path, choice, definitions)


def options_of(model: type[Any]) -> list[Option]:
    """The fields of one part of a spec."""
    schema = model.model_json_schema()
    return list(_options(schema, schema.get("$defs", {})))


def _options(schema: Schema, definitions: Schema) -> tuple[Option, ...]:
    return tuple(
        Option(
            name=name,
            required=name in schema.get("required", ()),
            default=field.get("default"),
            allowed=_allowed(field, definitions),
            description=field.get("description", ""),
        )
        for name, field in schema["properties"].items()
    )


def _allowed(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """What a JSON schema lets through, in a few words."""
    match schema:
        case {"$ref": place}:
            return _allowed(definitions[place.rpartition("/")[2]], definitions)
        case {"discriminator": {"propertyName": "name"}}:
            return "a rule: `equipoise rules`"
        case {"anyOf": choices} | {"oneOf": choices}:
            return " or ".join(dict.fromkeys(_allowed(choice, definitions) for choice in choices))
        case {"enum": values}:
            return ", ".join(map(str, values))
        case {"prefixItems": items}:
            return f"[{', '.join(_allowed(item, definitions) for item in items)}]"
        case {"type": "array", "items": items}:
            return f"list of {_allowed(items, definitions)}"
        case {"type": "object", "properties": fields}:
            return f"mapping of {', '.join(fields)}"
        case {"const": value}:
            return str(value)
        case {"type": "integer" | "number" as kind}:
            signs = {"exclusiveMinimum": ">", "minimum": ">=", "maximum": "<=", "exclusiveMaximum": "<"}
            implied = {ends[1] for ends in _IMPLIED if ends[0] in schema and schema.get(ends[1]) == schema[ends[0]]}
            ends = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema and key not in implied]
            return " ".join(filter(None, (kind, ", ".join(ends))))
        case {"type": "boolean"}:
            return "true, false"
        case {"type": "string"}:
            return "text"
        case {"type": str(kind)}:
            return kind
    return "anything"
