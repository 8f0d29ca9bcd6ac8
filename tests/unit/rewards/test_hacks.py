"""What every verifier gives for the cheapest completions there are: a table, to be read before one is trained on."""

from __future__ import annotations

import json

import pytest

from rewards import registry

CALL = json.dumps({"name": "add", "arguments": {"a": 20, "b": 7}})
PERSON = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
QUIET = [{"id": "punctuation:no_comma"}, {"id": "keywords:forbidden_words", "forbidden_words": ["sorry"]}]

BOXES = (
    r"Work out $54/2$. Put the answer into \boxed{answer}.",
    r"\boxed{26} or \boxed{27} or \boxed{28}",
    r"1. a 2. b \boxed{answer}",
)
TAGS = ("What is 54/2? Write <answer>number</answer>.", "<answer>26 or 27 or 28</answer>", "<answer>number</answer>")
JSON = ('How old is Ada? Write {"age": years}.', '{"age": 26}\n{"age": 27}', '{"age": "years"}')
CALLS = (
    "Call add(a, b) for 20 and 7.",
    f"<tool_call>{CALL}</tool_call>" * 2,
    '<tool_call>{"name": "name", "arguments": {}}</tool_call>',
)

# In this order. What is above 0 is what a policy finds first: pair the reward with one that is not satisfied by it.
KINDS = ("empty", "spaces", "cut", "several", "prompt", "form")

TABLE = [
    ("clarity", {}, BOXES, (0, 0, 0, 0, 0.5, 0.5)),
    ("conciseness", {}, BOXES, (0.99, 0.99, 0, 0.75, 0.8, 0.9)),
    ("exact", {}, BOXES, (0, 0, 0, 0, 0, 0)),
    ("exact", {"where": "boxed"}, BOXES, (0, 0, 0, 0, 0, 0)),
    ("format", {}, BOXES, (0, 0, 0, 0, 0, 1)),
    ("instructions", {"constraints": QUIET}, BOXES, (0, 0, 0, 1, 1, 1)),
    ("json_schema", {"json_schema": PERSON}, JSON, (0, 0, 0, 0, 0, 0)),
    ("json_schema", {"json_schema": {}}, JSON, (0, 0, 0, 0, 0, 1)),
    ("language", {"language": "en"}, TAGS, (0, 0, 0, 1, 1, 0)),
    ("length", {}, BOXES, (-1, -1, -100, -25, -20, -10)),
    ("length_within", {}, BOXES, (1, 1, 0, 1, 1, 1)),
    ("math", {}, BOXES, (0, 0, 0, 0, 0, 0)),
    ("math", {"require_boxed": False}, TAGS, (0, 0, 0, 0, 0, 0)),
    ("numeric", {}, TAGS, (0, 0, 0, 0, 1, 0)),  # 54/2 is a number
    ("numeric", {"where": "boxed", "pick": "only"}, BOXES, (0, 0, 0, 0, 0, 0)),
    ("regex", {"pattern": "^[^,]*$"}, BOXES, (0, 0, 0, 1, 1, 1)),
    ("regex", {"pattern": "^[^,]*$", "where": "tag"}, BOXES, (0, 0, 0, 0, 0, 0)),
    ("regex", {"pattern": "27", "where": "tag"}, TAGS, (0, 0, 0, 1, 0, 0)),
    ("repetition", {}, BOXES, (1, 1, 0, 6 / 7, 1, 1)),
    ("right_within", {}, BOXES, (0, 0, 0, 0, 0, 0)),
    ("text", {}, TAGS, (0, 0, 0, 0, 0, 0)),
    ("text", {"where": "tag"}, TAGS, (0, 0, 0, 0, 0, 0)),
    ("tool_call", {}, CALLS, (0, 0, 0, 0.875, 0, 0)),
    ("tool_call", {"column": "none"}, CALLS, (1, 1, 0, 0, 1, 0)),  # where no call is expected
    ("worded", {}, BOXES, (0, 0, 0, 0, 0, 0)),
]


@pytest.mark.parametrize(
    ("name", "options", "texts", "expected"),
    [pytest.param(*row, id=f"{row[0]}-{'-'.join(map(str, row[1].values()))[:20]}") for row in TABLE],
)
def test_what_the_cheapest_completions_earn(make_batch, name, options, texts, expected):
    prompt, several, form = texts
    completions = ("", "  \n", "", several, prompt, form)
    batch = make_batch(
        *completions,
        prompts=[prompt] * 6,
        answers=[f"[{CALL}]" if name == "tool_call" else "27"] * 6,
        tokens=(1, 1, 100, 25, 20, 10),
        truncated=[kind == "cut" for kind in KINDS],  # as thoughts that do not end: no text, and all the tokens
        details=[{"none": []}] * 6,
    )
    scores = registry.build(name, options).score(batch)
    assert dict(zip(KINDS, scores, strict=True)) == pytest.approx(dict(zip(KINDS, expected, strict=True)))


def test_every_built_in_verifier_is_in_the_table():
    ours = [name for name in registry.names() if registry.resolve(name).__module__.startswith("rewards.verifiers.")]
    assert {name for name, *_ in TABLE} == set(ours)
