"""What a person reads when a spec is wrong: the field as the document has it, what was expected, the nearest name."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Tag

_UNKNOWN = "unknown field"
_LISTING = f"{_UNKNOWN}; fields are "


class SpecError(ValueError):
    """A spec that can't be used: one message per wrong field, each with its dotted path."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        self.problems = problems
        super().__init__("\n".join(f"{path}: {message}" if path else message for path, message in problems))


def nearest(word: str, candidates: list[str] | tuple[str, ...]) -> str:
    """`, did you mean 'x'?` or nothing."""
    close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    return f", did you mean '{close[0]}'?" if close else ""


def all_problems(root: type[BaseModel], details: Iterable[Any], foreign: Mapping[str, str]) -> list[tuple[str, str]]:
    """As `problem`, for all errors of a document.

    Of what another trainer has, by its path there, `foreign` says what it is here, part by part where it is a mapping.
    The fields of a place are listed once.
    """
    found: list[tuple[str, str]] = []
    listed: set[tuple[int | str, ...]] = set()
    for detail in details:
        path, message = problem(root, detail)
        if detail["type"] == "extra_forbidden":
            known = [place for place in _places(path, detail.get("input")) if place in foreign]
            if known:
                found += [(place, f"{_UNKNOWN}; {foreign[place]}") for place in known]
                continue
            place = detail["loc"][:-1]
            if message.startswith(_LISTING):
                message = _UNKNOWN if place in listed else message
                listed.add(place)
        found.append((path, message))
    return found


def _places(path: str, value: object, *, depth: int = 4) -> Iterator[str]:
    """The path of a field, and of what is in it, as deep as foreign fields go."""
    yield path
    if isinstance(value, Mapping) and depth:
        for key, inner in value.items():
            yield from _places(f"{path}.{key}", inner, depth=depth - 1)


def problem(root: type[BaseModel], detail: Any) -> tuple[str, str]:
    """(dotted path, message) of one pydantic error on a tree of models.

    An unknown field gets the nearest valid name.
    """
    location = tuple(part for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        fields = _fields(_type_at(root, location[:-1]))
        unknown = str(location[-1])
        hint = nearest(unknown, fields)
        if fields and not hint:
            return _path(root, location), f"{_LISTING}{', '.join(fields)}"
        return _path(root, location), f"{_UNKNOWN}{hint}"
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        tags, key = list(_tags(_type_at(root, location))), detail["ctx"]["discriminator"].strip("'")
        hint = nearest(str(detail["ctx"].get("tag", "")), tags)
        return f"{_path(root, location)}.{key}", f"expected one of {', '.join(tags)}{hint}"
    if detail["type"] in ("model_type", "model_attributes_type", "dict_type") and _tags(_type_at(root, location)):
        example = _example(_tags(_type_at(root, location)), detail.get("input"))
        return _path(root, location), f"expected a mapping such as {example}"
    if detail["type"] in ("model_type", "model_attributes_type"):
        known = ", ".join(_fields(_type_at(root, location)))
        return _path(root, location), f"expected a mapping of fields{known and f': {known}'}"
    message = detail["msg"].removeprefix("Value error, ")
    field, _, rest = message.partition(": ")
    if detail["type"] == "value_error" and field.partition(".")[0] in _fields(_type_at(root, location)):
        return ".".join(filter(None, (_path(root, location), field))), rest  # our own cross-field checks name it first
    return _path(root, location), message


def _example(tags: Mapping[str, Any], given: object) -> str:
    """Of the member of a union that was perhaps meant: people write its name alone."""
    close = difflib.get_close_matches(given, tags, n=1) if isinstance(given, str) else []
    tag = close[0] if close else next(iter(tags))
    return f"{{{_tag_field(tags[tag])}: {tag}}}"


def _path(root: type[BaseModel], location: tuple[Any, ...]) -> str:
    """Without the tags that pydantic adds for the member of a union, so that it reads as the document does."""
    parts: list[str] = []
    model: Any = root
    for part in location:
        if isinstance(part, str) and _members(model) and part in _tags(model):
            model = _tags(model)[part]
            continue
        parts.append(str(part))
        model = _step(model, part)
    return ".".join(parts)


def _type_at(root: type[BaseModel], location: tuple[Any, ...]) -> Any:
    """The type behind a location of an error, None where the tree has no such place."""
    model: Any = root
    for part in location:
        model = _tags(model)[part] if _members(model) and part in _tags(model) else _step(model, part)
    return model


def _fields(model: Any) -> list[str]:
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _step(model: Any, part: Any) -> Any:
    """The type behind one field name or index."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        field = model.model_fields.get(str(part))
        return _plain(field.annotation) if field else None
    if get_origin(model) in (tuple, list):
        return _plain(get_args(model)[0])
    if get_origin(model) is dict:
        return _plain(get_args(model)[1])
    return None


def _plain(annotation: Any) -> Any:
    """Without Annotated and without None."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    members = [member for member in _members(annotation) if member is not type(None)]
    return _plain(members[0]) if len(members) == 1 else annotation


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()


def _tags(union: Any) -> dict[str, Any]:
    """Members of a discriminated union by their tag."""
    tags: dict[str, Any] = {}
    for member in _members(union):
        tags |= {note.tag: _plain(member) for note in getattr(member, "__metadata__", ()) if isinstance(note, Tag)}
        if (field := _tag_field(member)) is not None:
            tags |= dict.fromkeys(get_args(member.model_fields[field].annotation), member)
    return tags


def _tag_field(member: Any) -> str | None:
    """That tells the members of a union from each other."""
    fields = getattr(member, "model_fields", {})
    found = (name for name in ("type", "name") if name in fields and get_origin(fields[name].annotation) is Literal)
    return next(found, None)
