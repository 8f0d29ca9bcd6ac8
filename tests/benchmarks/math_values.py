r"""The value of a final answer by arithmetic alone: what altered and rewritten answers are checked with.

Independent of math-verify: a small recursive parser that computes in floating point, letters standing for fixed odd
numbers. It reads what MATH-500 answers are made of (fractions, roots, powers, pi, i, tuples, intervals, unions, sets,
matrices, equations, numerals in a base, words) and refuses everything else.
"""

from __future__ import annotations

import cmath
import math
import re
from typing import Any

Signature = tuple[Any, ...]

_POINTS = (0.7236, 1.3717)  # two places at which letters are evaluated
_SPACING = re.compile(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|(?<!\\)\\[,;:! ]|\\quad|\$|~|\s")
_UNIT = re.compile(r"\\(?:text|mbox|mathrm)\{\s*(?:cm|inches|cents|degrees|units|dollars)\s*\}(?:\^\{?\d\}?)?")
_TOKEN = re.compile(r"\d+\.?\d*|\.\d+|\\[a-zA-Z]+|[a-zA-Z]|[-+*/^_(){}\[\]]")
_GROUPED = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_GLYPHS = {
    "\u2212": "-",
    "\u03c0": r"\pi ",
    "\u00d7": r"\times ",
    "\u221e": r"\infty ",
    "\u222a": r"\cup ",
    "\u00b0": r"^\circ ",
    "\u221a": r"\sqrt ",
}
_CONSTANTS = {r"\pi": math.pi, r"\infty": math.inf, "i": 1j}


class Unreadable(ValueError):
    """An answer of a form that this module does not know."""


def signature(answer: str) -> Signature:
    """Kind and numbers of an answer: two answers are the same exactly where `close` says so of these."""
    text = answer
    for glyph, spelling in _GLYPHS.items():
        text = text.replace(glyph, spelling)
    text = re.sub(r"^(?:\\[,;:!]|\\displaystyle|[\s$])+|(?:\\[,;:!]|[\s$.])+$", "", text)
    text = _UNIT.sub("", text).replace(r"\$", "").replace("{,}", ",")
    if word := re.fullmatch(r"(?:\\text(?:bf)?|\\mathrm)?\{?\s?\(?((?:not )?[A-Za-z]{2,}|[A-H])\)?\s?\}?", text):
        return ("word", word.group(1).lower())
    text = re.sub(r"\\text\{ ?(?:and|or) ?\}", ",", text)
    text = re.sub(r"\^\{?\\circ\}?", "", text)
    text = re.sub(r"\\cot\s*([a-z])", r"\\cot{\1}", text)
    text = _SPACING.sub("", re.sub(r"\\([dt])frac", r"\\frac", text)).rstrip(".").replace("+\\infty", "\\infty")
    text = re.sub(r"^[a-z]\\in", "", text)
    if numeral := re.fullmatch(r"(\d+)_\{?(?:\\text\{)?(\d+)\}?\}?", text):
        return ("numeral", numeral.group(1), numeral.group(2))
    if _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    return _compound(text)


def _compound(text: str) -> Signature:
    text = re.sub(r"[(\[](\\begin\{)array\}\{c+\}(.*)(\\end\{)array\}[)\]]", r"\1pmatrix}\2\3pmatrix}", text)
    if matrix := re.fullmatch(r"\\begin\{([pb])matrix\}(.*)\\end\{\1matrix\}", text):
        rows = [[value(cell) for cell in row.split("&")] for row in matrix.group(2).split(r"\\")]
        return ("matrix", len(rows), [cell for row in rows for cell in row])
    if bounds := re.fullmatch(r"(.+?)(<|\\le)[a-z](<|\\le)(.+)", text):
        low, left, right, high = bounds.groups()
        return ("intervals", [("(" if left == "<" else "[", value(low), value(high), ")" if right == "<" else "]")])
    if bound := re.fullmatch(r"[a-z](<|>|\\leq?|\\geq?)(.+)", text):
        return ("intervals", [_ray(*bound.groups())])
    if named := re.fullmatch(r"(?:[a-zA-Z]\(\d\)|-?\d+\+\d+)=(.+)", text):  # f(3) = 5, 2 + 3 = 5
        return _compound(named.group(1))
    if equation := re.fullmatch(r"([^=<>]+)=([^=<>]+)", text):
        left, right = equation.groups()
        if re.fullmatch("[a-zA-Z]", left) and not re.search(r"(?<![a-zA-Z\\])x(?![a-zA-Z])", right):
            return _compound(right)  # x = 5; but y = 2x is a line
        sides = [value(left, at) - value(right, at) for at in _POINTS]
        return ("equation", [sides[0] / sides[1]])
    parts = text.split(r"\cup")
    if all(re.fullmatch(r"[(\[].*[)\]]", part) and len(_split(part[1:-1])) == 2 for part in parts):
        return ("intervals", sorted((_interval(part) for part in parts), key=repr))
    if text.startswith("(") and text.endswith(")") and len(_split(text[1:-1])) > 2:
        return ("tuple", [value(part) for part in _split(text[1:-1])])
    if text.startswith(r"\{"):
        text = text.removeprefix(r"\{").removesuffix(r"\}")
    members = [sign for part in _split(text) for sign in _signs(part)]
    if len(members) > 1:
        return ("numbers", sorted((value(part) for part in members), key=lambda z: (z.real, z.imag)))
    return ("number", *(value(members[0], at) for at in _POINTS))


def close(one: Signature, other: Signature) -> bool:
    """Same kind, and every number within 1e-9 of the other's, relatively."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(close(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, complex | float | int) and isinstance(other, complex | float | int):
        return one == other or cmath.isclose(one, other, rel_tol=1e-9, abs_tol=1e-13)
    return bool(one == other)


def _split(text: str) -> list[str]:
    """At the commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "({[") - (letter in ")}]")
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _signs(text: str) -> list[str]:
    return [text.replace(r"\pm", "+"), text.replace(r"\pm", "-")] if r"\pm" in text else [text]


