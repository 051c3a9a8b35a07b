"""``iscsi-ovs volume export|import``: volumes as image files."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import click

from iscsi_ovs.cli import shared

format_option = click.option(
    "--format", "image_format", type=click.Choice(["raw", "qcow2"]), help="Of the image; else its name or header says."
)


def export_file(name: str, path: Path, image_format: str | None, is_sure: bool, state_dir: Path | None) -> None:
    """``volume export VOLUME FILE``."""
    from iscsi_ovs.images import exporting, files

    image_format = image_format or exporting.format_of(path)
    is_sure = is_sure or _may_replace(path)
    files.check_destination(path, may_replace=is_sure)
    with shared.context(state_dir) as context, _interruptible(), context.open(name, os.O_RDONLY) as volume:
        held = volume.device.info.held
        if held is not None:
            shared.complain(f"{name} is in use by {held}: what is exported is of no one moment; a snapshot is")
        with _progress(volume.size, f"exporting {name}") as progress:
            exporting.export(context, volume, path, image_format, progress, may_replace=is_sure)


def _may_replace(path: Path) -> bool:
    if sys.stdin.isatty() and path.is_file():
        return click.confirm(f"Replace {path}?", abort=True, err=True)
    return False


@click.command("import")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.argument("name")
@format_option
@shared.state_dir_option
def volume_import(path: Path, name: str, image_format: str | None, state_dir: Path | None) -> None:
    """Create the volume NAME from the image FILE (raw or qcow2)."""
    from iscsi_ovs.images import importing

    with (
        importing.opened(path, image_format) as image,
        shared.context(state_dir) as context,
        _interruptible(),
        _progress(image.reader.size_bytes, f"importing {path.name}") as progress,
    ):
        importing.import_image(context, image, name, progress)


@contextlib.contextmanager
def _progress(size_bytes: int, label: str) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    with click.progressbar(length=size_bytes, label=label, file=sys.stderr) as bar:
        yield bar.update


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end what is inside as Ctrl-C does: what is half made is removed."""

    def end(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
