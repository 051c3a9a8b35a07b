"""``iscsi-ovs mount`` and ``iscsi-ovs unmount``: volumes as files."""

from __future__ import annotations

from pathlib import Path

import click

from iscsi_ovs import paths
from iscsi_ovs.cli import shared


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--foreground", is_flag=True, help="Stay, and serve it in this process.")
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), help="The volume server's socket.")
@shared.state_dir_option
@click.option("--ready-fd", type=int, hidden=True)
def mount(
    directory: Path, foreground: bool, socket_path: Path | None, state_dir: Path | None, ready_fd: int | None
) -> None:
    """Mount the volumes on DIRECTORY: each is a file NAME.raw there (FUSE). Returns when it is mounted.

    "truncate -s 10G" and "qemu-img create -f raw" on a new name create a thin volume; "iscsi-ovs unmount" ends it.
    """
    from iscsi_ovs.interfaces import mounting

    real = mounting.check(directory)
    path = (socket_path or paths.socket_path(state_dir)).absolute()
    if not foreground:
        with shared.context_at(path):
            pass  # exit code 5, and its sentence, without another process
        mounting.mount(real, path)
        return
    shared.log_to_stderr("mount")
    mounting.serve(real, path, ready_fd)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
def unmount(directory: Path) -> None:
    """End a mount of volumes. Exit code 4 while files on it are open."""
    from iscsi_ovs.interfaces import mounting

    mounting.unmount(directory)
