"""``iscsi-ovs volume``: volumes of a running server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iscsi_ovs import config
from iscsi_ovs.cli import images, shared

if TYPE_CHECKING:
    from iscsi_ovs.shm_client import Problem, VolumeStat

PAGE_BYTES = 4096  # of a layer (docs/ON-DISK.md)


@click.group()
def volume() -> None:
    """Create, list, grow and remove volumes of a running server."""


def _row(found: VolumeStat) -> dict[str, Any]:
    return {
        "name": found.name,
        "size_bytes": found.size_bytes,
        "allocated_bytes": found.allocated_bytes,
        "footprint_bytes": found.footprint_bytes,
        "uuid": found.uuid,
        "held": found.held,
        "failed": found.failed,
        "is_template": found.is_template,
        "promotion_percent": _percent(found.promotion),
        "sanitize_percent": _percent(found.sanitize),
        "under_way": found.under_way,
    }


def _percent(share: int | None) -> float | None:
    """Of the server's 65536ths; None: nothing runs."""
    return None if share is None else round(share * 100 / 65536, 1)


def _print(rows: list[dict[str, Any]], output: str) -> None:
    if output == "json":
        shared.print_json(rows)
        return
    lines = [("NAME", "SIZE", "STORED", "FOOTPRINT", "UUID", "STATE", "HELD BY")]
    for row in rows:
        lines.append(
            (
                row["name"],
                config.format_size(row["size_bytes"]),
                config.format_size(row["allocated_bytes"]),
                config.format_size(row["footprint_bytes"]),
                row["uuid"],
                _state(row),
                row["held"] or "-",
            )
        )
    shared.print_columns(lines)


def _state(row: dict[str, Any]) -> str:
    """What it is beside a volume, and what is under way on it."""
    words = [word for word, holds in (("failed", row["failed"]), ("template", row["is_template"])) if holds]
    for word, percent in (("promoting", row["promotion_percent"]), ("sanitizing", row["sanitize_percent"])):
        if percent is not None:
            words.append(f"{word} {percent:.0f}%")
    words += row["under_way"]
    return ", ".join(words) or "-"


@volume.command("create")
@click.argument("name")
@click.argument("size")
@shared.state_dir_option
def volume_create(name: str, size: str, state_dir: Path | None) -> None:
    """Create the thin volume NAME of SIZE (10G, 512M, bytes)."""
    size_bytes = config.parse_size(size)
    with shared.context(state_dir) as context:
        context.create_volume(name, size_bytes)


@volume.command("list")
@shared.output_option
@shared.state_dir_option
def volume_list(output: str, state_dir: Path | None) -> None:
    """Every volume."""
    with shared.context(state_dir) as context:
        rows = [_row(found) for found in context.list_volumes()]
    _print(rows, output)


@volume.command("show")
@click.argument("name")
@shared.output_option
@shared.state_dir_option
def volume_show(name: str, output: str, state_dir: Path | None) -> None:
    """The volume NAME, and who has it open."""
    with shared.context(state_dir) as context:
        row = _row(context.stat_volume(name))
        handles = [handle for handle in context.list_handles() if handle.volume == name]
    if output == "json":
        shared.print_json(row | {"handles": handles})
        return
    row["under_way"] = ", ".join(row["under_way"]) or None
    for key, value in row.items():
        click.echo(f"{key}: {'-' if value is None else value}")
    shared.print_handles(handles)


@volume.command("rename")
@click.argument("name")
@click.argument("new")
@shared.state_dir_option
def volume_rename(name: str, new: str, state_dir: Path | None) -> None:
    """Call the volume NAME henceforth NEW. Nobody may have it open to write."""
    with shared.context(state_dir) as context:
        context.rename(name, new)


@volume.command("resize")
@click.argument("name")
@click.argument("size")
@shared.state_dir_option
def volume_resize(name: str, size: str, state_dir: Path | None) -> None:
    """Grow the volume NAME to SIZE; initiators that have it learn of it."""
    size_bytes = config.parse_size(size)
    with shared.context(state_dir) as context:
        context.truncate_volume(name, size_bytes)


