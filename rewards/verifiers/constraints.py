"""Instructions whose following a program can check, by the ids and arguments of IFEval (arXiv 2311.07911).

A check is a function of the completion with keyword arguments of IFEval's names; the file list of them is CHECKS.
Counts follow IFEval where that needs no other library; sentences are split at marks rather than by a trained model,
and keywords are taken to the letter, never as patterns. Every check takes time linear in the text.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, create_model

from rewards.verifiers.json_text import NoJson, fenced, read_json
from rewards.verifiers.language import LANGUAGES, rank_languages

Check = Callable[..., bool]
Relation = Literal["less than", "at least", "at most", "exactly"]  # the first two are IFEval's
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Phrase = Annotated[str, Field(min_length=1, max_length=2000)]
Phrases = Annotated[list[Phrase], Field(min_length=1, max_length=100)]

CHECKS: dict[str, Check] = {}

_MIN_LETTERS = 10  # of a text whose language is asked for
_WORD = re.compile(r"\w+")
_CAPITALS = re.compile(r"[^\W\d_](?:[\w'\u2019-]*\w)?")
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++[\"'\u201d\u2019)\]]*+(?=\s|$)|[\u3002\uff01\uff1f]")
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]*\]")
_BULLET = re.compile(r"^[ \t]*(?:\*(?!\*)|-)[^\n]*$", re.MULTILINE)
_HIGHLIGHT = re.compile(r"\*\*([^*\n]*)\*\*|\*([^*\n]*)\*")
_TITLE = re.compile(r"<<([^<>\n]*)>>")
_DIVIDER = re.compile(r"\s?\*\*\*\s?")
_ANSWERS = ("my answer is yes.", "my answer is no.", "my answer is maybe.")


def check(name: str) -> Callable[[Check], Check]:
    def add(function: Check) -> Check:
        CHECKS[name] = function
        return function

    return add


@cache
def arguments_of(name: str) -> type[BaseModel]:
    """What a check takes beside the text. KeyError for an unknown name."""
    hints = get_type_hints(CHECKS[name], include_extras=True)
    empty = inspect.Parameter.empty
    fields: dict[str, Any] = {
        parameter: (hints[parameter], ... if signature.default is empty else signature.default)
        for parameter, signature in inspect.signature(CHECKS[name]).parameters.items()
        if parameter != "text"
    }
    return create_model(name, __config__=ConfigDict(strict=True, extra="forbid"), **fields)


def prepare(name: JsonValue, arguments: JsonValue) -> Callable[[str], bool]:
    """A check with its arguments, of which those that are null count as absent (IFEval's rows have them all).

    ValueError names the constraint and the argument.
    """
    arguments = arguments or {}
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("expected the id of a constraint as text, and its arguments as an object")
    if name not in CHECKS:
        raise ValueError(f"unknown constraint {name[:64]!r}; known: {', '.join(CHECKS)}")
    given = {key: value for key, value in arguments.items() if value is not None}
    try:
        checked = arguments_of(name).model_validate(given)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise ValueError(
            f"constraint {name!r}, argument {'.'.join(map(str, first['loc']))!r}: {first['msg']}"
        ) from None
    values = {key: getattr(checked, key) for key in type(checked).model_fields}
    return lambda text: bool(text.strip()) and CHECKS[name](text, **values)


def _holds(found: int, relation: Relation, wanted: int) -> bool:
    return {
        "less than": found < wanted,
        "at least": found >= wanted,
        "at most": found <= wanted,
        "exactly": found == wanted,
    }[relation]


def _known_language(code: str) -> str:
    if code not in LANGUAGES:
        raise ValueError("expected the ISO 639 code of a known language")
    return code


def _is_english(text: str) -> bool:
    """A text too short to tell counts, as IFEval has it."""
    ranked = rank_languages(text, _MIN_LETTERS)
    return not ranked or next(iter(ranked)) == "en"


# ------------------------------------------------------------- keywords


@check("keywords:existence")
def existence(text: str, *, keywords: Phrases) -> bool:
    folded = text.casefold()
    return all(keyword.casefold() in folded for keyword in keywords)


@check("keywords:frequency")
def frequency(text: str, *, keyword: Phrase, frequency: Count, relation: Relation) -> bool:
    return _holds(text.casefold().count(keyword.strip().casefold()), relation, frequency)


@check("keywords:forbidden_words")
def forbidden_words(text: str, *, forbidden_words: Phrases) -> bool:
    """As words of their own: `art` does not forbid `start`."""
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words)


@check("keywords:letter_frequency")
def letter_frequency(
    text: str,
    *,
    letter: Annotated[str, Field(min_length=1, max_length=1)],
    let_frequency: Count,
    let_relation: Relation,
) -> bool:
    return _holds(text.lower().count(letter.lower()), let_relation, let_frequency)


# ------------------------------------------------------------- lengths


@check("length_constraints:number_words")
def number_words(text: str, *, num_words: Count, relation: Relation) -> bool:
    return _holds(sum(1 for _ in _WORD.finditer(text)), relation, num_words)


@check("length_constraints:number_sentences")
def number_sentences(text: str, *, num_sentences: Count, relation: Relation) -> bool:
    """What ends without a mark at the end of the text is a sentence as well."""
    parts = _SENTENCE_END.split(text)
    return _holds(sum(bool(_WORD.search(part)) for part in parts), relation, num_sentences)


@check("length_constraints:number_paragraphs")
def number_paragraphs(text: str, *, num_paragraphs: Count) -> bool:
    """Exactly so many, with `***` between them and none of them empty."""
    return len(parts := _between(_DIVIDER.split(text))) == num_paragraphs and all(part.strip() for part in parts)


@check("length_constraints:nth_paragraph_first_word")
def nth_paragraph_first_word(text: str, *, num_paragraphs: Count, nth_paragraph: Count, first_word: Phrase) -> bool:
    """Exactly so many paragraphs with blank lines between them, and the first word of one."""
    paragraphs = [part.split() for part in text.split("\n\n") if part.strip()]
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    word = paragraphs[nth_paragraph - 1][0].lstrip("'\"")
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


def _between(parts: list[str]) -> list[str]:
    """Without an empty first or last one."""
    return parts[not parts[0].strip() : len(parts) - (len(parts) > 1 and not parts[-1].strip())]


# ------------------------------------------------------------- content and format


@check("detectable_content:number_placeholders")
def number_placeholders(text: str, *, num_placeholders: Count) -> bool:
    """At least so many, as in [address]."""
    return sum(1 for _ in _PLACEHOLDER.finditer(text)) >= num_placeholders


@check("detectable_content:postscript")
def postscript(text: str, *, postscript_marker: Phrase) -> bool:
    wanted = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(postscript_marker)
    return bool(re.search(wanted or re.escape(postscript_marker.strip().lower()), text.lower()))


@check("detectable_format:number_bullet_lists")
def number_bullet_lists(text: str, *, num_bullets: Count) -> bool:
    """Exactly so many points, with * or -."""
    return sum(1 for _ in _BULLET.finditer(text)) == num_bullets


@check("detectable_format:number_highlighted_sections")
def number_highlighted_sections(text: str, *, num_highlights: Count) -> bool:
    """At least so many, as in *this* or **this**."""
    return sum(any(part.strip() for part in match if part) for match in _HIGHLIGHT.findall(text)) >= num_highlights


@check("detectable_format:multiple_sections")
def multiple_sections(text: str, *, section_spliter: Phrase, num_sections: Count) -> bool:
    """At least so many, each marked with a number, as in Section 1."""
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


@check("detectable_format:json_format")
def json_format(text: str) -> bool:
    """All of it, within a code fence or bare."""
    text = text.strip()
    try:
        read_json(fenced(text) if text.startswith("```") and text.endswith("```") else text)
    except NoJson:
        return False
    return True


@check("detectable_format:title")
def title(text: str) -> bool:
    """In double angular brackets, as in <<poem of joy>>."""
    return any(found.strip() for found in _TITLE.findall(text))


@check("detectable_format:constrained_response")
def constrained_response(text: str) -> bool:
    return any(answer in text.lower() for answer in _ANSWERS)


@check("combination:two_responses")
def two_responses(text: str) -> bool:
    """Two different ones with ****** between them."""
    parts = [part.strip() for part in _between(text.split("******"))]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


@check("combination:repeat_prompt")
def repeat_prompt(text: str, *, prompt_to_repeat: Annotated[str, Field(min_length=1, max_length=100_000)]) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


# ------------------------------------------------------------- start, end, case, punctuation, language


@check("startend:start_checker")
def start_checker(text: str, *, start_phrase: Phrase) -> bool:
    """Ours; IFEval has the end alone."""
    return text.strip().strip('"').lower().startswith(start_phrase.strip().lower())


@check("startend:end_checker")
def end_checker(text: str, *, end_phrase: Phrase) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@check("startend:quotation")
def quotation(text: str) -> bool:
    """Wrapped in double quotation marks."""
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


@check("change_case:english_capital")
def english_capital(text: str) -> bool:
    return text.isupper() and _is_english(text)


@check("change_case:english_lowercase")
def english_lowercase(text: str) -> bool:
    return text.islower() and _is_english(text)


@check("change_case:capital_word_frequency")
def capital_word_frequency(text: str, *, capital_frequency: Count, capital_relation: Relation) -> bool:
    """Words in capital letters throughout; one with hyphens is one word."""
    capitals = sum(word.group().isupper() for word in _CAPITALS.finditer(text))
    return _holds(capitals, capital_relation, capital_frequency)


@check("punctuation:no_comma")
def no_comma(text: str) -> bool:
    return "," not in text


@check("language:response_language")
def response_language(text: str, *, language: Annotated[str, AfterValidator(_known_language)]) -> bool:
    """A text too short to tell counts, as IFEval has it."""
    ranked = rank_languages(text, _MIN_LETTERS)
    return not ranked or next(iter(ranked)) == language
