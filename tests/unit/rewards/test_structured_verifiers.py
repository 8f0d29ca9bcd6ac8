"""Verifiers of JSON, tool calls, languages and instructions."""

from __future__ import annotations

import json
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import registry
from rewards.verifiers import json_schema
from rewards.verifiers.constraints import CHECKS, prepare
from rewards.verifiers.json_text import NoJson, canonical, fenced, read_json
from rewards.verifiers.language import LANGUAGES, rank_languages
from rewards.verifiers.tool_call import Call, agreement, calls_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def score(make_batch):
    def score_one(reward, completion, answer="1", detail=None):
        return reward.score(make_batch(completion, answers=[answer], details=[detail or {}]))[0]

    return score_one


# ------------------------------------------------------------- JSON


@given(JSON)
def test_json_reads_back_and_its_canonical_form_has_no_order(value):
    assert canonical(read_json(json.dumps(value))) == canonical(value)
    if isinstance(value, dict):
        assert canonical(dict(reversed(value.items()))) == canonical(value)


def test_json_equality_is_not_pythons():
    assert canonical(1) == canonical(1.0)
    assert canonical([True]) != canonical([1])
    assert canonical(0) != canonical(False)


@pytest.mark.parametrize("text", ["", "{", "NaN", "[Infinity]", "1e999", "1 2", "[" * 101 + "]" * 101, "9" * 5000])
def test_what_is_no_json_or_out_of_bounds_is_refused(text):
    with pytest.raises(NoJson):
        read_json(text)


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("{}", "{}"),
        ("so:\n```json\n{}\n```\nyes", "\n{}\n"),
        ("```\n1\n```\n```json\n2\n```", "\n2\n"),
        ("```\n1\n```\n```json\n2", "\n1\n"),
        ("```json\n1", "```json\n1"),
    ],
)
def test_the_last_closed_fence(text, inner):
    assert fenced(text) == inner


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}, "age": {"$ref": "#/$defs/age"}},
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"age": {"type": "integer", "minimum": 0}},
}


@pytest.fixture(scope="module")
def person():
    """A child process takes a while to start, so the tests share one."""
    return registry.build("json_schema", {"json_schema": PERSON, "invalid": 0.25, "timeout_s": 2.0})


@pytest.fixture(scope="module")
def by_row():
    return registry.build("json_schema", {"column": "schema", "timeout_s": 2.0})


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ('{"name": "Ada", "age": 36}', 1.0),
        ('Here it is:\n```json\n{"name": "Ada"}\n```', 1.0),
        ('{"name": "ada"}', 0.25),
        ('{"age": 3}', 0.25),
        ('{"name": "Ada", "age": -1}', 0.25),
        ('{"name": "Ada", "more": 1}', 0.25),
        ("[]", 0.25),
        ('{"name": "Ada"', 0.0),
        ('Sure! {"name": "Ada"}', 0.0),
        ("", 0.0),
        ('["' + "a" * 100_000 + '"]', 0.0),
    ],
)
def test_json_against_the_schema_of_the_spec(score, person, completion, expected):
    assert score(person, completion) == expected


def test_an_empty_schema_takes_any_json(score):
    reward = registry.build("json_schema", {"json_schema": {}})
    assert [score(reward, completion) for completion in ('{"a": 1}', "3", "no JSON")] == [1.0, 1.0, 0.0]


def test_json_against_the_schema_of_the_row(score, by_row):
    for schema in ({"type": "integer"}, '{"type": "integer"}'):
        assert score(by_row, "3", detail={"schema": schema}) == 1.0
        assert score(by_row, '"3"', detail={"schema": schema}) == 0.0


