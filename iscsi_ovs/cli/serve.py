"""``iscsi-ovs serve``: the volume server and the target, as two processes that are kept alive."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from iscsi_ovs import config, paths
from iscsi_ovs.cli import portals, shared
from iscsi_ovs.errors import ConfigurationError
from shm_server.abi import names

if TYPE_CHECKING:
    from iscsi_ovs.net.portal import Address

DEFAULT_VOLUME = ("demo", 10 << 30)
_SOCKET_PATH_BYTES_MAX = 107  # sockaddr_un.sun_path, less its zero


@click.command()
@shared.state_dir_option
@shared.config_option
@click.option("--portal", metavar="HOST:PORT", help=f"Listen here.  [default: {portals.DEFAULT_PORTAL}]")
@click.option("--advertise", metavar="HOST:PORT", help="Tell initiators this address instead (NAT, containers).")
@click.option(
    "--volume",
    "volumes",
    multiple=True,
    metavar="NAME=SIZE|NAME@SNAPSHOT",
    help="Create this volume if it is missing; serve this snapshot, too, read-only.",
)
@shared.open_option
def serve(
    state_dir: Path | None,
    config_file: Path | None,
    portal: str | None,
    advertise: str | None,
    volumes: Sequence[str],
    is_open: bool,
) -> int:
    """Run the volume server and the target, and keep both alive.

    Without --config each volume is a target of its own, and each snapshot that is named. With it SIGHUP, or
    "iscsi-ovs reload", reads the file again.
    """
    from iscsi_ovs.supervisor import Child, python_module, supervise

    wanted, snapshots = _parse_volumes(volumes)
    if snapshots and config_file is not None:
        raise ConfigurationError("with --config snapshots that are served stand in the file")
    addresses = portals.portals_of(config_file, [portal] if portal else [], advertise, is_open)
    shared.keep_standard_streams()
    shared.log_to_stderr("serve")
    state = paths.state_dir(state_dir).absolute()
    socket_path = paths.socket_path(state_dir).absolute()
    if (length := len(os.fsencode(socket_path))) > _SOCKET_PATH_BYTES_MAX:
        raise ConfigurationError(
            f"{socket_path} has {length} bytes, and the path of a Unix socket at most {_SOCKET_PATH_BYTES_MAX}: "
            "choose a shorter --state-dir"
        )
    config.make_private_directory(state)
    config.make_private_directory(socket_path.parent)
    pool_file = state / "vpool.json"
    if config.write_first_pool(pool_file):
        click.echo(f"wrote {pool_file}: fs_enable_shm_interface is on", err=True)
    target_options = ["--socket", str(socket_path), *(["--open"] if is_open else [])]
    descriptors: list[int] = []
    if config_file is not None:  # its portals come and go: the target opens them itself
        target_options += ["--config", str(config_file.absolute())]
    else:
        real, descriptor = _listen(addresses[0])
        descriptors.append(descriptor)
        target_options += ["--listen-fd", str(descriptor), "--portal", str(real)]
        target_options += [f"--snapshot={name}" for name in snapshots]
        if advertise is not None:
            target_options += ["--advertise", advertise]
        addresses = [portals.parse_advertised(advertise) or real]
    target_process = Child("target", python_module("iscsi_ovs", "target", *target_options), descriptors)
    target_process.takes_hang_up = config_file is not None
    children = [
        Child("volume server", python_module("shm_server", "--config", str(pool_file), "--socket", str(socket_path))),
        target_process,
    ]

    def between(number: int) -> None:
        if number == 0:
            _create_missing(socket_path, wanted, is_first=config_file is None)
        else:
            _print_logins(addresses)

    return supervise(children, between)


def _listen(address: Address) -> tuple[Address, int]:
    """A portal that outlives the target's process: a new one answers at the same address."""
    from iscsi_ovs.net import portal

    listener = portal.listen(address)
    return portal.Address(address.host, listener.getsockname()[1]), listener.detach()


def _parse_volumes(options: Sequence[str]) -> tuple[list[tuple[str, int]], list[str]]:
    """Volumes to be made, with their sizes, and snapshots to be served."""
    snapshots = [config.parse_snapshot_option(text) for text in options if names.is_snapshot(text)]
    wanted = [config.parse_volume_option(text) for text in options if not names.is_snapshot(text)]
    named = [*snapshots, *(name for name, _ in wanted)]
    for name in named:
        if named.count(name) > 1:
            raise ConfigurationError(f"--volume {name} stands there twice")
    return wanted, snapshots


def _create_missing(socket_path: Path, wanted: list[tuple[str, int]], *, is_first: bool) -> None:
    from iscsi_ovs.shm_client import Context

    with Context(socket_path, words=f"iscsi-ovs serve pid {os.getpid()}") as context:
        present = {volume.name: volume for volume in context.list_volumes()}
        for name, size in wanted or ([DEFAULT_VOLUME] if is_first and not present else []):
            volume = present.get(name)
            if volume is None:
                context.create_volume(name, size)
                click.echo(f"created volume {name}, {config.format_size(size)}, thin", err=True)
            elif volume.size_bytes < size:
                click.echo(
                    f"volume {name} is there with {config.format_size(volume.size_bytes)}; "
                    f"to grow it: iscsi-ovs volume resize {name} {config.format_size(size)}",
                    err=True,
                )


def _print_logins(addresses: Sequence[Address]) -> None:
    shared.say("to log in from Linux:")
    for where in addresses:
        shared.say(f"  iscsiadm -m discovery -t sendtargets -p {where}")
        shared.say(f"  iscsiadm -m node -p {where} --login")
