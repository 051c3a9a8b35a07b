"""What a guest's kernel prints: kept in a file, watched for marks while it runs, and looked through for I/O errors."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class GuestError(AssertionError):
    """The guest did not end as it should; the message holds the end of its console."""


@dataclass(frozen=True, slots=True)
class GuestResult:
    """How a script ended, and what it reported."""

    code: int
    values: dict[str, str]
    console: str
    dmesg: str

    def io_errors(self) -> list[str]:
        """The lines of the kernel's log that tell of an I/O error, an aborted journal or a lost device."""
        return [line for line in self.dmesg.splitlines() if IO_ERROR.search(line)]


IO_ERROR = re.compile(
    r"I/O error|critical (medium|target|space) error|EXT4-fs (error|warning)|Aborting journal|"
    r"rejecting I/O to offline device|Device offlined|Remounting filesystem read-only|lost (async |sync )?page write",
    re.IGNORECASE,
)


class Console:
    """The output of a guest's process. ``tail`` is asked for what an error says."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path, tail: Callable[[], str]) -> None:
        self._process = process
        self._path = path
        self._tail = tail
        self._text = ""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._path.open("wb") as log:
            while chunk := os.read(self._process.stdout.fileno(), 65536):
                log.write(chunk)
                log.flush()
                with self._changed:
                    self._text += chunk.decode(errors="replace")
                    self._changed.notify_all()
        self._process.stdout.close()

    def all(self) -> str:
        """Everything, when the process has ended."""
        self._reader.join(10)
        return self._text

    def wait_for(self, mark: str, timeout_s: float, times: int = 1) -> None:
        """Waits until these words have been printed, so many times in all."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._text.count(mark) < times:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise GuestError(f"the guest never said {mark!r}: {self._tail()}")
                self._changed.wait(0.2)

    def wait_for_another(self, mark: str, timeout_s: float) -> None:
        """Waits until these words are printed once more than they have been by now."""
        with self._changed:
            times = self._text.count(mark)
        self.wait_for(mark, timeout_s, times + 1)