@pytest.mark.parametrize(
    ("schema", "completion"),
    [
        ({"pattern": "^(a|a)*$"}, '"' + "a" * 40 + 'b"'),
        ({"$ref": "#"}, "1"),
        ({"$ref": "#/nowhere"}, "1"),
        (
            {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}] * 2}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
            "1",
        ),
        ({"multipleOf": 0.5}, "1" * 401),  # OverflowError in the library
    ],
)
def test_what_cannot_be_decided_is_not_valid_and_the_next_is_still_checked(score, by_row, schema, completion):
    assert score(by_row, completion, detail={"schema": schema}) == 0.0
    assert score(by_row, "1", detail={"schema": {"type": "integer"}}) == 1.0


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (None, "nothing in the column 'schema'"),
        ("{", "needs a JSON schema"),
        ([], "expected an object"),
        ({"type": "no"}, "found a fault at 'type'"),
        ({"properties": {"a": {"$ref": "https://example.com/schema"}}}, "references inside the schema alone"),
        ({"$dynamicRef": "file:///etc/passwd"}, "references inside the schema alone"),
        ({"description": "x" * 60_000}, "at most 50000 characters"),
    ],
)
def test_a_row_without_a_usable_schema_is_named(score, by_row, schema, message):
    with pytest.raises(ValueError, match=f"row 0 .*{message}"):
        score(by_row, "1", detail={"schema": schema})


# Each range is case folded character by character: half a minute, were it compiled to the end.
SLOW = {"pattern": "(?i)[" + "".join(f" -{chr(0xFFFF - i)}" for i in range(5000)) + "]"}


def test_a_schema_that_takes_long_to_check_is_refused_and_keeps_nobody(score, by_row):
    spent = time.process_time()
    with pytest.raises(registry.OptionsError, match="expected a schema that is checked within 1 s"):
        registry.parse_options("json_schema", {"json_schema": SLOW})
    with pytest.raises(ValueError, match=r"row 0 .*checked within 1 s"):
        score(by_row, "1", detail={"schema": SLOW})
    assert registry.parse_options("json_schema", {"json_schema": PERSON})
    assert time.process_time() - spent < 1  # of this process


def test_many_schemas_have_one_limit_together(monkeypatch):
    asked = []
    monkeypatch.setattr(json_schema._checker, "verdict", lambda schema: asked.append(schema) or "late")
    with json_schema.schemas_within(0.3):
        for i in range(3):
            with pytest.raises(ValueError, match="is checked within" if i == 0 else "take less time to check"):
                json_schema.check_schema({"maximum": i, **SLOW})
            time.sleep(0.4)
    with pytest.raises(ValueError, match="is checked within"):
        json_schema.check_schema(SLOW)
    assert len(asked) == 2


def test_a_turn_is_not_waited_for_beyond_the_limit():
    """And nothing is said of the schema, which may be sound."""
    with json_schema._turn, json_schema.schemas_within(0.05):
        for _ in range(2):
            with pytest.raises(json_schema.SchemasBusy):
                json_schema.check_schema({"type": "string", "title": "of nobody else"})


def test_few_wait_for_a_turn_and_the_next_is_told_at_once(monkeypatch):
    monkeypatch.setattr(json_schema, "_line", threading.Semaphore(0))
    began = time.monotonic()
    with json_schema.schemas_within(30), pytest.raises(json_schema.SchemasBusy):
        json_schema.check_schema({"type": "string", "title": "of nobody else either"})
    assert time.monotonic() - began < 5
    json_schema.check_schema({"type": "string", "title": "of a job that runs"})  # which waits as long as it takes


# ------------------------------------------------------------- tool calls

