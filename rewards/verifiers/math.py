r"""Accuracy on problems whose answer is known: the last `\boxed{}` against the ground truth."""

from __future__ import annotations

import functools
import re
from decimal import Decimal
from fractions import Fraction
from typing import ClassVar

from pydantic import BaseModel, Field

from rewards.base import RewardBatch
from rewards.registry import register
from rewards.verifiers import rows
from rewards.verifiers.bounded import Bounded
from rewards.verifiers.boxed import last_boxed

_MAX_ANSWER_CHARS = 300  # a final answer is short; what is longer is slow to parse and not compared

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)", re.ASCII)
_GROUPED = re.compile(r"[+-]?\d{1,3}((,|\{,\})\d{3})+(\.\d*)?", re.ASCII)
_FRACTION = re.compile(r"([+-]?)(\d*)\\frac(?:(\d)|\{(-?\d+)\})(?:(\d)|\{(\d+)\})|([+-]?\d+)/(\d+)", re.ASCII)
_NUMERAL = re.compile(r"([0-9A-Fa-f]+)_\{?(?:\\text\{)?(\d+)\}?\}?", re.ASCII)
_CHOICE = re.compile(r"(?:\\(?:text(?:bf|it|rm)?|mathrm|mathbf|mbox)\{)?\s*\(?([A-Z])\)?\s*\}?\.?", re.ASCII)
_WORDS = re.compile(r"(?:\\(?:text(?:bf|it|rm)?|mathrm|mathbf|mbox)\{)?\s*([A-Za-z]+(?:[ -][A-Za-z]+)*)\s*\}?\.?")

_SPACING = re.compile(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[,;:! ]|\\?\$|(?<!\d)\s|\s(?!\d)|~")
_DIGITS_OF_FRAC = re.compile(r"(frac)\s*(\d)\s+(?=\d)")  # \frac 1 2
_GAP = re.compile(r"(?<=\d)(?:\s|~|\\[,;: ])+(?=\d)")
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?: \d{3})+(?![\d/])")
_MIXED = re.compile(r"(?<![\d./] )(?<![\d./])(\d+) (\d+)/(\d+)(?![\d/]|\.\d)")
_SEVERAL = re.compile(r"[+-]?[\d.,]+(?: [\d.,]+)+", re.ASCII)
_SPELLING = str.maketrans(
    {
        "\u2212": "-",
        "\u2013": "-",
        "\u00d7": r"\times ",
        "\u00b7": r"\cdot ",
        "\u22c5": r"\cdot ",
        "\u2217": "*",
        "\u00f7": r"\div ",
        "\u03c0": r"\pi ",
        "\u221a": r"\sqrt ",
        "\u221e": r"\infty ",
        "\u00b0": r"^\circ ",
        "\u222a": r"\cup ",
        "\u2264": r"\le ",
        "\u2265": r"\ge ",
    }
)

