"""A log that a peer has much said in: lines of one kind are counted beyond so many, others are not touched."""

from __future__ import annotations

import logging

from iscsi_ovs.cli.lines import LineLimit


class Log(logging.Handler):
    """What a handler with a limit of three lines a second takes."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.addFilter(LineLimit(3))
        self.logger = logging.Logger("tests.lines")
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def say(self, second: int, line: int, words: str) -> None:
        record = logging.LogRecord("tests.lines", logging.INFO, __file__, line, words, (), None)
        record.created = second + 0.5
        self.handle(record)


def test_lines_of_one_kind_are_limited() -> None:
    """Three of them in a second, and how many more there were, whatever they say; others go on."""
    log = Log()
    for number in range(10):
        log.say(1000, 7, f"wrong {number}")
    log.say(1000, 8, "something else")
    assert log.lines == ["wrong 0", "wrong 1", "wrong 2", "something else"]
    root = logging.getLogger("tests.lines")
    root.addHandler(log)
    try:
        log.say(1001, 7, "wrong again")
    finally:
        root.removeHandler(log)
    assert log.lines[4:] == ["7 more lines like those before were left out", "wrong again"]
