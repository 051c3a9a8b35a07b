"""``iscsi-ovs snapshot``: snapshots of volumes of a running server."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from iscsi_ovs import config
from iscsi_ovs.cli import shared
from shm_server.abi import names

if TYPE_CHECKING:
    from iscsi_ovs.shm_client import SnapshotStat


@click.group()
def snapshot() -> None:
    """Keep what volumes of a running server are, go back to it, and forget it."""


snapshot_argument = click.argument("name", metavar="SNAPSHOT")
volume_argument = click.argument("volume_name", metavar="VOLUME")
label_option = click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Words to be kept with it.")
metadata_option = click.option(
    "--metadata", type=click.File("rb"), metavar="FILE", help='Bytes to be kept with it ("-": standard input).'
)
_READ_LIMIT_BYTES = 64 << 10  # more than there can be: the server says so


def _snapshot_row(found: SnapshotStat) -> dict[str, Any]:
    created = datetime.fromtimestamp(found.created_s, UTC).isoformat(timespec="seconds")
    return {
        "name": found.name,
        "size_bytes": found.size_bytes,
        "created": created,
        "uuid": found.uuid,
        "labels": found.labels,
        "metadata": found.metadata,  # Base64 in JSON
    }


def _labels_of(texts: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE of --label."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--label {text!r}: write KEY=VALUE")
        if key in found:
            raise click.UsageError(f"--label {key} stands there twice")
        found[key] = value
    return found


def _words(labels: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items()) or "-"


@snapshot.command("create")
@volume_argument
@snapshot_argument
@label_option
@metadata_option
@shared.state_dir_option
def snapshot_create(
    volume_name: str, name: str, labels: Sequence[str], metadata: BinaryIO | None, state_dir: Path | None
) -> None:
    """Keep what VOLUME is now, as SNAPSHOT. Whoever uses the volume goes on.

    Labels and metadata are kept with it, at most 4096 bytes of them in all.
    """
    kept = _labels_of(labels)
    data = metadata.read(_READ_LIMIT_BYTES) if metadata else b""
    with shared.context(state_dir) as context:
        context.create_snapshot(volume_name, name, labels=kept, metadata=data)


@snapshot.command("label")
@volume_argument
@snapshot_argument
@label_option
@click.option("--remove", "removed", multiple=True, metavar="KEY", help="Take this label away.")
@metadata_option
@shared.state_dir_option
def snapshot_label(
    volume_name: str,
    name: str,
    labels: Sequence[str],
    removed: Sequence[str],
    metadata: BinaryIO | None,
    state_dir: Path | None,
) -> None:
    """Change what is kept with SNAPSHOT of VOLUME: labels one by one, its metadata as a whole."""
    changes: dict[str, str | None] = {**_labels_of(labels)}
    if twice := changes.keys() & set(removed):
        raise click.UsageError(f"label {min(twice)} is both to be there and to be removed")
    changes |= dict.fromkeys(removed)
    data = metadata.read(_READ_LIMIT_BYTES) if metadata else None
    with shared.context(state_dir) as context:
        context.label_snapshot(volume_name, name, changes, metadata=data)


@snapshot.command("list")
@volume_argument
@shared.output_option
@shared.state_dir_option
def snapshot_list(volume_name: str, output: str, state_dir: Path | None) -> None:
    """Every snapshot of VOLUME, the oldest first."""
    with shared.context(state_dir) as context:
        found = sorted(context.list_snapshots(volume_name), key=lambda snapshot: snapshot.created_s)
    rows = [_snapshot_row(snapshot) for snapshot in found]
    if output == "json":
        shared.print_json(rows)
        return
    lines = [("NAME", "SIZE", "CREATED", "LABELS")]
    lines += [
        (row["name"], config.format_size(row["size_bytes"]), row["created"], _words(row["labels"])) for row in rows
    ]
    shared.print_columns(lines)


@snapshot.command("show")
@volume_argument
@snapshot_argument
@shared.output_option
@shared.state_dir_option
def snapshot_show(volume_name: str, name: str, output: str, state_dir: Path | None) -> None:
    """SNAPSHOT of VOLUME, and who has it open."""
    with shared.context(state_dir) as context:
        row = _snapshot_row(context.stat_snapshot(volume_name, name))
        opened_as = names.join(volume_name, name)
        handles = [handle for handle in context.list_handles() if handle.volume == opened_as]
    if output == "json":
        shared.print_json(row | {"handles": handles})
        return
    words = {"labels": _words(row["labels"]), "metadata": f"{len(row['metadata'])} bytes"}
    for key, value in (row | words).items():
        click.echo(f"{key}: {value}")
    shared.print_handles(handles)


@snapshot.command("remove")
@volume_argument
@snapshot_argument
@shared.yes_option
@shared.state_dir_option
def snapshot_remove(volume_name: str, name: str, is_sure: bool, state_dir: Path | None) -> None:
    """Forget SNAPSHOT of VOLUME. Its space comes back in the background; the volume stays what it is."""
    shared.make_sure(f"Forget snapshot {name} of volume {volume_name}?", is_sure)
    with shared.context(state_dir) as context:
        context.remove_snapshot(volume_name, name)


@snapshot.command("rollback")
@volume_argument
@snapshot_argument
@click.option("--force", is_flag=True, help="Log out whoever has it.")
@shared.yes_option
@shared.state_dir_option
def snapshot_rollback(volume_name: str, name: str, force: bool, is_sure: bool, state_dir: Path | None) -> None:
    """Make VOLUME again what it was at SNAPSHOT. What was written since, and later snapshots, are lost.

    Nobody may have the volume open, or with --force: initiators are logged out first, and may come back.
    """
    shared.make_sure(
        f"Lose what was written to volume {volume_name} since snapshot {name}, and later snapshots?", is_sure
    )
    with shared.context(state_dir) as context:
        context.rollback_snapshot(volume_name, name, force=force)
