"""``iscsi-ovs``: run the target, look after volumes. Words for an operator, and exit codes for a script.

    0 done · 1 failed · 2 usage · 3 not found · 4 exists, or busy · 5 no volume server · 6 serve gave up restarting

What a command prints goes to standard output; logs and errors go to standard error. What needs much to import is
imported by the command that needs it.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iscsi_ovs import config, paths
from iscsi_ovs.errors import ConfigurationError, Error

if TYPE_CHECKING:
    from iscsi_ovs.net.portal import Address
    from iscsi_ovs.shm_client import Context, VolumeStat
    from iscsi_ovs.targets.nodes import Node

EXIT_FAILED, EXIT_USAGE, EXIT_NOT_FOUND, EXIT_BUSY, EXIT_UNREACHABLE = 1, 2, 3, 4, 5
DEFAULT_PORTAL = "127.0.0.1:3260"
DEFAULT_VOLUME = ("demo", 10 << 30)
# What the target asks of the server: more than one client may have, so it gets its whole share.
_SEGMENT_WISH_BYTES = 1 << 40
_SOCKET_PATH_BYTES_MAX = 107  # sockaddr_un.sun_path, less its zero

_EXIT_OF_ERRNO = {errno.ENOENT: EXIT_NOT_FOUND, errno.EEXIST: EXIT_BUSY, errno.EBUSY: EXIT_BUSY}

state_dir_option = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep volumes, configuration and sockets under DIR.",
)
output_option = click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", help="How to print."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="iscsi-ovs")
def cli() -> None:
    """An iSCSI target in user space, on a volume server behind shared memory."""


def main() -> None:
    """The console script."""
    try:
        sys.exit(cli.main(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(EXIT_FAILED)
    except ConfigurationError as error:
        _complain(str(error))
        sys.exit(EXIT_USAGE)
    except Error as error:
        _complain(str(error))
        sys.exit(EXIT_FAILED)
    except BrokenPipeError:  # whoever read our output has enough
        _drop_output()
        sys.exit(EXIT_FAILED)
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        _complain(f"{where}{error.strerror or error}")
        sys.exit(_EXIT_OF_ERRNO.get(error.errno or 0, EXIT_FAILED))


def _complain(message: str) -> None:
    click.echo(f"iscsi-ovs: {message}", err=True)


def _say(message: str) -> None:
    """A line on standard output, from a process that goes on whether or not somebody still reads there."""
    try:
        click.echo(message)
    except OSError:
        _drop_output()


def _drop_output() -> None:
    """Nobody reads standard output any more: what is still buffered, and what comes, goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _keep_standard_streams() -> None:
    """Where 0, 1 or 2 is closed the next socket would become our output, and our children's."""
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor <= 2:
        os.set_inheritable(descriptor, True)
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)


def _log_to_stderr(name: str) -> None:
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s {name} %(levelname)s %(name)s: %(message)s"
    )


# serve -------------------------------------------------------------------------------------------------------------


@cli.command()
@state_dir_option
@click.option("--portal", default=DEFAULT_PORTAL, metavar="HOST:PORT", help="Listen here.", show_default=True)
@click.option("--advertise", metavar="HOST:PORT", help="Tell initiators this address instead (NAT, containers).")
@click.option("--volume", "volumes", multiple=True, metavar="NAME=SIZE", help="Create this volume if it is missing.")
def serve(state_dir: Path | None, portal: str, advertise: str | None, volumes: Sequence[str]) -> int:
    """Run the volume server and the target, and keep both alive."""
    from iscsi_ovs.net import portal as portals
    from iscsi_ovs.supervisor import Child, python_module, supervise

    wanted = _parse_volumes(volumes)
    address = portals.parse(portal)
    _parse_advertised(advertise)
    _keep_standard_streams()
    _log_to_stderr("serve")
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
    if config.write_first_pool(pool_file, state / "pool"):
        click.echo(f"wrote {pool_file}: fs_enable_shm_interface is on", err=True)
    listener = portals.listen(address)
    real = portals.Address(address.host, listener.getsockname()[1])
    target_options = ["--socket", str(socket_path), "--listen-fd", str(listener.fileno()), "--portal", str(real)]
    if advertise is not None:
        target_options += ["--advertise", advertise]
    children = [
        Child("volume server", python_module("shm_server", "--config", str(pool_file), "--socket", str(socket_path))),
        Child("target", python_module("iscsi_ovs", "target", *target_options), [listener.fileno()]),
    ]

    def between(number: int) -> None:
        if number == 0:
            _create_missing(socket_path, wanted)
        else:
            _print_logins(real, advertise)

    return supervise(children, between)