@volume.command("export")
@click.argument("name", metavar="VOLUME[@SNAPSHOT]")
@click.argument("file", metavar="[FILE]", required=False, type=click.Path(path_type=Path))
@images.format_option
@click.option("--since", metavar="SNAPSHOT", help="Only what is otherwise than in this earlier snapshot, as qcow2.")
@click.option("--backing", metavar="FILE", help="With --since: the image of that snapshot, which FILE shall stand on.")
@click.option("--backing-format", type=click.Choice(["raw", "qcow2"]), help="Of that; else its header says.")
@click.option("--yes", "is_sure", is_flag=True, help="Replace FILE.")
@click.option(
    "--vhost-user",
    "path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Listen on this Unix socket for a virtual machine (vhost-user-blk).",
)
@click.option("--read-only", is_flag=True, help="Let the machine read only; others may write meanwhile.")
@shared.state_dir_option
def volume_export(
    name: str,
    file: Path | None,
    image_format: str | None,
    since: str | None,
    backing: str | None,
    backing_format: str | None,
    is_sure: bool,
    path: Path | None,
    read_only: bool,
    state_dir: Path | None,
) -> None:
    """Write a volume or snapshot to the image FILE, or serve it to a virtual machine as its disk.

    FILE is raw or qcow2, by its name or --format; holes stay holes. It has its name only when it is whole. With
    --since it is a difference: qemu-img reads it over the image of the earlier snapshot, "volume import --onto"
    brings it onto a volume that is that.

    With --vhost-user it returns once the socket listens, and prints how to start the machine. That export holds the
    volume, and ends with "unexport" or with the volume server; one that shall always be there stands in vpool.json.
    """
    if (file is None) is (path is None):
        raise click.UsageError("one of FILE and --vhost-user")
    if read_only and path is None:
        raise click.UsageError("--read-only is for --vhost-user")
    if since is None and (backing is not None or backing_format is not None):
        raise click.UsageError("--backing is for --since")
    if since is not None and (file is None or image_format == "raw" or file.suffix in (".raw", ".img")):
        raise click.UsageError("--since is for a qcow2 FILE")
    if path is not None:
        _serve_to_machine(name, path, read_only, state_dir)
    elif file is not None and since is not None:
        images.export_difference(name, since, file, images.Backing(backing, backing_format), is_sure, state_dir)
    elif file is not None:
        images.export_file(name, file, image_format, is_sure, state_dir)


def _serve_to_machine(name: str, path: Path, read_only: bool, state_dir: Path | None) -> None:
    from iscsi_ovs.machines import explain

    with shared.context(state_dir) as context:
        context.export_volume(name, path.absolute(), read_only=read_only)
    click.echo(explain(name, str(path.absolute())))


volume.add_command(images.volume_import)


@volume.command("unexport")
@click.argument("name")
@shared.state_dir_option
def volume_unexport(name: str, state_dir: Path | None) -> None:
    """End what "export" began; a machine that runs on it loses its disk."""
    with shared.context(state_dir) as context:
        context.unexport_volume(name)


@volume.command("remove")
@click.argument("name")
@click.option("--force", is_flag=True, help="Log out whoever has it.")
@shared.yes_option
@shared.state_dir_option
def volume_remove(name: str, force: bool, is_sure: bool, state_dir: Path | None) -> None:
    """Remove the volume NAME, all that is on it, and its snapshots."""
    shared.make_sure(f"Remove volume {name}, all that is on it, and its snapshots?", is_sure)
    with shared.context(state_dir) as context:
        context.remove_volume(name, force=force)