def _interval(text: str) -> tuple[Any, ...]:
    low, high = _split(text[1:-1])
    return (text[0], value(low), value(high), text[-1])


def _ray(sign: str, bound: str) -> tuple[Any, ...]:
    end, closed = value(bound), sign.startswith("\\")
    if sign in ("<", r"\le", r"\leq"):
        return ("(", -math.inf + 0j, end, "]" if closed else ")")
    return ("[" if closed else "(", end, math.inf + 0j, ")")


def value(text: str, at: float = _POINTS[0]) -> complex:
    """Of an expression without relations; letters are numbers made from `at`."""
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != text or not tokens:
        raise Unreadable(text)
    reader = _Reader(tokens, at)
    result = complex(reader.sum())
    if reader.tokens:
        raise Unreadable(text)
    return result


class _Reader:
    def __init__(self, tokens: list[str], at: float) -> None:
        self.tokens = tokens[::-1]
        self.at = at

    def peek(self) -> str:
        return self.tokens[-1] if self.tokens else ""

    def take(self) -> str:
        if not self.tokens:
            raise Unreadable("an end that came too early")
        return self.tokens.pop()

    def sum(self) -> complex:
        sign = -1 if self.peek() == "-" else 1
        if self.peek() in ("+", "-"):
            self.take()
        total = _times(sign, self.product())
        while self.peek() in ("+", "-"):
            sign = -1 if self.take() == "-" else 1
            total += sign * self.product()
        return total

    def product(self) -> complex:
        whole = self.peek().isdigit()
        total = self.power()
        while self.peek() not in ("", "+", "-", ")", "}", "_"):
            if self.peek() == "/":
                self.take()
                total /= self.power()
                continue
            mixed = whole and self.peek() == r"\frac"
            if self.peek() in ("*", r"\cdot", r"\times"):
                self.take()
            right = self.power()
            total = total + right if mixed and complex(right).real == right and abs(right) < 1 else total * right
            whole = False
        return total

    def power(self) -> complex:
        base = self.atom()
        if self.peek() == "^":
            self.take()
            return complex(base) ** self.argument()
        return base

    def argument(self) -> complex:
        r"""`{...}`, or one digit or sign alone, as LaTeX has it: \frac12."""
        if self.peek() != "{" and self.peek().isdigit() and len(self.peek()) > 1:
            token = self.take()
            self.tokens.append(token[1:])
            return float(token[0])
        return self.atom()

    def atom(self) -> complex:
        token = self.take()
        if token in ("(", "{"):
            inner = self.sum()
            if self.take() != {"(": ")", "{": "}"}[token]:
                raise Unreadable("brackets that do not match")
            return inner
        if token == "-":
            return -self.power()
        if token == r"\frac":
            top = self.argument()
            return top / self.argument()
        if token == r"\sqrt":
            if self.peek() == "[":
                self.tokens[-3:] = []  # [2]
            return cmath.sqrt(self.argument())
        if token == r"\cot":
            return 1 / cmath.tan(self.atom())
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        if re.fullmatch("[a-zA-Z]", token):
            return self.at * (2 + math.sin(ord(token)))
        if re.fullmatch(r"[\d.]+", token):
            return float(token)
        raise Unreadable(token)


def _times(sign: int, number: complex) -> complex:
    return number if sign == 1 else -number  # 1 * inf j would be NaN