def _parse_volumes(options: Sequence[str]) -> list[tuple[str, int]]:
    wanted = [config.parse_volume_option(text) for text in options]
    names = [name for name, _ in wanted]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"--volume {name} stands there twice")
    return wanted


def _parse_advertised(text: str | None) -> Address | None:
    from iscsi_ovs.net import portal as portals

    if text is None:
        return None
    address = portals.parse(text)
    if address.port == 0:
        raise ConfigurationError(f"--advertise {text!r}: an initiator can't connect to port 0")
    return address


def _create_missing(socket_path: Path, wanted: list[tuple[str, int]]) -> None:
    from iscsi_ovs.shm_client import Context

    with Context(socket_path, words=f"iscsi-ovs serve pid {os.getpid()}") as context:
        present = {volume.name: volume for volume in context.list_volumes()}
        for name, size in wanted or ([] if present else [DEFAULT_VOLUME]):
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


def _print_logins(real: Any, advertise: str | None) -> None:
    where = _parse_advertised(advertise) or real
    _say("to log in from Linux:")
    _say(f"  iscsiadm -m discovery -t sendtargets -p {where}")
    _say(f"  iscsiadm -m node -p {where} --login")


# target ------------------------------------------------------------------------------------------------------------


@cli.command()
@state_dir_option
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), help="The volume server's socket.")
@click.option("--portal", "portal_texts", multiple=True, metavar="HOST:PORT", help="Listen here.")
@click.option("--advertise", metavar="HOST:PORT", help="Tell initiators this address instead.")
@click.option("--iqn-prefix", default=None, help="What IQNs begin with.")
@click.option("--instance", default="", help="Goes between the prefix and the volume's name.")
@click.option("--listen-fd", "listen_fds", type=int, multiple=True, hidden=True)
@click.option("--ready-fd", type=int, hidden=True)
def target(
    state_dir: Path | None,
    socket_path: Path | None,
    portal_texts: Sequence[str],
    advertise: str | None,
    iqn_prefix: str | None,
    instance: str,
    listen_fds: Sequence[int],
    ready_fd: int | None,
) -> int:
    """Run a target alone, on a volume server that runs already."""
    from iscsi_ovs import target as targets
    from iscsi_ovs.net import portal as portals
    from iscsi_ovs.shm_client import Service

    _log_to_stderr("target")
    addresses = [portals.parse(text) for text in portal_texts or [DEFAULT_PORTAL]]
    settings = targets.Settings(
        iqn_prefix=iqn_prefix or targets.DEFAULT_IQN_PREFIX,
        instance=instance,
        advertise=_parse_advertised(advertise),
        words=f"iscsi target pid {os.getpid()}",
    )
    service = Service(
        str(socket_path or paths.socket_path(state_dir)), segment_bytes=_SEGMENT_WISH_BYTES, words=settings.words
    )

    def ready(server: targets.TargetServer) -> None:
        if ready_fd is not None:
            os.write(ready_fd, b"ready\n")
            os.close(ready_fd)

    def served(server: targets.TargetServer, node: Node) -> None:
        for lun in sorted(node.router.units):
            _say(f"ready iscsi://{settings.advertise or server.portals[0]}/{node.iqn}/{lun}")

    server = targets.assemble(service, settings, ready, served)
    for number, address in enumerate(addresses):
        server.listen(address, listen_fds[number] if number < len(listen_fds) else None)
    for number in (signal.SIGTERM, signal.SIGINT):
        # The first one asks initiators to log out, a second one does not wait for them.
        signal.signal(number, lambda signum, frame: server.stop() if server.shutdown.is_begun else server.shut_down())
    server.run()
    if server.refusal is not None:
        _complain(server.refusal.strerror or str(server.refusal))
        return EXIT_FAILED
    return 0