# An operator between two operands. A power of ten is how a large number is written, not a product left to do.
_UNEVALUATED = re.compile(r"(?<=[\d)}\]!])(?:[-+]|(?:\*|\\ast|\\times|\\cdot)(?!10\^)|\\div|\((?=[\d(]))")
_FUNCTION = re.compile(
    r"\\(?:sum|prod|int|lim|[dt]?binom|log|ln|lg|lceil|lfloor|det|gcd|lcm|max|min|arc|a?(?:sin|cos|tan|cot|sec|csc))"
    r"|(?<=[\d)}])!"
)
_EQUALS = re.compile(r"(?<![<>!])=")
_FORMULA = re.compile(r"\$+([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_TERM = re.compile(r"[+-]?(?:\^-?|_-?|[*/]-|[^+-])+")
_UNIT = re.compile(r"(?:\\(?:text|mbox|mathrm)\{[^{}]*\}|\^\\circ|\\?%|[a-zA-Z]+)$")
_TRUTH_MARKER = "####"  # before the answer, in GSM8K's worked solutions
_MARKER = re.compile(r"(?:answer(?:\s+is)?|####)\s*:?\s*(.*\S)", re.IGNORECASE)


class MathOptions(rows.RowOptions):
    """What counts as an answer."""

    needs_answer: ClassVar[bool] = True

    require_boxed: bool = Field(
        True,
        description="whether only \\boxed{} counts; if not, the last line stands in for a missing box",
    )
    timeout_s: float = Field(
        2.0, gt=0, le=60, description="processor time for one symbolic comparison, in seconds; more scores 0"
    )


@register
class MathAccuracy:
    r"""1 where the final answer equals the ground truth, else 0.

    The answer is the content of the last `\boxed{}`. Equal text (apart from spacing), equal words and equal fractions
    are decided at once, everything else by math-verify: roots, units, sets in any order, intervals, matrices. A
    decimal counts where it is exact: 0.333333 is not 1/3. A numeral in a base needs that base.

    It has to be worked out. Where the ground truth is a fraction or a plain number, `30-1+6` or `9 \times 3` scores
    0; so does a sum, logarithm or binomial where the ground truth has none, and a formula of the prompt that equals
    the ground truth only by algebra, also in brackets, named (`x = `) or with its terms in another order. Of `x = 5`
    or `2 + 3 = 5` the last part counts. `3 1/2` is a mixed number.

    An answer above 300 characters, or one that takes longer than `timeout_s` to compare, scores 0.

    A ground truth may be a worked solution: its last box counts, else what follows its last `####`. One that is
    still no short answer can't be met, so its row can't be scored.
    """

    name: ClassVar[str] = "math"
    Options: ClassVar[type[BaseModel]] = MathOptions
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    rowwise: ClassVar[bool] = True
    wanted_truth: ClassVar[str] = (
        r"a short answer, or a worked solution with it in a \boxed{} or after ####"  # in words, for people
    )

    def __init__(self, options: MathOptions) -> None:
        self._options = options
        self._child = Bounded("equal_answers", options.timeout_s)

    def warm_up(self) -> None:
        """Starts the child, whose algebra takes seconds to load, while no step waits for it."""
        self._child.ask(gold="x + 1", answer="1 + x", prose=False)

    def score(self, batch: RewardBatch) -> list[float | None]:
        correct = functools.cache(self._correct)  # the rollouts of one prompt often agree
        scores: list[float | None] = []
        for row, completion in enumerate(batch.completions):
            truth = rows.answer(batch, row, self._options.missing)
            if truth is None:
                scores.append(None)
                continue
            if (gold := short_answer(truth)) is None:
                raise rows.MissingRow(row, f"needs a ground truth that is {self.wanted_truth}")
            scores.append(float(correct(gold, *self._final_answer(completion), batch.prompts[row])))
        return scores

    @staticmethod
    def takes_truth(truth: str) -> bool:
        return short_answer(truth) is not None

    def _final_answer(self, completion: str) -> tuple[str, bool]:
        """The answer, empty where there is none, and whether it is a line of prose rather than a box."""
        boxed = last_boxed(completion)
        if boxed or self._options.require_boxed:
            return (boxed.content if boxed else ""), False
        line = completion.strip().rpartition("\n")[2]
        marked = _MARKER.search(line)
        return (marked.group(1) if marked else line), True

    def _correct(self, gold: str, answer: str, prose: bool, prompt: str) -> bool:
        quick = compare_plainly(gold, answer, prompt)
        return self._child.ask(gold=spell(gold), answer=spell(answer), prose=prose) if quick is None else quick


def short_answer(truth: str) -> str | None:
    """What a ground truth says the answer is; None where no answer could equal that."""
    if boxed := last_boxed(truth):
        return boxed.content if len(boxed.content) <= _MAX_ANSWER_CHARS else None
    answer = truth.rpartition(_TRUTH_MARKER)[2].strip()
    is_prose = "\n" in answer and r"\begin" not in answer  # a matrix may go over lines
    if not answer or len(answer) > _MAX_ANSWER_CHARS or r"\boxed" in answer or is_prose:
        return None
    return answer


def compare_plainly(gold: str, answer: str, prompt: str = "") -> bool | None:
    """Whether the two are equal, where that needs no algebra; None where it does."""
    plain_gold, plain = normalise(gold), normalise(answer)
    if not plain or plain == plain_gold:
        return bool(plain)
    if len(answer) > _MAX_ANSWER_CHARS:
        return False
    if _written_out(plain) == _written_out(plain_gold):
        return True
    if (words := _words(gold)) and words == _words(answer):
        return True
    if _NUMERAL.fullmatch(plain_gold) or _NUMERAL.fullmatch(plain):
        return _numeral(plain_gold) == _numeral(plain)
    last = _last_part(plain)
    part = plain if "," in plain else last
    if part != plain and _written_out(plain) in _written_out(normalise(prompt)):
        return False
    if _is_copied(part, plain_gold, prompt):
        return False
    if not _FUNCTION.search(gold) and _FUNCTION.search(answer.rpartition("=")[2]):
        return False
    value = _rational(plain_gold)
    if value is None:
        return None
    result = _rational(normalise(last))
    if result is not None:
        return value == result
    worked_out = last if re.search(r"\d", last) else plain
    return False if _UNEVALUATED.search(worked_out) or _SEVERAL.fullmatch(last) else None


def spell(answer: str) -> str:
    """In LaTeX's own letters, as a parser wants it."""
    return _with_gaps(answer.translate(_SPELLING)).strip().rstrip(".")


def normalise(answer: str) -> str:
    """One spelling for what is written in several ways with one meaning: spacing, minus signs, 1,000, 3 1/2.

    A space between two digits stays, unless it groups thousands: 1 2 is not 12.
    """
    answer = _SPACING.sub("", _with_gaps(answer.translate(_SPELLING))).rstrip(".")
    if _GROUPED.fullmatch(answer):
        return re.sub(r"[{,}]", "", answer)
    return answer.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")


def _with_gaps(answer: str) -> str:
    """What stands between two digits as one space, or as what it means: thousands without it, and mixed numbers."""
    answer = _GAP.sub(" ", _DIGITS_OF_FRAC.sub(r"\1\2", answer))
    answer = _THOUSANDS.sub(lambda found: found.group().replace(" ", ""), answer)
    return _MIXED.sub(r"\1\\frac{\2}{\3}", answer)


def _last_part(plain: str) -> str:
    """Of `x = 5` what it is equal to; the whole where nothing is."""
    return _EQUALS.split(plain)[-1]


def _is_copied(part: str, plain_gold: str, prompt: str) -> bool:
    """Whether it is a formula of the prompt, its terms in any order, and not what the ground truth says itself."""
    shape = _shape(part)
    if _NUMBER.fullmatch(_UNIT.sub("", part)) or _terms(shape) == _terms(_shape(_last_part(plain_gold))):
        return False
    if re.search(rf"(?<![\d/])(?<!\d\.){re.escape(shape)}(?![\d/]|\.\d)", _shape(normalise(prompt))):
        return True
    formulas = (_shape(normalise("".join(filter(None, found)))) for found in _FORMULA.findall(prompt))
    return len(terms := _terms(shape)) > 1 and any(_terms(formula) == terms for formula in formulas)


def _shape(plain: str) -> str:
    """Without what changes nothing: braces, brackets around all of it or one number or letter, 2.0 for 2, 02 for 2."""
    plain = re.sub(r"\((\w+(?:\.\d+)?)\)", r"\1", re.sub(r"[{}]", "", _written_out(plain)))
    plain = re.sub(r"(?<![\d.])0+(?=\d)", "", re.sub(r"(\d)\.0+(?!\d)", r"\1", plain)).removeprefix("+")
    while plain[:1] == "(" and _closes(plain) == len(plain) - 1 and "," not in plain:
        plain = plain[1:-1].removeprefix("+")
    return plain


def _closes(plain: str) -> int:
    """Where the bracket that it begins with is closed; -1 where it never is."""
    depth = 0
    for place, letter in enumerate(plain):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place
    return -1


def _terms(shape: str) -> list[str]:
    """Sorted, each with its sign; one alone where brackets or relations would make a sum something else."""
    if re.search(r"[()<>=,]", shape):
        return [shape]
    return sorted(term.removeprefix("+") for term in _TERM.findall(shape))


def _written_out(plain: str) -> str:
    """Fractions of whole numbers as a/b, unless what stands around them would make it another value."""
    return re.sub(r"(?<![\d}^_])\\frac(?:\{(\d+)\}\{(\d+)\}|(\d)(\d))(?!\d)", r"\1\3/\2\4", plain)


def _words(answer: str) -> str | None:
    """Words alone, in lower case, or the capital letter of a choice; None for anything else."""
    answer = answer.strip().strip("$")
    found = _CHOICE.fullmatch(answer) or _WORDS.fullmatch(answer)
    return found.group(1).lower() if found and not (len(found.group(1)) == 1 and found.re is _WORDS) else None


def _numeral(plain: str) -> tuple[str, str]:
    """Digits and base; ten where none is named."""
    found = _NUMERAL.fullmatch(plain)
    return (found.group(1).lower(), found.group(2)) if found else (plain, "10")


def _rational(plain: str) -> Fraction | None:
    r"""Of a number, a/b, \frac{a}{b} or a mixed number; None for anything else."""
    if _NUMBER.fullmatch(plain):
        return Fraction(Decimal(plain))
    if not (found := _FRACTION.fullmatch(plain)):
        return None
    sign, whole, digit, top, digit_below, below, left, right = found.groups()
    numerator, denominator = int(left or digit or top), int(right or digit_below or below)
    if denominator == 0 or (whole and numerator < 0):
        return None
    value = Fraction(int(whole or 0) * denominator + numerator, denominator)
    return -value if sign == "-" else value
