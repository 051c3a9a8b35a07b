"""``iscsi-ovs snapshot``: snapshots of volumes of a running server."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iscsi_ovs import config
from iscsi_ovs.cli import shared

if TYPE_CHECKING:
    from iscsi_ovs.shm_client import SnapshotStat


@click.group()
def snapshot() -> None:
    """Keep what volumes of a running server are, go back to it, and forget it."""


snapshot_argument = click.argument("name", metavar="SNAPSHOT")
volume_argument = click.argument("volume_name", metavar="VOLUME")


def _snapshot_row(found: SnapshotStat) -> dict[str, Any]:
    created = datetime.fromtimestamp(found.created_s, UTC).isoformat(timespec="seconds")
    return {"name": found.name, "size_bytes": found.size_bytes, "created": created}


@snapshot.command("create")
@volume_argument
@snapshot_argument
@shared.state_dir_option
def snapshot_create(volume_name: str, name: str, state_dir: Path | None) -> None:
    """Keep what VOLUME is now, as SNAPSHOT. Whoever uses the volume goes on."""
    with shared.context(state_dir) as context:
        context.create_snapshot(volume_name, name)


@snapshot.command("list")
@volume_argument
@shared.output_option
@shared.state_dir_option
def snapshot_list(volume_name: str, output: str, state_dir: Path | None) -> None:
    """Every snapshot of VOLUME."""

    with shared.context(state_dir) as context:
        rows = [_snapshot_row(found) for found in context.list_snapshots(volume_name)]
    if output == "json":
        shared.print_json(rows)
        return
    lines = [("NAME", "SIZE", "CREATED")]
    lines += [(row["name"], config.format_size(row["size_bytes"]), row["created"]) for row in rows]
    shared.print_columns(lines)


@snapshot.command("show")
@volume_argument
@snapshot_argument
@shared.output_option
@shared.state_dir_option
def snapshot_show(volume_name: str, name: str, output: str, state_dir: Path | None) -> None:
    """SNAPSHOT of VOLUME."""

    with shared.context(state_dir) as context:
        row = _snapshot_row(context.stat_snapshot(volume_name, name))
    if output == "json":
        shared.print_json(row)
        return
    for key, value in row.items():
        click.echo(f"{key}: {value}")


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
@shared.yes_option
@shared.state_dir_option
def snapshot_rollback(volume_name: str, name: str, is_sure: bool, state_dir: Path | None) -> None:
    """Make VOLUME again what it was at SNAPSHOT. What was written since, and later snapshots, are lost.

    Nobody may have the volume open.
    """
    shared.make_sure(
        f"Lose what was written to volume {volume_name} since snapshot {name}, and later snapshots?", is_sure
    )
    with shared.context(state_dir) as context:
        context.rollback_snapshot(volume_name, name)
