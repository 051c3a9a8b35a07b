"""``iscsi-ovs volume export|import``: volumes as image files."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
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


@dataclass(frozen=True, slots=True)
class Backing:
    """What a difference is to name as what it stands on, as it was said."""

    name: str | None
    image_format: str | None


def export_difference(
    name: str, since: str, path: Path, backing: Backing, is_sure: bool, state_dir: Path | None
) -> None:
    """``volume export VOLUME@SNAPSHOT FILE --since SNAPSHOT``."""
    from iscsi_ovs.images import exporting, files, qcow2
    from shm_server.abi import names

    if not names.is_snapshot(name):
        raise click.UsageError(f"--since is for two snapshots: {name}@SNAPSHOT --since {since}")
    base_name = names.join(names.split(name)[0], since)
    if backing.name is None:
        # Whoever opens the difference alone is to hear that something is missing, and not to read zeros there.
        stands_on = qcow2.Backing(f"./{base_name}.qcow2", backing.image_format or "qcow2")
    else:
        stands_on = exporting.backing_of(path, backing.name, backing.image_format)
    is_sure = is_sure or _may_replace(path)
    files.check_destination(path, may_replace=is_sure)
    with (
        shared.context(state_dir) as context,
        _interruptible(),
        context.open(base_name, os.O_RDONLY) as base,
        context.open(name, os.O_RDONLY) as snapshot,
        _progress(snapshot.size, f"exporting {name} since {since}") as progress,
    ):
        exporting.export_difference(context, snapshot, base, path, stands_on, progress, may_replace=is_sure)


def _may_replace(path: Path) -> bool:
    if sys.stdin.isatty() and path.is_file():
        return click.confirm(f"Replace {path}?", abort=True, err=True)
    return False


@click.command("import")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.argument("name", metavar="[NAME]", required=False)
@format_option
@click.option("--with-snapshot", is_flag=True, help="Keep the snapshot that FILE is of, for differences to come.")
@click.option("--onto", metavar="VOLUME", help="FILE is a difference: make VOLUME what it leads to.")
@click.option("--force", is_flag=True, help="With --onto: whatever VOLUME is.")
@shared.state_dir_option
def volume_import(
    path: Path,
    name: str | None,
    image_format: str | None,
    with_snapshot: bool,
    onto: str | None,
    force: bool,
    state_dir: Path | None,
) -> None:
    """Create the volume NAME from the image FILE (raw or qcow2), or bring a difference onto a volume.

    A difference (volume export --since) fits on a volume that is the snapshot it stands on, and was not written since:
    a clone of that, or what an import --with-snapshot made elsewhere. The volume then has the later snapshot, too.
    """
    if (name is None) is (onto is None):
        raise click.UsageError("one of NAME and --onto VOLUME")
    if (force and onto is None) or (with_snapshot and name is None):
        raise click.UsageError("--force is for --onto, --with-snapshot for a new volume")
    from iscsi_ovs.images import applying, importing

    with (
        importing.opened(path, image_format) as image,
        shared.context(state_dir) as context,
        _interruptible(),
        _progress(image.reader.size_bytes, f"importing {path.name}") as progress,
    ):
        if onto is not None:
            applying.apply(context, image, onto, progress, force=force)
        elif name is not None:
            keep = partial(applying.keep, context, name) if with_snapshot else None
            importing.import_image(context, image, name, progress, keep)


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