@volume.command("clone")
@click.argument("name")
@click.argument("names", nargs=-1, required=True, metavar="[SNAPSHOT] NEW")
@shared.state_dir_option
def volume_clone(name: str, names: tuple[str, ...], state_dir: Path | None) -> None:
    """Create the volume NEW as SNAPSHOT of the volume NAME is, or as the template NAME is; they share their space."""
    if len(names) > 2:
        raise click.UsageError("give a volume's name, the name of a snapshot or none, and the new volume's name")
    with shared.context(state_dir) as context:
        context.clone_volume(name, names[0] if len(names) == 2 else None, names[-1])


@volume.command("promote")
@click.argument("name")
@click.option("--cancel", is_flag=True, help="Let the volume stay a clone, and give back what was copied.")
@shared.state_dir_option
def volume_promote(name: str, cancel: bool, state_dir: Path | None) -> None:
    """Copy what the clone NAME has of others, so that what it was made of can be removed. Whoever uses it goes on.

    Waits until it is done. Interrupted, or over a restart of the server, it goes on in the background; the same command
    waits for it again.
    """
    with shared.context(state_dir) as context:
        if cancel:
            context.promote_volume(name, cancel=True)
            return
        try:
            with shared.progress(f"promoting {name}") as on_progress:
                context.promote_volume(name, on_progress=on_progress)
        except KeyboardInterrupt:
            shared.complain(f"the promotion of {name} goes on; to end it: iscsi-ovs volume promote {name} --cancel")
            raise


@volume.command("template")
@click.argument("name")
@shared.yes_option
@shared.state_dir_option
def volume_template(name: str, is_sure: bool, state_dir: Path | None) -> None:
    """Make the volume NAME a template: what it is now it is for ever, to be read and to be cloned.

    Nobody may have it open. Its snapshots go.
    """
    shared.make_sure(f"Volume {name} can't be written any more, and its snapshots go. Make it a template?", is_sure)
    with shared.context(state_dir) as context:
        context.set_volume_as_template(name)


@volume.command("check")
@click.argument("name")
@click.option(
    "--renew", is_flag=True, help="Make damaged checksums anew, from the data as they are: nobody can vouch for them."
)
@shared.output_option
@shared.state_dir_option
def volume_check(name: str, renew: bool, output: str, state_dir: Path | None) -> int:
    """Read all that the snapshots of the volume NAME stand on, and hold it against its checksums.

    Pages that are not what they were are named, and who sees them; then the exit code is 1. What is being written has
    no checksums: a snapshot gives it some. I/O goes on meanwhile.
    """
    with shared.context(state_dir) as context, shared.progress(f"checking {name}") as on_progress:
        found = context.check_volume(name, renew=renew, on_progress=on_progress)
    if output == "json":
        names = ("layers", "pages", "problems", "told")
        shared.print_json({name: getattr(found, name) for name in names})
        return shared.EXIT_FAILED if found.problems else 0
    for problem in found.told:
        click.echo(_say(problem))
    if found.problems > len(found.told):
        click.echo(f"and {found.problems - len(found.told)} more")
    if not found.layers:
        click.echo(f"{name} has no snapshots and is no clone: there is nothing that checksums were made of")
        return 0
    checked = f"{_count(found.layers, 'layer')}, {_count(found.pages, 'page')}"
    click.echo(f"{checked}, {_count(found.problems, 'problem') if found.problems else 'no problems'}")
    return shared.EXIT_FAILED if found.problems else 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _say(problem: Problem) -> str:
    where = f"layer {problem.layer}, {problem.file}"
    if problem.kind == "damaged header":
        return f"damaged checksums: the header of {problem.layer}.sums, for {where}"
    if problem.kind == "damaged block":
        return f"damaged checksums: block {problem.page} of {problem.layer}.sums, for {where}"
    seen = ", ".join(problem.seen_by) or "nobody"
    if problem.kind == "damaged map":
        return f"damaged map: {problem.layer}.map, for {where}; these can't be read: {seen}"
    pages = f"page {problem.page}" if problem.pages == 1 else f"{problem.pages} pages from {problem.page}"
    return f"{problem.kind}: {where}: {pages}, offset {problem.page * PAGE_BYTES}; seen by {seen}"
