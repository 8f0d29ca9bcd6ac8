"""What a document says must not steer the terminal that it is printed on, and must stay the document."""

import io
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from services import cli
from services.terminal import print_json, print_json_line

HOSTILE = {"name": "\x1b]0;t\x07\x9b31m\u202eback\u2028line\x7f é 日本", "list": ["\x00\r\n\u2066"]}


@pytest.mark.parametrize("printed", [print_json, print_json_line])
def test_a_document_is_printed_without_control_characters(
    printed: Callable[[Any], None], capsys: pytest.CaptureFixture[str]
) -> None:
    printed(HOSTILE)
    text = capsys.readouterr().out
    assert json.loads(text) == HOSTILE
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\u2028", "\x7f", "\r", "\u2066"} & set(text)
    assert "é 日本" in text


def test_a_stdout_of_an_old_locale_gets_the_same_document(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    print_json_line(HOSTILE)
    assert json.loads(raw.getvalue()) == HOSTILE

    def tables(**_: Any) -> int:
        print("日本 → é", flush=True)
        return 0

    monkeypatch.setattr(cli, "app", tables)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code, raw.getvalue().splitlines()[-1]) == (0, b"\\u65e5\\u672c \\u2192 \xe9")
