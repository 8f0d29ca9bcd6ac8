r"""Other answers made from a right one: rewritten with the same value, altered to another, or copied from the problem.

Each family is a function from an answer to the answers that it makes of it; none where it does not apply. Whether a
made answer really has the same or another value is for tests.benchmarks.math_values to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction

Family = Callable[[str], Iterator[str]]

REWRITTEN: dict[str, Family] = {}
ALTERED: dict[str, Family] = {}

_INTEGER = re.compile(r"-?\d+")
_DECIMAL = re.compile(r"-?\d*\.\d+")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\s*\{?(\d+?)\}?\s*\{?(\d+)\}?")
_WORD = re.compile(r"\\text\{([A-Za-z]+)\}")
_CHOICE = re.compile(r"\\text\{\(([A-H])\)\}")
_NUMERAL = re.compile(r"(\d+)_\{?(\d+)\}?")
_ROOT = re.compile(r"(\d*)\s*\\sqrt\{?(\d+)\}?")
_PRODUCT = re.compile(r"(-?\d+)\s*(\\pi|\\sqrt\{?\d+\}?)")
_PAIR = re.compile(r"(?:x \\in )?(\\left)?\s*([(\[])\s*(.+?)\s*,\s*([^,]+?)\s*(\\right)?([)\]])")
_COMPONENTS = re.compile(r"(\\left)?\(\s*(.*?)\s*(\\right)?\)")
_LIST = re.compile(r"[^(){}\[\]]+(?:,[^(){}\[\]]+)+")
_MATRIX = re.compile(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}")
_GROUPED = re.compile(r"(?:\\\$)?\d{1,3}(?:,(?:\\!)?\s*\d{3})+")
_SUM = re.compile(r"[^,=(){}<>\[\]]*[^,=(){}<>\[\]\s]\s*[+-][^,=<>()\[\]]*")
_ABOVE, _BELOW = {"(": ">", "[": r"\ge"}, {")": "<", "]": r"\le"}
_UP = {"(": "<", "[": r"\le", ")": "<", "]": r"\le"}
_LETTERS = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z](?![a-zA-Z])")


def rewriting(family: Family) -> Family:
    REWRITTEN[family.__name__] = family
    return family


def alteration(family: Family) -> Family:
    ALTERED[family.__name__] = family
    return family


def plain_fraction(answer: str) -> Fraction | None:
    """Of an answer that is one fraction of whole numbers, as it stands."""
    if not (found := _FRACTION.fullmatch(answer.strip())):
        return None
    sign, top, bottom = found.groups()
    return Fraction(int(sign + top), int(bottom))


def is_prose(answer: str) -> bool:
    return bool(_WORD.fullmatch(answer) or _CHOICE.fullmatch(answer))


def is_list(answer: str) -> bool:
    return bool(_LIST.fullmatch(answer) and not _GROUPED.fullmatch(answer))


def frac(value: Fraction) -> str:
    return f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def exact_decimal(value: Fraction) -> str | None:
    """None where it has no end."""
    denominator = value.denominator
    for factor in (2, 5):
        while denominator % factor == 0:
            denominator //= factor
    return f"{(Decimal(value.numerator) / value.denominator).normalize():f}" if denominator == 1 else None


def terms(answer: str) -> list[str]:
    """Of a sum without brackets, each with its sign."""
    return [term.replace(" ", "") for term in re.findall(r"[+-]?\s*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|[^+-])+", answer)]


def members(answer: str) -> list[str] | None:
    """Of a set or a list; None for anything else."""
    inner = re.fullmatch(r"\\\{(.*)\\\}", answer)
    if not inner and not is_list(answer):
        return None
    return [part.strip() for part in (inner.group(1) if inner else answer).split(",")]


def column(rows: list[str]) -> str:
    return r"\begin{pmatrix} " + r" \\ ".join(row.strip() for row in rows) + r" \end{pmatrix}"


def components(answer: str) -> list[str] | None:
    """Of a point in round brackets, whose every number is finite; None for anything else."""
    inner = _COMPONENTS.fullmatch(answer)
    if not inner or "(" in inner.group(2) or "infty" in answer or "," not in answer:
        return None
    return [part.strip() for part in inner.group(2).split(",")]


def quantity(answer: str) -> str | None:
    """The number of an answer with a unit, without it; None where there is none."""
    bare = re.sub(r"\s*(?:\\(?:text|mbox)\{[^}]*\}(?:\^\d)?|\^\\circ)$|^\\\$", "", answer)
    return bare if bare != answer and not is_prose(answer) else None


# ------------------------------------------------------------- the same value


@rewriting
def spacing(answer: str) -> Iterator[str]:
    yield rf"\,{answer}\;"
    yield f"  {answer} ."
    yield rf"\displaystyle {answer}"
    yield f"${answer}$"
    if not is_prose(answer) and not _GROUPED.fullmatch(answer) and re.search(r"[+,=]", answer):
        yield re.sub(r"\s*([+,=])\s*", r" \1\\, ", answer)
        yield re.sub(r"\s*([+,=])\s*", r"\1", answer)


@rewriting
def bracket_size(answer: str) -> Iterator[str]:
    if r"\left" in answer:
        yield answer.replace(r"\left", "").replace(r"\right", "")
    elif not is_prose(answer) and re.search(r"[(\[]", answer):
        yield re.sub(r"([)\]])", r"\\right\1", re.sub(r"([(\[])", r"\\left\1", answer))


@rewriting
def fraction_spelling(answer: str) -> Iterator[str]:
    if "frac" in answer:
        for spelling in (r"\frac", r"\dfrac", r"\tfrac"):
            yield re.sub(r"\\[dt]?frac", lambda _, s=spelling: s, answer)  # type: ignore[misc]
    if (value := plain_fraction(answer)) is not None:
        yield f"{value.numerator}/{value.denominator}"
        yield frac(value)
        if value.numerator < 0:
            yield f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
        if 0 < value.numerator < 10 and value.denominator < 10:
            yield f"\\frac{value.numerator}{value.denominator}"


@rewriting
def unreduced(answer: str) -> Iterator[str]:
    if (value := plain_fraction(answer)) is not None:
        for factor in (2, 3):
            sign = "-" if value < 0 else ""
            yield f"{sign}\\frac{{{factor * abs(value.numerator)}}}{{{factor * value.denominator}}}"


@rewriting
def mixed_number(answer: str) -> Iterator[str]:
    value = plain_fraction(answer)
    if value is not None and value > 1:
        whole, rest = divmod(value, 1)
        yield f"{whole}{frac(rest)}"
        yield f"{whole} {frac(rest)}"
    elif found := re.fullmatch(r"(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}", answer):
        whole_, top, bottom = map(int, found.groups())
        yield frac(Fraction(whole_ * bottom + top, bottom))
        yield f"{whole_ * bottom + top}/{bottom}"


@rewriting
def exact_decimals(answer: str) -> Iterator[str]:
    value = plain_fraction(answer)
    if value is not None and (decimal := exact_decimal(value)) is not None:
        yield decimal
        yield decimal.replace("0.", ".") if decimal.startswith(("0.", "-0.")) else f"{decimal}0"
    elif _DECIMAL.fullmatch(answer):
        yield frac(Fraction(answer))
        yield f"{answer}0"
        yield f"{Decimal(answer):f}"
    elif _INTEGER.fullmatch(answer):
        yield f"{answer}.0"
        yield f"{answer}.000"
        yield frac(Fraction(answer) / 1) if answer != "0" else "0.0"


@rewriting
def thousands(answer: str) -> Iterator[str]:
    if _INTEGER.fullmatch(answer) and abs(int(answer)) >= 1000:
        grouped = f"{int(answer):,}"
        yield from (grouped, grouped.replace(",", "{,}"), grouped.replace(",", r",\!"), grouped.replace(",", r"\,"))
    elif _GROUPED.fullmatch(answer):
        yield re.sub(r"\D", "", answer)
        yield f"{int(re.sub(r'[^0-9]', '', answer)):,}"


@rewriting
def powers_of_ten(answer: str) -> Iterator[str]:
    if _DECIMAL.fullmatch(answer) or (_INTEGER.fullmatch(answer) and abs(int(answer)) >= 1000):
        digits, exponent = f"{Decimal(answer).normalize():e}".split("e")
        yield rf"{digits} \times 10^{{{int(exponent)}}}"
        yield rf"{digits} \cdot 10^{{{int(exponent)}}}"


@rewriting
def with_a_name(answer: str) -> Iterator[str]:
    if not is_prose(answer) and not re.search(r"[=<>]|\\in |,|\\cup|matrix|_", answer):
        yield f"x = {answer}"
        yield f"f(3) = {answer}"
    if (named := re.fullmatch(r"[a-z] ?= ?(.+)", answer)) or (named := re.fullmatch(r"x \\in (.+)", answer)):
        yield named.group(1)


@rewriting
def worked_out_at_the_end(answer: str) -> Iterator[str]:
    if _INTEGER.fullmatch(answer):
        yield f"{int(answer) - 1} + 1 = {answer}"


@rewriting
def units(answer: str) -> Iterator[str]:
    if r"^\circ" in answer:
        yield from (answer.replace(r"^\circ", end) for end in (r"^{\circ}", "\u00b0", r"\text{ degrees}", r"\,^\circ"))
    if bare := quantity(answer):
        yield bare
        yield f"{bare} \\text{{ units}}"
    if _INTEGER.fullmatch(answer):
        yield rf"{answer} \text{{ cm}}"
        yield rf"{answer}\text{{ units}}"
    if answer.startswith(r"\$"):
        yield answer.replace(r"\$", "") + r" \text{ dollars}"


@rewriting
def roots(answer: str) -> Iterator[str]:
    if found := _ROOT.fullmatch(answer):
        factor, inner = int(found.group(1) or 1), int(found.group(2))
        yield rf"\sqrt{{{factor**2 * inner}}}"
        yield rf"{factor if factor > 1 else ''}\sqrt {inner}" if inner < 10 else rf"{factor}\sqrt{{{inner}}}"
        yield rf"{factor} \cdot \sqrt{{{inner}}}"
    if found := re.fullmatch(r"\\frac\{(\d*)\\sqrt\{(\d+)\}\}\{(\d+)\}", answer):
        top, inner_, bottom = found.group(1) or "1", found.group(2), found.group(3)
        yield rf"\frac{{{top}}}{{{bottom}}}\sqrt{{{inner_}}}"
        yield rf"\sqrt{{{inner_}}} \cdot {top}/{bottom}"


@rewriting
def factor_order(answer: str) -> Iterator[str]:
    if found := _PRODUCT.fullmatch(answer):
        number, rest = found.groups()
        yield rf"{rest} \cdot {number}" if not number.startswith("-") else rf"{rest} \cdot ({number})"
        yield rf"{number} \cdot {rest}"
        yield rf"{number} \times {rest}"


@rewriting
def term_order(answer: str) -> Iterator[str]:
    if _SUM.fullmatch(answer) and len(parts := terms(answer)) > 1:
        for order in (parts[::-1], parts[1:] + parts[:1]):
            signed = [part if part[0] in "+-" else f"+{part}" for part in order]
            yield "".join(signed).removeprefix("+")
            yield " ".join(f"{part[0]} {part[1:]}" for part in signed).removeprefix("+ ").replace("- ", "-", 1)


@rewriting
def element_order(answer: str) -> Iterator[str]:
    if found := members(answer):
        yield ", ".join(found[::-1])
        yield rf"\{{{', '.join(found[::-1])}\}}"
        yield rf"\{{{','.join(found)}\}}"
        if len(found) == 2:
            yield rf"{found[1]} \text{{ and }} {found[0]}"
            yield rf"{found[0]} \text{{ or }} {found[1]}"


@rewriting
def both_signs(answer: str) -> Iterator[str]:
    if r"\pm" in answer and "," not in answer:
        plus, minus = answer.replace(r"\pm", "+"), answer.replace(r"\pm", "-")
        yield from (f"{plus}, {minus}", rf"\{{{minus}, {plus}\}}", rf"{plus} \text{{ and }} {minus}")
    elif r"\pm" in answer and (found := members(answer)):
        every = [part.replace(r"\pm", sign) for part in found for sign in ("+-" if r"\pm" in part else "+")]
        yield ", ".join(every)
        yield rf"\{{{', '.join(every[::-1])}\}}"


@rewriting
def union_order(answer: str) -> Iterator[str]:
    if r"\cup" in answer:
        yield r" \cup ".join(part.strip() for part in reversed(answer.split(r"\cup")))
        yield answer.replace(r"\cup", "\u222a")


@rewriting
def interval_spelling(answer: str) -> Iterator[str]:
    if r"\infty" in answer:
        yield re.sub(r"(?<!-)\\infty", r"+\\infty", answer)
        yield re.sub(r"\\infty", "\u221e", answer)
    if r"\cup" not in answer and (found := _PAIR.fullmatch(answer)):
        _, left, low, high, _, right = found.groups()
        if left == "[" or right == "]" or "infty" in answer:
            yield rf"x \in {left}{low},{high}{right}"
            if high == r"\infty":
                yield f"x {_ABOVE[left]} {low}"
            if low == r"-\infty":
                yield f"x {_BELOW[right]} {high}"


@rewriting
def matrices(answer: str) -> Iterator[str]:
    if found := _MATRIX.fullmatch(answer):
        yield answer.replace("pmatrix", "bmatrix")
        yield re.sub(r"\s+", "", answer)
        if "/" in found.group(1):
            yield re.sub(r"(\d+)/(\d+)", r"\\frac{\1}{\2}", answer)


@rewriting
def words(answer: str) -> Iterator[str]:
    if found := _WORD.fullmatch(answer):
        word = found.group(1)
        yield from (word, rf"\text{{ {word} }}", rf"\mathrm{{{word}}}", rf"\textbf{{{word}}}", f"{word}.")
        yield from (word.capitalize(), word.lower())
    if found := _CHOICE.fullmatch(answer):
        letter = found.group(1)
        yield from (letter, f"({letter})", rf"\text{{{letter}}}", rf"\textbf{{({letter})}}", rf"\mathrm{{({letter})}}")


@rewriting
def numerals(answer: str) -> Iterator[str]:
    if found := _NUMERAL.fullmatch(answer):
        digits, base = found.groups()
        yield from (f"{digits}_{{{base}}}", f"{digits}_{base}", rf"{digits}_{{\text{{{base}}}}}", f"{digits} _ {base}")


@rewriting
def glyphs(answer: str) -> Iterator[str]:
    spellings = {r"\pi": "\u03c0", "-": "\u2212", r"\infty": "\u221e"}
    for command, glyph in spellings.items():
        if command in answer and not is_prose(answer):
            yield answer.replace(command, glyph)


@rewriting
def polynomials(answer: str) -> Iterator[str]:
    """Powers in braces, and factors multiplied out or taken out."""
    if found := re.fullmatch(r"\((\w)\+(\d)\)\((\w)\+(\d)\)", answer):
        a, m, b, n = found.groups()
        yield f"{a}{b} + {n}{a} + {m}{b} + {int(m) * int(n)}"
        yield f"({b}+{n})({a}+{m})"
    if re.search(r"[a-z]\^\d", answer) and not quantity(answer):
        yield re.sub(r"\^(\d)", r"^{\1}", answer)
    if found := re.fullmatch(r"(-?\d*)([a-zA-Z]) ?([+-]) ?(\d+)", answer):
        slope, letter, sign, constant = found.groups()
        opposite = slope[1:] if slope.startswith("-") else f"-{slope}"
        yield f"-({opposite}{letter} {'-' if sign == '+' else '+'} {constant})"
    if (found := re.fullmatch(r"(\d)([a-zA-Z])\+(\d)", answer)) and found.group(1) == found.group(3):
        yield f"{found.group(1)}({found.group(2)}+1)"


@rewriting
def powers(answer: str) -> Iterator[str]:
    """Roots as powers, and denominators without roots."""
    if found := _ROOT.fullmatch(answer):
        factor, inner = found.group(1), found.group(2)
        dot = r" \cdot " if factor else ""
        yield f"{factor}{dot}{inner}^{{1/2}}"
        yield rf"{factor}{dot}{inner}^{{\frac{{1}}{{2}}}}"
        yield rf"{factor}\sqrt[2]{{{inner}}}"
    if found := re.fullmatch(r"\\frac\{(\d*)\\sqrt\{(\d+)\}\}\{(\d+)\}", answer):
        top, inner, bottom = int(found.group(1) or 1), int(found.group(2)), int(found.group(3))
        yield rf"\frac{{{top * inner}}}{{{bottom}\sqrt{{{inner}}}}}"
    if found := re.fullmatch(r"\\frac\{(\d+)\}\{\\pi\}", answer):
        yield rf"{found.group(1)}/\pi"
        yield rf"{found.group(1)} \cdot \pi^{{-1}}"


@rewriting
def double_inequality(answer: str) -> Iterator[str]:
    if r"\cup" not in answer and "infty" not in answer and (found := _PAIR.fullmatch(answer)):
        _, left, low, high, _, right = found.groups()
        if "[" in left or "]" in right:
            yield rf"{low} {_UP[left]} x {_UP[right]} {high}"


@rewriting
def arrays(answer: str) -> Iterator[str]:
    if found := _MATRIX.fullmatch(answer):
        columns = "c" * (found.group(1).split(r"\\")[0].count("&") + 1)
        yield rf"\left(\begin{{array}}{{{columns}}}{found.group(1)}\end{{array}}\right)"
        yield rf"\left[\begin{{array}}{{{columns}}}{found.group(1)}\end{{array}}\right]"


@rewriting
def equation_sides(answer: str) -> Iterator[str]:
    if found := re.fullmatch(r"y = (-?)(\d)x(?: ([+-]) (\d))?", answer):
        sign, slope, constant_sign, constant = found.groups()
        minus = "+" if sign else "-"
        yield f"y {minus} {slope}x = {constant_sign.replace('+', '') + constant if constant else '0'}"
    if found := re.fullmatch(r"(.+) = 0", answer):
        parts = terms(found.group(1))
        flipped = [part[1:] if part[0] == "-" else f"-{part.removeprefix('+')}" for part in parts]
        yield f"{' + '.join(flipped).replace('+ -', '- ')} = 0"
        yield f"{' '.join(parts[:-1])} = {flipped[-1]}"


@rewriting
def common_factor(answer: str) -> Iterator[str]:
    if found := re.fullmatch(r"(\d+)([a-z]\^2)([+-]\d+)([a-z])([+-]\d+)", answer.replace(" ", "")):
        a, square, b, letter, c = found.groups()
        if not (int(a) % 2 or int(b) % 2 or int(c) % 2):
            yield f"2({int(a) // 2}{square}{int(b) // 2:+}{letter}{int(c) // 2:+})"
        yield f"{letter}({a}{letter}{b}){c}"
    if found := re.fullmatch(r"(\d+)([a-z]) ([+-]) (\d+)", answer):
        slope, letter, sign, constant = found.groups()
        yield f"{slope}({letter} {sign} \\frac{{{constant}}}{{{slope}}})"


# ------------------------------------------------------------- another value


@alteration
def one_more_or_less(answer: str) -> Iterator[str]:
    if _INTEGER.fullmatch(answer):
        yield from (str(int(answer) + 1), str(int(answer) - 1))
    elif (value := plain_fraction(answer)) is not None:
        yield from (frac(value + 1), frac(value - 1))


@alteration
def other_digit(answer: str) -> Iterator[str]:
    """The first, the middle and the last digit, each one higher."""
    places = [digit.start() for digit in re.finditer(r"\d", answer)]
    for place in sorted({places[0], places[len(places) // 2], places[-1]} if places else ()):
        yield f"{answer[:place]}{(int(answer[place]) + 1) % 10}{answer[place + 1 :]}"


@alteration
def lost_digit(answer: str) -> Iterator[str]:
    for number in re.finditer(r"\d{2,}", answer):
        yield answer[: number.end() - 1] + answer[number.end() :]
        yield answer[: number.start()] + answer[number.start() + 1 :]


@alteration
def swapped_digits(answer: str) -> Iterator[str]:
    for number in re.finditer(r"\d{2,}", answer):
        digits = number.group()
        yield answer[: number.start()] + digits[1] + digits[0] + digits[2:] + answer[number.end() :]


@alteration
def other_sign(answer: str) -> Iterator[str]:
    if not is_prose(answer) and not re.search(r"[,=<>]|matrix|_|\\\$", answer):
        yield answer[1:] if answer.startswith("-") and len(terms(answer)) == 1 else f"-({answer})"
        if len(terms(answer)) == 1:
            yield f"-{answer}" if not answer.startswith("-") else answer[1:]


@alteration
def tenfold(answer: str) -> Iterator[str]:
    if _INTEGER.fullmatch(answer) or _DECIMAL.fullmatch(answer):
        yield f"{Decimal(answer) * 10:f}"
        yield f"{Decimal(answer) / 10:f}"
        yield f"{Decimal(answer) / 100:f}"


@alteration
def nearly(answer: str) -> Iterator[str]:
    value = Fraction(answer) if _INTEGER.fullmatch(answer) or _DECIMAL.fullmatch(answer) else plain_fraction(answer)
    if value is not None:
        for distance in (Fraction(1, 10**4), Fraction(1, 10**7)):
            yield frac(value + distance)
            yield f"{float(value + distance):.9f}"
            yield rf"{frac(value)} + 10^{{-7}}"


@alteration
def other_fraction(answer: str) -> Iterator[str]:
    if (value := plain_fraction(answer)) is not None:
        yield f"\\frac{{{value.denominator}}}{{{value.numerator}}}"
        yield f"{value.numerator}/{value.denominator + 1}"
        yield f"{value.numerator + 1}/{value.denominator}"
        yield f"1{frac(abs(value))}" if value < 0 else f"1{frac(value)}"


@alteration
def rounded(answer: str) -> Iterator[str]:
    """Decimals that only come near."""
    from tests.benchmarks.math_values import signature

    if is_prose(answer) or re.search(r"[=,_]|matrix|\\cup", answer):
        return
    sign = signature(answer)
    if sign[0] == "number" and sign[1] == sign[2] and not sign[1].imag:
        for places in (1, 2, 4, 6):
            yield f"{sign[1].real:.{places}f}"


@alteration
def sign_of_a_term(answer: str) -> Iterator[str]:
    for sign in re.finditer(r"(?<=[\w}\s])[+-](?=\s*[\w\\])", answer):
        other = {"+": "-", "-": "+"}[sign.group()]
        yield answer[: sign.start()] + other + answer[sign.end() :]


@alteration
def lost_part(answer: str) -> Iterator[str]:
    r"""Without its pi, its i, its root, its last term."""
    for part in (r"\pi", r"\sqrt"):
        if re.search(rf"\d\s*\{part}|\{part}\{{", answer):
            yield re.sub(rf"\s*\{part}", "", answer)
    if re.search(r"\di$", answer):
        yield answer[:-1]
    if _SUM.fullmatch(answer) and len(parts := terms(answer)) > 1:
        yield "".join(parts[:-1])


@alteration
def other_letter(answer: str) -> Iterator[str]:
    if not is_prose(answer):
        for letter in sorted(set(_LETTERS.findall(re.sub(r"\\(?:text|mbox)\{.*?\}|^[a-z] ?=", "", answer)))):
            if letter != "i":
                yield re.sub(rf"(?<![a-zA-Z\\]){letter}(?![a-zA-Z])", "t", answer)


@alteration
def swapped_components(answer: str) -> Iterator[str]:
    if found := components(answer):
        yield f"({', '.join(found[::-1])})"
        yield f"({', '.join([found[1], found[0], *found[2:]])})"
    if matrix := _MATRIX.fullmatch(answer):
        yield column(matrix.group(1).split(r"\\")[::-1])


@alteration
def lost_component(answer: str) -> Iterator[str]:
    if found := components(answer) or members(answer):
        opening, closing = ("(", ")") if components(answer) else ("", "")
        yield f"{opening}{', '.join(found[:-1])}{closing}"
        yield f"{opening}{', '.join([*found, '99'])}{closing}"
    if r"\cup" in answer:
        yield answer.split(r"\cup")[0].strip()
    if matrix := _MATRIX.fullmatch(answer):
        yield column(matrix.group(1).split(r"\\")[:-1])


@alteration
def one_of_two_signs(answer: str) -> Iterator[str]:
    if r"\pm" in answer:
        yield answer.replace(r"\pm", "+")
        yield answer.replace(r"\pm", "-")


@alteration
def other_ends(answer: str) -> Iterator[str]:
    """An end that belongs to the interval no longer, or does now."""
    if "infty" in answer or re.search(r"[\[\]]", answer):
        for end in re.finditer(r"\((?!-?\\infty)|\[|(?<!infty)\)|\]", answer):
            other = {"(": "[", "[": "(", ")": "]", "]": ")"}[end.group()]
            yield answer[: end.start()] + other + answer[end.end() :]


@alteration
def other_word(answer: str) -> Iterator[str]:
    if found := _WORD.fullmatch(answer):
        other = {"even": "odd", "east": "west", "ellipse": "hyperbola"}.get(found.group(1), "Briar")
        yield from (rf"\text{{{other}}}", other, rf"\text{{not {found.group(1)}}}")
    if found := _CHOICE.fullmatch(answer):
        for other in "ABCDE".replace(found.group(1), ""):
            yield from (rf"\text{{({other})}}", other)


@alteration
def other_base(answer: str) -> Iterator[str]:
    if found := _NUMERAL.fullmatch(answer):
        digits, base = found.groups()
        yield f"{digits}_{{{int(base) + 1}}}"
        yield digits


@alteration
def several_answers(answer: str) -> Iterator[str]:
    if _INTEGER.fullmatch(answer):
        yield rf"{answer} \text{{ or }} {int(answer) + 1}"
        yield f"{int(answer) + 2}, {answer}"
        yield rf"\{{{answer}, {int(answer) - 1}\}}"
        yield rf"{answer} \pm 1"


# ------------------------------------------------------------- not worked out


def unfinished(answer: str) -> Iterator[str]:
    """Sums and products that are left to do: the right value, and no answer."""
    if _INTEGER.fullmatch(answer):
        number = int(answer)
        yield f"{number - 3} + 3"
        yield f"{number + 8} - 8"
        yield rf"{number} \times 1"
        yield rf"\frac{{{2 * number - 2}+2}}{{2}}"
    elif (value := plain_fraction(answer)) is not None:
        yield f"{frac(value - Fraction(1, 7))} + \\frac{{1}}{{7}}"
        yield rf"{frac(value / 3)} \times 3"


def formulas(prompt: str) -> list[str]:
    return re.findall(r"(?<!\\)\$([^$]+)(?<!\\)\$", prompt) + re.findall(r"\\\[(.+?)\\\]", prompt, re.DOTALL)


def is_reordered(answer: str, prompt: str) -> bool:
    """Whether it has the terms of a sum of the problem."""
    wanted = sorted_terms(answer)
    return len(wanted) > 1 and any(sorted_terms(formula) == wanted for formula in formulas(prompt))


def sorted_terms(answer: str) -> list[str]:
    return sorted(term.removeprefix("+") for term in terms(answer))


def copied(prompt: str) -> Iterator[str]:
    """Every formula of the problem, also named, in brackets and in another order, and the problem itself."""
    for formula in formulas(prompt):
        yield formula
        yield from term_order(formula)
        if not re.search(r"[=<>,]|\\[a-z]*(?:eq|le|ge|in)\b", formula):
            yield from (f"x = {formula}", f"{{{formula}}}", f"({formula})")
    yield prompt


def is_dressed(copy: str, answer: str) -> bool:
    """Whether the copy is the answer itself, perhaps named or in brackets."""
    bare, wanted = "".join(copy.split()), "".join(answer.split())
    return bare in (wanted, f"x={wanted}", f"{{{wanted}}}", f"({wanted})")
