"""Reading text/event-stream, as https://html.spec.whatwg.org/multipage/server-sent-events.html has it."""

from __future__ import annotations

import re
from collections.abc import Iterator

_LINE = re.compile(rb"\r\n|\n|\r(?!\Z)")  # a CR at the end of what is here may be half of a CRLF


class EventReader:
    """Fed with bytes as they come; gives the data of each whole event. Half an event is never given."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[str]:
        *lines, self._rest = _LINE.split(self._rest + chunk)
        for line in lines:
            if not line:
                if self._data:
                    yield "\n".join(self._data)
                self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" ").decode("utf-8", "replace"))
