"""What the commands have in common: options, exit codes, the connection to the server, words on the two streams.

What a command prints goes to standard output; logs and errors go to standard error.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iscsi_ovs import paths
from iscsi_ovs.cli.lines import LineLimit

if TYPE_CHECKING:
    from iscsi_ovs.shm_client import Context, HandleStat

EXIT_FAILED, EXIT_USAGE, EXIT_NOT_FOUND, EXIT_BUSY, EXIT_UNREACHABLE = 1, 2, 3, 4, 5
ANSWER_LIMIT_S = 30.0  # for a server that is there, and does not answer

state_dir_option = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep volumes, configuration and sockets under DIR.",
)
config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Serve what this config.toml says (docs/CONFIG.md).",
)
open_option = click.option(
    "--open", "is_open", is_flag=True, help="Let portals beyond loopback be without CHAP and ACL."
)
yes_option = click.option("--yes", "is_sure", is_flag=True, help="Don't ask.")
output_option = click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", help="How to print."
)


def complain(message: str) -> None:
    click.echo(f"iscsi-ovs: {message}", err=True)


def say(message: str) -> None:
    """A line on standard output, from a process that goes on whether or not somebody still reads there."""
    try:
        click.echo(message)
    except OSError:
        drop_output()


def drop_output() -> None:
    """Nobody reads standard output any more: what is still buffered, and what comes, goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def keep_standard_streams() -> None:
    """Where 0, 1 or 2 is closed the next socket would become our output, and our children's."""
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor <= 2:
        os.set_inheritable(descriptor, True)
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)


def log_to_stderr(name: str) -> None:
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s {name} %(levelname)s %(name)s: %(message)s"
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(LineLimit())


def context(state_dir: Path | None) -> AbstractContextManager[Context]:
    """A management connection to the running server; exit 5 where there is none."""
    return context_at(paths.socket_path(state_dir))


@contextmanager
def context_at(path: Path) -> Iterator[Context]:
    from iscsi_ovs.shm_client import Context

    try:
        context = Context(path, words=f"iscsi-ovs pid {os.getpid()}", answer_limit_s=ANSWER_LIMIT_S)
    except TimeoutError as error:
        complain(f"at {path}: {error.strerror}")
        sys.exit(EXIT_UNREACHABLE)
    except OSError as error:
        where = "" if str(path) in str(error.strerror) else f"at {path}: "
        complain(f"{where}{error.strerror}; start one with: iscsi-ovs serve")
        sys.exit(EXIT_UNREACHABLE)
    with context:
        try:
            yield context
        except ConnectionError as error:
            complain(f"the volume server at {path} went away: {error.strerror}")
            sys.exit(EXIT_UNREACHABLE)
        except TimeoutError as error:
            complain(f"at {path}: {error.strerror}")
            sys.exit(EXIT_UNREACHABLE)


def make_sure(question: str, is_sure: bool) -> None:
    """Before something is destroyed; only a terminal is asked."""
    if not is_sure and sys.stdin.isatty():
        click.confirm(question, abort=True, err=True)


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """How far something long has come (done, of how much), as a bar on a terminal and as nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    with click.progressbar(length=1000, label=label, file=sys.stderr) as bar:

        def tell(done: int, total: int) -> None:
            permille = min(1000, done * 1000 // total) if total else 1000
            bar.update(permille - bar.pos)

        yield tell


def print_columns(lines: Sequence[tuple[str, ...]]) -> None:
    *widths, _ = (max(map(len, column)) for column in zip(*lines, strict=True))
    for line in lines:
        click.echo("  ".join([*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[-1]]))


def print_handles(handles: Sequence[HandleStat]) -> None:
    """Who has a volume or a snapshot open."""
    for handle in handles:
        click.echo(
            f"handle {handle.handle}: {handle.words}, {handle.access}, "
            f"read {handle.read_bytes} bytes, written {handle.written_bytes} bytes"
        )


def print_json(found: Any) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