WEATHER = {"name": "weather", "arguments": {"city": "Rome", "days": 2}}
SPELLINGS = [
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call>',
    '<think>Rome?</think><tool_call>{"name": "weather", "parameters": {"days": 2.0, "city": "Rome"}}</tool_call>',
    "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
    "</function>\n</tool_call>",
    json.dumps(
        {
            "tool_calls": [
                {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome", "days": 2}'}}
            ]
        }
    ),
    "```json\n" + json.dumps([WEATHER]) + "\n```",
]


@pytest.mark.parametrize("text", SPELLINGS)
def test_every_spelling_of_a_call_reads_the_same(text):
    assert calls_of(text) == [Call(name="weather", arguments={"city": '"Rome"', "days": "2"})]


def test_several_calls_one_a_line_or_one_a_tag():
    lines = '<tool_call>\n{"name": "a"}\n{"name": "b", "arguments": {}}\n</tool_call>'
    tags = '<tool_call>{"name": "a"}</tool_call> and <tool_call>{"name": "b"}</tool_call>'
    assert calls_of(lines) == calls_of(tags) == [Call(name="a", arguments={}), Call(name="b", arguments={})]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>no</tool_call>",
        '<tool_call>{"name": 1}</tool_call>',
        '<tool_call>{"name": "a", "arguments": [1]}</tool_call>',
        "<tool_call><function=a><parameter=b>1</function></tool_call>",
        "<tool_call>{}</tool_call>" * 65,
        "[" * 5000,
    ],
)
def test_calls_that_cannot_be_read_score_0(score, text):
    reward = registry.build("tool_call", {})
    assert score(reward, text, json.dumps([WEATHER])) == 0.0