# volume ------------------------------------------------------------------------------------------------------------


@cli.group()
def volume() -> None:
    """Create, list, grow and remove volumes of a running server."""


@contextmanager
def _context(state_dir: Path | None) -> Iterator[Context]:
    """A management connection to the running server; exit 5 where there is none."""
    from iscsi_ovs.shm_client import Context

    path = paths.socket_path(state_dir)
    try:
        context = Context(path, words=f"iscsi-ovs pid {os.getpid()}")
    except OSError as error:
        _complain(f"no volume server at {path}: {error.strerror}; start one with: iscsi-ovs serve")
        sys.exit(EXIT_UNREACHABLE)
    with context:
        try:
            yield context
        except ConnectionError as error:
            _complain(f"the volume server at {path} went away: {error.strerror}")
            sys.exit(EXIT_UNREACHABLE)


def _row(found: VolumeStat) -> dict[str, Any]:
    return {
        "name": found.name,
        "size_bytes": found.size_bytes,
        "allocated_bytes": found.allocated_bytes,
        "uuid": found.uuid,
        "held": found.held,
        "failed": found.failed,
    }


def _print(rows: list[dict[str, Any]], output: str) -> None:
    import msgspec

    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
        return
    lines = [("NAME", "SIZE", "ALLOCATED", "UUID", "HELD BY")]
    for row in rows:
        lines.append(
            (
                row["name"],
                config.format_size(row["size_bytes"]),
                config.format_size(row["allocated_bytes"]),
                row["uuid"],
                ("failed; " if row["failed"] else "") + (row["held"] or "-"),
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for line in lines:
        click.echo("  ".join([*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[4]]))


@volume.command("create")
@click.argument("name")
@click.argument("size")
@state_dir_option
def volume_create(name: str, size: str, state_dir: Path | None) -> None:
    """Create the thin volume NAME of SIZE (10G, 512M, bytes)."""
    size_bytes = config.parse_size(size)
    with _context(state_dir) as context:
        context.create_volume(name, size_bytes)


@volume.command("list")
@output_option
@state_dir_option
def volume_list(output: str, state_dir: Path | None) -> None:
    """Every volume."""
    with _context(state_dir) as context:
        rows = [_row(found) for found in context.list_volumes()]
    _print(rows, output)


@volume.command("show")
@click.argument("name")
@output_option
@state_dir_option
def volume_show(name: str, output: str, state_dir: Path | None) -> None:
    """The volume NAME, and who has it open."""
    import msgspec

    with _context(state_dir) as context:
        row = _row(context.stat_volume(name))
        handles = [handle for handle in context.list_handles() if handle.volume == name]
    if output == "json":
        row["handles"] = [msgspec.to_builtins(handle) for handle in handles]
        click.echo(msgspec.json.format(msgspec.json.encode(row), indent=2).decode())
        return
    for key, value in row.items():
        click.echo(f"{key}: {'-' if value is None else value}")
    for handle in handles:
        click.echo(
            f"handle {handle.handle}: {handle.words}, {handle.access}, "
            f"read {handle.read_bytes} bytes, written {handle.written_bytes} bytes"
        )


@volume.command("resize")
@click.argument("name")
@click.argument("size")
@state_dir_option
def volume_resize(name: str, size: str, state_dir: Path | None) -> None:
    """Grow the volume NAME to SIZE; initiators that have it learn of it."""
    size_bytes = config.parse_size(size)
    with _context(state_dir) as context:
        context.truncate_volume(name, size_bytes)


@volume.command("remove")
@click.argument("name")
@click.option("--force", is_flag=True, help="Log out whoever has it.")
@state_dir_option
def volume_remove(name: str, force: bool, state_dir: Path | None) -> None:
    """Remove the volume NAME and all that is on it."""
    with _context(state_dir) as context:
        context.remove_volume(name, force=force)
