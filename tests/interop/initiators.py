"""Real initiators of other projects, each behind one function: libiscsi's tools and qemu's.

Each call is bounded in time and raises `InitiatorError` with everything the program said.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.interop.serving import environment
from tests.tools import require_tool

PACKAGES = {
    "iscsi-ls": "libiscsi-bin",
    "iscsi-inq": "libiscsi-bin",
    "iscsi-perf": "libiscsi-bin",
    "iscsi-swp": "libiscsi-bin",
    "iscsi-readcapacity16": "libiscsi-bin",
    "iscsi-test-cu": "libiscsi-bin",
    "qemu-io": "qemu-utils",
    "qemu-img": "qemu-utils",
}


class InitiatorError(AssertionError):
    """An initiator ended with an error; the message holds its command and its words."""


def command(program: str, *arguments: str) -> list[str]:
    return [require_tool(program, PACKAGES[program]), *arguments]


def run(program: str, *arguments: str, timeout_s: float = 60.0, codes: Sequence[int] = (0,)) -> str:
    """Runs one of the programs and returns what it printed (both streams, in order)."""
    argv = command(program, *arguments)
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=environment(),
            check=False,
        )
    except subprocess.TimeoutExpired as expired:
        said = expired.stdout.decode(errors="replace") if isinstance(expired.stdout, bytes) else expired.stdout
        raise InitiatorError(f"{' '.join(argv)}: not done after {timeout_s:g} s\n{said}") from None
    if done.returncode not in codes:
        raise InitiatorError(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def spawn(program: str, *arguments: str) -> subprocess.Popen[str]:
    """Starts one of the programs and leaves it running; both streams in one pipe."""
    return subprocess.Popen(
        command(program, *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment(),
        start_new_session=True,
    )


def qemu_io(url: str, *commands: str, timeout_s: float = 60.0, read_only: bool = False) -> str:
    """qemu-io's commands, in order, over one session. A pattern that differs or an I/O error fails the call."""
    arguments = ["-f", "raw", "-t", "none"]
    if read_only:
        arguments.append("-r")
    for each in commands:
        arguments += ["-c", each]
    said = run("qemu-io", *arguments, url, timeout_s=timeout_s)
    if "Pattern verification failed" in said or "failed:" in said:  # some versions end with code 0 all the same
        raise InitiatorError(f"qemu-io {' ; '.join(commands)}\n{said}")
    return said


class QemuShell:
    """A qemu-io that stays: one session over which commands go one by one, so that a test knows what was acknowledged.

    `ask` returns when the command is done. `aio_write` and `aio_read` are done at once, and `aio_flush` waits for them.
    """

    PROMPT = "qemu-io> "

    def __init__(self, url: str) -> None:
        self.said = ""
        argv = command("qemu-io", "-f", "raw", "-t", "none", url)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process, in __exit__
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment(),
            start_new_session=True,
        )
        self._await_prompt(30.0)

    def ask(self, line: str, timeout_s: float = 30.0) -> str:
        """Gives one command and returns what qemu-io said to it; an error or a pattern that differs raises."""
        self.send(line)
        return self._await_prompt(timeout_s)

    def send(self, line: str) -> None:
        """Gives one command and waits for nothing."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def is_answered(self, timeout_s: float) -> bool:
        """Whether anything is said within the time."""
        assert self.process.stdout is not None
        return bool(select.select([self.process.stdout], [], [], timeout_s)[0])

    def _await_prompt(self, timeout_s: float) -> str:
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout_s
        said = ""
        while self.PROMPT not in said:  # not at its end: what an aio_read found wrong may follow it
            left = deadline - time.monotonic()
            if left <= 0 or not self.is_answered(left):
                raise InitiatorError(f"qemu-io did not answer within {timeout_s:g} s: {said}\n{self.errors()}")
            chunk = os.read(self.process.stdout.fileno(), 65536)
            if not chunk:
                code = self.process.wait(10)
                raise InitiatorError(f"qemu-io ended with code {code}: {said}\n{self.errors()}")
            said += chunk.decode(errors="replace")
        self.said += said
        if "Pattern verification failed" in said or "failed:" in said:
            raise InitiatorError(f"{said}\n{self.errors()}")
        return said.replace(self.PROMPT, "")

    def errors(self) -> str:
        """The end of what it wrote to its standard error."""
        size = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), 2000, max(0, size - 2000)).decode(errors="replace")

    def quit(self) -> int:
        self.send("quit")
        return self.process.wait(30)

    def kill(self) -> None:
        """kill -9: the host of an initiator is gone."""
        self.process.kill()
        self.process.wait(10)

    def __enter__(self) -> QemuShell:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._errors.close()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass


def upload(image: Path, url: str, timeout_s: float = 60.0) -> None:
    """Writes a file onto the disk behind the URL."""
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-t", "none", str(image), url, timeout_s=timeout_s)


def download(url: str, image: Path, timeout_s: float = 60.0) -> None:
    """Copies the whole disk behind the URL into a file."""
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", "-T", "none", url, str(image), timeout_s=timeout_s)
