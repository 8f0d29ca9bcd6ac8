"""A spec as a person writes it: YAML whose comments stay while a form changes its values, and errors at their lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from orchestrator import spec_yaml
from orchestrator.spec import check_new, parse_job
from orchestrator.spec_errors import SpecError
from rewards.verifiers.json_schema import SchemasBusy, schemas_within

MAX_CHARS = 64 << 10
MAX_DEPTH = 64  # of a longer row of brackets the YAML library would think for a minute or more
Path = Sequence[str]


class BadText(ValueError):
    """No YAML that could be a spec; `line` counts from 1, 0 where there is none."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


def read(text: str) -> dict[str, Any]:
    """The document. Raises BadText. Aliases are refused: a short text could stand for an endless one."""
    if len(text) > MAX_CHARS:
        raise BadText(f"longer than {MAX_CHARS:,} characters")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise BadText("YAML's anchors and aliases are not taken here; write the value out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise BadText("nested too deeply")
        document = spec_yaml.load(text)
    except spec_yaml.DuplicateKey as error:
        raise BadText(f"{error.problem}; keep one of them", error.line) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise BadText(f"not valid YAML: {error.problem or error.context}", line) from None
    except BadText:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise BadText(f"not valid YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(document, dict):
        raise BadText("expected a mapping of fields, such as name and objectives", 1)
    return document


@schemas_within()
def checked(text: str) -> dict[str, Any]:
    """The document to submit, as the command line reads it. Raises BadText or SpecError."""
    try:
        resolved: dict[str, Any] = check_new(parse_job(read(text))).model_dump(mode="json")
    except SchemasBusy:
        raise BadText("other JSON schemas are being checked; try again shortly") from None
    return resolved


def line_of(text: str, path: str) -> int:
    """Where a dotted path stands, or the nearest part of it that does; 0 where none."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return 0
    line = 0
    for part in path.split("."):
        found = _child(node, part)
        if found is None:
            break
        key, node = found
        line = key.start_mark.line + 1
    return line


def value_at(document: Any, path: Path) -> Any:
    """None where it is not."""
    for part in path:
        if isinstance(document, dict):
            document = document.get(part)
        elif isinstance(document, list) and part.isdigit() and int(part) < len(document):
            document = document[int(part)]
        else:
            return None
    return document


def put(text: str, path: Path, value: str | float | int) -> str:
    """The text with another scalar at a path. Where there is none yet, the document is written anew. Raises BadText."""
    document = read(text)
    node: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    for part in path:
        found = _child(node, part)
        node = found[1] if found else None
    if isinstance(node, yaml.ScalarNode) and node.style not in ("|", ">"):
        written = yaml.safe_dump(value, allow_unicode=True, width=10**6).removesuffix("\n...\n").strip()
        start, end = node.start_mark.index, node.end_mark.index
        space = " " if start == end else ""  # nothing stands there yet, and it may follow its colon at once
        changed = f"{text[:start]}{space}{written}{text[end:]}"
        if _says(changed, path, value):
            return changed
    return _anew(document, path, value)


def _says(text: str, path: Path, value: str | float | int) -> bool:
    try:
        return bool(value_at(read(text), path) == value)
    except BadText:
        return False


def use_dataset(text: str, split: str, dataset_id: str) -> str:
    """The text with an uploaded dataset as one of the splits; generated prompts make room. Raises BadText."""
    reference = f"dataset:{dataset_id}"
    document = read(text)
    if isinstance(data := document.get("data"), dict) and data.get("type") == "files":
        return put(text, ["data", split], reference)
    held_out: dict[str, Any] = {"validation": {"share": 0.05}} if split == "train" else {}
    wanted = {"type": "files", split: reference, **held_out}
    written = _in_place(text, "data", wanted)
    is_right = written is not None and read(written) == {**document, "data": wanted}
    return written if written is not None and is_right else _anew(document, ["data"], wanted)


def _in_place(text: str, key: str, value: Any) -> str | None:
    """The text with a mapping on one line in the place of another, and the comments after it; None where none is."""
    found = _child(yaml.compose(text, Loader=yaml.SafeLoader), key)
    if found is None or not isinstance(found[1], yaml.MappingNode):
        return None
    start, end = found[1].start_mark.index, found[1].end_mark.index
    lines, after = text[start:end].splitlines(keepends=True), ""
    while lines and (not lines[-1].strip() or lines[-1].lstrip().startswith("#")):
        after = lines.pop() + after
    newline = "\n" if lines and lines[-1].endswith("\n") else ""
    flow = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6).strip()
    return text[:start] + flow + newline + after + text[end:]


def _anew(document: Any, path: Path, value: Any) -> str:
    place = document
    for part in path[:-1]:
        if isinstance(place, list):
            place = place[int(part)]
        else:
            if not isinstance(place.get(part), dict | list):
                place[part] = {}
            place = place[part]
    if isinstance(place, list):
        place[int(path[-1])] = value
    else:
        place[path[-1]] = value
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)


def _child(node: Any, part: str) -> tuple[Any, Any] | None:
    """(where it is named, its value)."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == part:
                return key, value
    if isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
        item = node.value[int(part)]
        return item, item
    return None


__all__ = ["BadText", "SpecError", "checked", "line_of", "put", "read", "use_dataset", "value_at"]
