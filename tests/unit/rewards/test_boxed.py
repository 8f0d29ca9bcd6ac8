from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.verifiers.boxed import last_boxed

BALANCED = st.recursive(
    st.text(alphabet="ab1+ ^", min_size=1, max_size=4).filter(str.strip),
    lambda inner: st.builds(lambda a, b: f"{{{a}}}{b}", inner, inner),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{27}", "27"),
        (r"so $\boxed{ 27 }$.", "27"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\frac{\sqrt{2}}{2}} and so on }", r"\frac{\sqrt{2}}{2}"),
        (r"\boxed {5}", "5"),
        (r"\boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        ("\\boxed{1\n+ 2}", "1\n+ 2"),
        (r"\fbox{3} \boxed{4}", "4"),
    ],
)
def test_the_last_complete_box(text, content):
    boxed = last_boxed(text)
    assert boxed is not None
    assert boxed.content == content
    assert text[boxed.start :].startswith(r"\boxed")


@pytest.mark.parametrize(
    "text",
    ["", "27", r"\boxed", "boxed", r"\boxed{}", r"\boxed{ }", r"\boxed{2", r"\boxed{1} \boxed{\frac{1}{2}"],
)
def test_no_answer(text):
    assert last_boxed(text) is None


@given(before=st.text(max_size=20).filter(lambda text: "\\" not in text), content=BALANCED)
def test_any_balanced_content_is_found_whole(before, content):
    boxed = last_boxed(f"{before}\\boxed{{{content}}} }} {{")
    assert boxed is not None
    assert boxed.content == content.strip()
    assert boxed.start == len(before)


@given(st.text(alphabet=r"\boxed{} 1", max_size=60))
def test_anything_is_survived(text):
    last_boxed(text)
