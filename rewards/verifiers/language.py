"""The language that a completion is written in."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from rewards.base import RewardBatch
from rewards.registry import register
from rewards.verifiers import rows

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

# What py3langid's model tells apart, so that a spec is checked without loading it.
_CODES = """
    ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr
    fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko
    ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru
    rw sa sdh se si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue
    zh zu zxx
"""
LANGUAGES = frozenset(_CODES.split())
_CODE = r"^[a-z]{2,3}$"
_MAX_CHARS = 20_000  # more tells nothing new
_NO_PROSE = re.compile(r"```[^`]*```|\$\$[^$]*\$\$|\$[^$\n]*\$|\\[a-zA-Z]+|https?://\S+")


class LanguageOptions(rows.RowOptions):
    """The language, or the column that holds each row's."""

    language: str | None = Field(None, pattern=_CODE, description="ISO 639 code of the language, such as en, de or zh")
    column: str | None = Field(
        None, min_length=1, max_length=200, description="column of the data with each row's code, in place of one"
    )
    score_as: Literal["match", "probability"] = Field(
        "match", description="1 or 0 for the likeliest language, or the probability of the wanted one"
    )
    min_letters: int = Field(10, ge=1, le=10_000, description="fewer letters of prose tell no language and score 0")

    @field_validator("language")
    @classmethod
    def _known(cls, language: str | None) -> str | None:
        if language is not None and language not in LANGUAGES:
            raise ValueError(f"expected one of {', '.join(sorted(LANGUAGES))}")
        return language

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.language is None) == (self.column is None):
            raise ValueError("give one of `language` and `column`")
        return self


@register
class Language:
    """1 where the completion is written in the wanted language, else 0.

    py3langid decides, offline, on the text's first 20,000 characters without code, formulas and links.
    """

    name: ClassVar[str] = "language"
    Options: ClassVar[type[BaseModel]] = LanguageOptions
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    rowwise: ClassVar[bool] = True

    def __init__(self, options: LanguageOptions) -> None:
        self._options = options

    def score(self, batch: RewardBatch) -> list[float | None]:
        return [self._score(batch, row) for row in range(len(batch))]

    def _score(self, batch: RewardBatch, row: int) -> float | None:
        wanted = self._options.language
        if self._options.column is not None:
            found = rows.detail(batch, row, self._options.column, self._options.missing)
            if found is None:
                return None
            if not isinstance(found, str) or found not in LANGUAGES:
                raise rows.MissingRow(row, f"needs the code of a known language in {self._options.column!r}")
            wanted = found
        assert wanted is not None
        ranked = rank_languages(batch.completions[row], self._options.min_letters)
        if not ranked:
            return 0.0
        if self._options.score_as == "match":
            return float(next(iter(ranked)) == wanted)
        return min(1.0, max(0.0, ranked[wanted]))


def rank_languages(text: str, min_letters: int) -> dict[str, float]:
    """Probabilities by language, the likeliest first; empty where there are fewer letters of prose than that."""
    prose = _NO_PROSE.sub(" ", text[:_MAX_CHARS])
    if sum(letter.isalpha() for letter in prose) < min_letters:
        return {}
    return dict(_identifier().rank(prose))


@functools.cache
def _identifier() -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # only here: it brings numpy and reads its model

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