def call(name="weather", **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


@pytest.mark.parametrize(
    ("completion", "partial"),
    [
        (call(city="Rome", days=2), 1.0),
        (call(city="Rome", days=3), (1 + 1 + 1) / 4),
        (call(city="Rome"), (1 + 1 / 2 + 1) / 4),
        (call(city="Rome", days=2, unit="C"), (1 + 2 / 3 + 2) / 4),
        (call(city="Rome", days=True), (1 + 1 + 1) / 4),
        (call("forecast", city="Rome", days=2), 0.0),
        (call(city="Rome", days=2) * 2, (1 / 2 + 1 + 2) / 4),
        ("It is sunny.", 0.0),
    ],
)
def test_partial_credit_is_toolrls(score, completion, partial):
    """Worked out by hand; without `partial` only the right call scores."""
    expected = json.dumps([WEATHER])
    assert score(registry.build("tool_call", {}), completion, expected) == pytest.approx(partial)
    assert score(registry.build("tool_call", {"partial": False}), completion, expected) == float(partial == 1.0)


def test_the_order_of_calls_counts_where_it_is_asked_for(score):
    expected, swapped = [{"name": "a"}, {"name": "b"}], call("b") + call("a")
    assert score(registry.build("tool_call", {}), swapped, json.dumps(expected)) == 1.0
    assert score(registry.build("tool_call", {"ordered": True, "partial": False}), swapped, json.dumps(expected)) == 0.0


def test_where_no_call_is_expected_none_is_right(score):
    reward = registry.build("tool_call", {"column": "calls"})
    assert score(reward, "It is sunny.", detail={"calls": []}) == 1.0
    assert score(reward, call(), detail={"calls": []}) == 0.0
    assert score(reward, call(city="Rome", days=2), detail={"calls": WEATHER}) == 1.0


def test_expected_calls_that_cannot_be_read_name_the_row(score):
    with pytest.raises(ValueError, match="row 0 needs its expected tool calls"):
        score(registry.build("tool_call", {}), "", "[1]")
    with pytest.raises(ValueError, match="row 0 has nothing in the column 'calls'"):
        score(registry.build("tool_call", {"column": "calls"}), "")
    assert score(registry.build("tool_call", {"missing": "skip"}), "", None) is None


CALLS = st.lists(
    st.builds(
        Call, name=st.sampled_from("ab"), arguments=st.dictionaries(st.sampled_from("xy"), st.sampled_from(["1", "2"]))
    ),
    min_size=1,
    max_size=4,
)


@given(expected=CALLS, made=CALLS)
def test_agreement_is_a_share_and_whole_for_the_same_calls(expected, made):
    assert 0.0 <= agreement(expected, made) <= 1.0
    assert agreement(expected, expected) == pytest.approx(1.0)


# ------------------------------------------------------------- language

TEXTS = {
    "en": "The quick brown fox jumps over the lazy dog, and then it goes home to sleep.",
    "de": "Der schnelle braune Fuchs springt \u00fcber den faulen Hund und geht dann nach Hause.",
    "fr": "Le renard brun saute par-dessus le chien paresseux, puis il rentre chez lui pour dormir.",
    "zh": "\u654f\u6377\u7684\u68d5\u8272\u72d0\u72f8\u8df3\u8fc7\u4e86\u90a3\u53ea\u61d2\u72d7\u3002",
}


@pytest.mark.parametrize("wanted", TEXTS)
def test_the_language_of_a_text(score, wanted):
    match = registry.build("language", {"language": wanted})
    graded = registry.build("language", {"column": "lang", "score_as": "probability"})
    for actual, text in TEXTS.items():
        assert score(match, text) == float(actual == wanted)
        assert (score(graded, text, detail={"lang": wanted}) > 0.5) == (actual == wanted)


def test_formulas_code_and_silence_are_no_language(score):
    reward = registry.build("language", {"language": "en"})
    assert [score(reward, text) for text in ("", "42", r"$\frac{a}{b}$", "```def f(): return the_answer```")] == [
        0.0
    ] * 4
    assert score(reward, "Der Fuchs springt \u00fcber den Hund. $\\text{the and of to in}$") == 0.0


def test_a_row_without_a_known_language_is_named(score):
    reward = registry.build("language", {"column": "lang"})
    with pytest.raises(ValueError, match="row 0 needs the code of a known language in 'lang'"):
        score(reward, "text", detail={"lang": "xx"})


def test_the_listed_languages_are_those_of_the_library():
    assert set(rank_languages(TEXTS["en"], 1)) == LANGUAGES


# ------------------------------------------------------------- instructions

AT_LEAST_2 = {"relation": "at least"}
FOLLOWED = [  # id, arguments, what follows it, what does not
    ("keywords:existence", {"keywords": ["apple", "Pear"]}, "An APPLE and pears.", "An apple."),
    ("keywords:frequency", {"keyword": "so", "frequency": 2, "relation": "at least"}, "So it is so.", "So it is."),
    ("keywords:frequency", {"keyword": "so", "frequency": 2, "relation": "less than"}, "So it is.", "So it is so."),
    ("keywords:forbidden_words", {"forbidden_words": ["art"]}, "A start.", "Some Art."),
    ("keywords:letter_frequency", {"letter": "z", "let_frequency": 2, "let_relation": "exactly"}, "Zoz", "zzz"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "Two words.", "Now three words."),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at most"}, "Now three words.", "a b c d"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}, "Yes! No", "Of 3.5 one."),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo\n***\n", "one\n\ntwo"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 1}, "one", "a *** *** b"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "well"},
        "One.\n\n'Well, two.",
        "Well.\n\nTwo.",
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [town]", "[name] town]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Yes.\np. s. no", "Yes. PS no"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "P.P.S. no", "P.S. no"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n- b", "* a\n* b\n* c"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "* a", "**a**"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and * *"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        "Section 1\na\nSection 2\nb",
        "Section 1\na\nSection b",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', 'So {"a": 1}'),
    ("detectable_format:title", {}, "<<On joy>>\nJoy.", "<< >>"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    ("combination:two_responses", {}, "One\n******\nTwo", "One\n******\nOne"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it. "}, "say it. It.", "It. Say it."),
    ("startend:start_checker", {"start_phrase": "Dear"}, '"dear all', "Oh dear"),
    ("startend:end_checker", {"end_phrase": "Bye!"}, 'Well, bye!"', "Bye! Now."),
    ("startend:quotation", {}, '"All of it"', '"Some" of it'),
    ("change_case:english_capital", {}, TEXTS["en"].upper(), TEXTS["de"].upper()),
    ("change_case:english_lowercase", {}, TEXTS["en"].lower(), TEXTS["en"]),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "less than"}, "A b", "A B-C"),
    ("punctuation:no_comma", {}, "No comma", "A comma, here"),
    ("language:response_language", {"language": "de"}, TEXTS["de"], TEXTS["en"]),
]


