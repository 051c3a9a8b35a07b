"""How many lines of one kind a log takes: what a peer can have us say is said so often in a second, and then counted.

A kind is the place in the code that says it. Without this an initiator that does a hundred thousand wrong things in a
second would fill the disk with them.
"""

from __future__ import annotations

import logging

LINES_A_SECOND = 100


class LineLimit(logging.Filter):
    """For a handler. What was left out is said with the next line that it takes in another second."""

    def __init__(self, lines_a_second: int = LINES_A_SECOND) -> None:
        super().__init__()
        self._limit = lines_a_second
        self._second = 0
        self._lines: dict[tuple[str, int], int] = {}
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        second = int(record.created)
        if second != self._second:
            left_out, self._left_out = self._left_out, 0
            self._second = second
            self._lines.clear()
            if left_out:
                logging.getLogger(record.name).warning("%d more lines like those before were left out", left_out)
        kind = (record.pathname, record.lineno)
        count = self._lines[kind] = self._lines.get(kind, 0) + 1
        if count > self._limit:
            self._left_out += 1
            return False
        return True