@pytest.mark.parametrize(("name", "arguments", "yes", "no"), FOLLOWED)
def test_every_constraint_tells_who_follows_it(name, arguments, yes, no):
    holds = prepare(name, {**arguments, "unused_by_this_one": None})
    assert holds(yes)
    assert not holds(no)
    assert not holds("")


HOSTILE = [
    "<<" + "a b" * 20_000,
    *(unit * 20_000 for unit in ("<<a", "[a", "*a ", "- ", "** ", "a'", '"!', " \t", "P. ")),
]


@pytest.mark.parametrize("text", HOSTILE, ids=[text[:5] for text in HOSTILE])
def test_constraints_take_time_linear_in_the_text(text):
    """The actor is killed for one that does not."""
    for name, arguments, *_ in FOLLOWED:
        began = time.thread_time()  # which waiting for a busy processor does not count
        prepare(name, arguments)(text)
        assert time.thread_time() - began < 3, name


def test_every_constraint_is_tried():
    assert {name for name, *_ in FOLLOWED} == set(CHECKS)
    assert len(CHECKS) == 26  # IFEval's 25 and the start


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("no", {}, "unknown constraint 'no'; known: keywords:existence"),
        ("punctuation:no_comma", {"num": 1}, "argument 'num': Extra inputs"),
        ("keywords:existence", {}, "argument 'keywords': Field required"),
        ("keywords:existence", {"keywords": []}, "argument 'keywords': List should have at least 1"),
        ("length_constraints:number_words", {"num_words": 3, "relation": "about"}, "argument 'relation'"),
        ("language:response_language", {"language": "xx"}, "argument 'language': .*known language"),
        (7, {}, "the id of a constraint as text"),
    ],
)
def test_a_constraint_that_cannot_be_checked_is_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        prepare(name, arguments)


IFEVAL = {
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{"num_words": None}, {"num_words": 3, "relation": "at least", "keywords": None}],
}


@pytest.mark.parametrize(
    ("completion", "share", "all_"), [("one two three", 1.0, 1.0), ("one two", 0.5, 0.0), ("one, two", 0.0, 0.0)]
)
@pytest.mark.parametrize("as_text", [False, True])
def test_rows_of_ifeval_are_scored_as_they_are(score, completion, share, all_, as_text):
    detail = {key: json.dumps(value) for key, value in IFEVAL.items()} if as_text else IFEVAL
    assert score(registry.build("instructions", {}), completion, detail=detail) == share
    assert score(registry.build("instructions", {"score_as": "all"}), completion, detail=detail) == all_


def test_constraints_of_the_spec_hold_for_every_row(score):
    constraints = [{"id": "punctuation:no_comma"}, {"id": "startend:end_checker", "end_phrase": "bye"}]
    reward = registry.build("instructions", {"constraints": constraints})
    assert [score(reward, text) for text in ("so bye", "so, bye", "so, no", "")] == [1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("detail", "message"),
    [
        ({}, "row 0 has nothing in the column 'instruction_id_list'"),
        ({"instruction_id_list": []}, "row 0 has constraints that can't be checked: expected a list of 1 to 50 ids"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "one object in kwargs for each id"),
        ({"instruction_id_list": ["x"]}, "unknown constraint 'x'"),
        ({"instruction_id_list": "{"}, "row 0 has constraints that can't be checked"),
    ],
)
def test_rows_whose_constraints_cannot_be_checked_are_named(score, detail, message):
    with pytest.raises(ValueError, match=message):
        score(registry.build("instructions", {}), "text", detail=detail)


def test_rows_without_constraints_may_be_left_out(score):
    reward = registry.build("instructions", {"missing": "skip"})
    assert score(reward, "text") is None
    assert score(reward, "text", detail={"instruction_id_list": [], "kwargs": []}) is None
