"""``iscsi-ovs``: run the target, look after volumes. Words for an operator, and exit codes for a script.

    0 done · 1 failed · 2 usage · 3 not found · 4 exists, or busy · 5 no volume server · 6 serve gave up restarting

What a command prints goes to standard output; logs and errors go to standard error. What needs much to import is
imported by the command that needs it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from iscsi_ovs import config, paths
from iscsi_ovs.errors import ConfigurationError, Error

logger = logging.getLogger("iscsi_ovs.target")

if TYPE_CHECKING:
    from iscsi_ovs import target as targets
    from iscsi_ovs.net.portal import Address
    from iscsi_ovs.shm_client import Context, SnapshotStat, VolumeStat
    from iscsi_ovs.targets.nodes import Node

EXIT_FAILED, EXIT_USAGE, EXIT_NOT_FOUND, EXIT_BUSY, EXIT_UNREACHABLE = 1, 2, 3, 4, 5
DEFAULT_PORTAL = "127.0.0.1:3260"
DEFAULT_VOLUME = ("demo", 10 << 30)
ANSWER_LIMIT_S = 30.0  # for a server that is there, and does not answer
# What the target asks of the server: more than one client may have, so it gets its whole share.
_SEGMENT_WISH_BYTES = 1 << 40
_OTHER_DESCRIPTORS = 256  # beside those of connections: portals, the volume server, files that are read
_SOCKET_PATH_BYTES_MAX = 107  # sockaddr_un.sun_path, less its zero

_EXIT_OF_ERRNO = {
    errno.ENOENT: EXIT_NOT_FOUND,
    errno.EEXIST: EXIT_BUSY,
    errno.EBUSY: EXIT_BUSY,
    errno.ENOTEMPTY: EXIT_BUSY,  # clones stand on it
}

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
@config_option
@click.option("--portal", metavar="HOST:PORT", help=f"Listen here.  [default: {DEFAULT_PORTAL}]")
@click.option("--advertise", metavar="HOST:PORT", help="Tell initiators this address instead (NAT, containers).")
@click.option("--volume", "volumes", multiple=True, metavar="NAME=SIZE", help="Create this volume if it is missing.")
@open_option
def serve(
    state_dir: Path | None,
    config_file: Path | None,
    portal: str | None,
    advertise: str | None,
    volumes: Sequence[str],
    is_open: bool,
) -> int:
    """Run the volume server and the target, and keep both alive.

    Without --config each volume is a target of its own. With it SIGHUP, or "iscsi-ovs reload", reads the file again.
    """
    from iscsi_ovs.supervisor import Child, python_module, supervise

    wanted = _parse_volumes(volumes)
    portals = _portals_of(config_file, [portal] if portal else [], advertise, is_open)
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
    target_options = ["--socket", str(socket_path), *(["--open"] if is_open else [])]
    descriptors: list[int] = []
    if config_file is not None:  # its portals come and go: the target opens them itself
        target_options += ["--config", str(config_file.absolute())]
    else:
        real, descriptor = _listen(portals[0])
        descriptors.append(descriptor)
        target_options += ["--listen-fd", str(descriptor), "--portal", str(real)]
        if advertise is not None:
            target_options += ["--advertise", advertise]
        portals = [_parse_advertised(advertise) or real]
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
            _print_logins(portals)

    return supervise(children, between)


def _listen(address: Address) -> tuple[Address, int]:
    """A portal that outlives the target's process: a new one answers at the same address."""
    from iscsi_ovs.net import portal as portals

    listener = portals.listen(address)
    return portals.Address(address.host, listener.getsockname()[1]), listener.detach()


def _portals_of(
    config_file: Path | None, options: Sequence[str], advertise: str | None, is_open: bool
) -> list[Address]:
    """Where it will be reached, one portal of each group; what can't be obeyed is refused before anything is begun."""
    from iscsi_ovs.net import portal as portals

    if config_file is not None:
        from iscsi_ovs.config import resolving

        if options or advertise is not None:
            raise ConfigurationError("with --config portals and what is advertised stand in the file")
        groups = resolving.load(config_file, is_open=is_open).groups.values()
        return [group.portals[0].advertise or group.portals[0].listen for group in groups]
    _parse_advertised(advertise)
    addresses = [portals.parse(text) for text in options or [DEFAULT_PORTAL]]
    exposed = [address for address in addresses if not portals.is_loopback(address)]
    if exposed and not is_open:
        raise ConfigurationError(
            f"portal {exposed[0]} is beyond loopback: whoever reaches it may log in to every volume. "
            "Say --open if that is meant, or use --config with CHAP or an ACL"
        )
    return addresses


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


def _print_logins(portals: Sequence[Address]) -> None:
    _say("to log in from Linux:")
    for where in portals:
        _say(f"  iscsiadm -m discovery -t sendtargets -p {where}")
        _say(f"  iscsiadm -m node -p {where} --login")


# target ------------------------------------------------------------------------------------------------------------


@cli.command()
@state_dir_option
@config_option
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), help="The volume server's socket.")
@click.option("--portal", "portal_texts", multiple=True, metavar="HOST:PORT", help="Listen here.")
@click.option("--advertise", metavar="HOST:PORT", help="Tell initiators this address instead.")
@click.option("--iqn-prefix", default=None, help="What IQNs begin with.")
@click.option("--instance", default="", help="Goes between the prefix and the volume's name.")
@open_option
@click.option("--listen-fd", "listen_fds", type=int, multiple=True, hidden=True)
@click.option("--ready-fd", type=int, hidden=True)
def target(
    state_dir: Path | None,
    config_file: Path | None,
    socket_path: Path | None,
    portal_texts: Sequence[str],
    advertise: str | None,
    iqn_prefix: str | None,
    instance: str,
    is_open: bool,
    listen_fds: Sequence[int],
    ready_fd: int | None,
) -> int:
    """Run a target alone, on a volume server that runs already."""
    from iscsi_ovs import target as targets
    from iscsi_ovs.net.portal import is_loopback
    from iscsi_ovs.shm_client import Service

    _log_to_stderr("target")
    _raise_descriptor_limit()
    if config_file is not None and (iqn_prefix or instance):
        raise ConfigurationError("with --config names stand in the file")
    addresses = _portals_of(config_file, portal_texts, advertise, is_open)
    settings = targets.Settings(
        iqn_prefix=iqn_prefix or targets.DEFAULT_IQN_PREFIX,
        instance=instance,
        advertise=_parse_advertised(advertise),
        words=f"iscsi target pid {os.getpid()}",
    )
    socket_path = socket_path or paths.socket_path(state_dir)
    service = Service(str(socket_path), segment_bytes=_SEGMENT_WISH_BYTES, words=settings.words)

    def ready(server: targets.TargetServer) -> None:
        if ready_fd is not None:
            os.write(ready_fd, b"ready\n")
            os.close(ready_fd)

    def served(server: targets.TargetServer, node: Node) -> None:
        for url in server.urls_of(node):
            _say(f"ready {url}")

    server = targets.assemble(service, settings, ready, served)
    with contextlib.ExitStack() as stack:
        if config_file is not None:
            _follow(server, config_file, is_open, paths.target_socket_path(socket_path), stack)
        else:
            for number, address in enumerate(addresses):
                server.listen(address, listen_fds[number] if number < len(listen_fds) else None)
                if is_open and not is_loopback(address):
                    logger.warning("portal %s is open to whoever reaches it", address)
        for number in (signal.SIGTERM, signal.SIGINT):
            # The first one asks initiators to log out, a second one does not wait for them.
            signal.signal(number, partial(_end, server))
        server.run()
    if server.refusal is not None:
        _complain(server.refusal.strerror or str(server.refusal))
        return EXIT_FAILED
    return 0


def _raise_descriptor_limit() -> None:
    """Every connection is a descriptor, and many systems allow a process 1024 where it does not ask for more."""
    from iscsi_ovs.net.driver import MAX_CHANNELS

    wanted = MAX_CHANNELS + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < wanted:
            logger.warning("only %d descriptors are allowed (RLIMIT_NOFILE): so many connections, and no more", allowed)


def _end(server: targets.TargetServer, signum: int, frame: FrameType | None) -> None:
    if server.shutdown.is_begun:
        server.stop()
    else:
        server.shut_down()


def _follow(
    server: targets.TargetServer, config_file: Path, is_open: bool, socket_path: Path, stack: contextlib.ExitStack
) -> None:
    """Serve what a file says, now and whenever SIGHUP or ``iscsi-ovs reload`` asks for it."""
    from iscsi_ovs.config import resolving
    from iscsi_ovs.net.control import ControlSocket
    from iscsi_ovs.targets.reload import Reload

    server.configure(resolving.load(config_file, is_open=is_open))
    reload = Reload(lambda: resolving.load(config_file, is_open=is_open), server.configure)
    signal.signal(signal.SIGHUP, lambda signum, frame: server.call_soon(reload.hung_up))
    try:
        stack.callback(ControlSocket(server.core.driver, socket_path, {"reload": reload.now}).close)
    except OSError as error:
        logger.warning("iscsi-ovs reload will not reach this target, SIGHUP does: %s", error.strerror)


@cli.command()
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), help="The volume server's socket.")
@state_dir_option
def reload(state_dir: Path | None, socket_path: Path | None) -> None:
    """Have the running target read its config.toml again, and say what is different.

    Living sessions go on. What can't be obeyed is refused as a whole, and the target goes on as it was.
    """
    from iscsi_ovs.net import control

    path = paths.target_socket_path(socket_path or paths.socket_path(state_dir))
    try:
        changes = control.ask(path, "reload", ANSWER_LIMIT_S)
    except OSError as error:
        reason = "it does not answer" if isinstance(error, TimeoutError) else error.strerror or error
        _complain(f"no target with --config at {path}: {reason}")
        sys.exit(EXIT_UNREACHABLE)
    for change in changes:
        click.echo(change)


# volume ------------------------------------------------------------------------------------------------------------


@cli.group()
def volume() -> None:
    """Create, list, grow and remove volumes of a running server."""


def _context(state_dir: Path | None) -> AbstractContextManager[Context]:
    """A management connection to the running server; exit 5 where there is none."""
    return _context_at(paths.socket_path(state_dir))


@contextmanager
def _context_at(path: Path) -> Iterator[Context]:
    from iscsi_ovs.shm_client import Context

    try:
        context = Context(path, words=f"iscsi-ovs pid {os.getpid()}", answer_limit_s=ANSWER_LIMIT_S)
    except TimeoutError as error:
        _complain(f"at {path}: {error.strerror}")
        sys.exit(EXIT_UNREACHABLE)
    except OSError as error:
        _complain(f"no volume server at {path}: {error.strerror}; start one with: iscsi-ovs serve")
        sys.exit(EXIT_UNREACHABLE)
    with context:
        try:
            yield context
        except ConnectionError as error:
            _complain(f"the volume server at {path} went away: {error.strerror}")
            sys.exit(EXIT_UNREACHABLE)
        except TimeoutError as error:
            _complain(f"at {path}: {error.strerror}")
            sys.exit(EXIT_UNREACHABLE)


def _make_sure(question: str, is_sure: bool) -> None:
    """Before something is destroyed; only a terminal is asked."""
    if not is_sure and sys.stdin.isatty():
        click.confirm(question, abort=True, err=True)


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
    _print_columns(lines)


def _print_columns(lines: Sequence[tuple[str, ...]]) -> None:
    *widths, _ = (max(map(len, column)) for column in zip(*lines, strict=True))
    for line in lines:
        click.echo("  ".join([*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[-1]]))


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


@volume.command("export")
@click.argument("name")
@click.option(
    "--vhost-user",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Listen on this Unix socket for a virtual machine (vhost-user-blk).",
)
@click.option("--read-only", is_flag=True, help="Let the machine read only; others may write meanwhile.")
@state_dir_option
def volume_export(name: str, path: Path, read_only: bool, state_dir: Path | None) -> None:
    """Serve the volume NAME to a virtual machine as its disk, and print how to start that.

    Returns once the socket listens. The export holds the volume, and ends with "unexport" or with the volume server;
    one that shall always be there stands in vpool.json.
    """
    from iscsi_ovs.machines import explain

    with _context(state_dir) as context:
        context.export_volume(name, path.absolute(), read_only=read_only)
    click.echo(explain(name, str(path.absolute())))


@volume.command("unexport")
@click.argument("name")
@state_dir_option
def volume_unexport(name: str, state_dir: Path | None) -> None:
    """End what "export" began; a machine that runs on it loses its disk."""
    with _context(state_dir) as context:
        context.unexport_volume(name)


@volume.command("remove")
@click.argument("name")
@click.option("--force", is_flag=True, help="Log out whoever has it.")
@state_dir_option
def volume_remove(name: str, force: bool, state_dir: Path | None) -> None:
    """Remove the volume NAME and all that is on it."""
    with _context(state_dir) as context:
        context.remove_volume(name, force=force)


@volume.command("clone")
@click.argument("name")
@click.argument("snapshot_name", metavar="SNAPSHOT")
@click.argument("new")
@state_dir_option
def volume_clone(name: str, snapshot_name: str, new: str, state_dir: Path | None) -> None:
    """Create the volume NEW as SNAPSHOT of the volume NAME is; they share their space."""
    with _context(state_dir) as context:
        context.clone_volume(name, snapshot_name, new)


# snapshot ----------------------------------------------------------------------------------------------------------


@cli.group()
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
@state_dir_option
def snapshot_create(volume_name: str, name: str, state_dir: Path | None) -> None:
    """Keep what VOLUME is now, as SNAPSHOT. Whoever uses the volume goes on."""
    with _context(state_dir) as context:
        context.create_snapshot(volume_name, name)


@snapshot.command("list")
@volume_argument
@output_option
@state_dir_option
def snapshot_list(volume_name: str, output: str, state_dir: Path | None) -> None:
    """Every snapshot of VOLUME."""
    import msgspec

    with _context(state_dir) as context:
        rows = [_snapshot_row(found) for found in context.list_snapshots(volume_name)]
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
        return
    lines = [("NAME", "SIZE", "CREATED")]
    lines += [(row["name"], config.format_size(row["size_bytes"]), row["created"]) for row in rows]
    _print_columns(lines)


@snapshot.command("show")
@volume_argument
@snapshot_argument
@output_option
@state_dir_option
def snapshot_show(volume_name: str, name: str, output: str, state_dir: Path | None) -> None:
    """SNAPSHOT of VOLUME."""
    import msgspec

    with _context(state_dir) as context:
        row = _snapshot_row(context.stat_snapshot(volume_name, name))
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(row), indent=2).decode())
        return
    for key, value in row.items():
        click.echo(f"{key}: {value}")


@snapshot.command("remove")
@volume_argument
@snapshot_argument
@yes_option
@state_dir_option
def snapshot_remove(volume_name: str, name: str, is_sure: bool, state_dir: Path | None) -> None:
    """Forget SNAPSHOT of VOLUME. Its space comes back in the background; the volume stays what it is."""
    _make_sure(f"Forget snapshot {name} of volume {volume_name}?", is_sure)
    with _context(state_dir) as context:
        context.remove_snapshot(volume_name, name)


@snapshot.command("rollback")
@volume_argument
@snapshot_argument
@yes_option
@state_dir_option
def snapshot_rollback(volume_name: str, name: str, is_sure: bool, state_dir: Path | None) -> None:
    """Make VOLUME again what it was at SNAPSHOT. What was written since, and later snapshots, are lost.

    Nobody may have the volume open.
    """
    _make_sure(f"Lose what was written to volume {volume_name} since snapshot {name}, and later snapshots?", is_sure)
    with _context(state_dir) as context:
        context.rollback_snapshot(volume_name, name)


# mount -------------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--foreground", is_flag=True, help="Stay, and serve it in this process.")
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), help="The volume server's socket.")
@state_dir_option
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
        with _context_at(path):
            pass  # exit code 5, and its sentence, without another process
        mounting.mount(real, path)
        return
    _log_to_stderr("mount")
    mounting.serve(real, path, ready_fd)


@cli.command()
@click.argument("directory", type=click.Path(path_type=Path))
def unmount(directory: Path) -> None:
    """End a mount of volumes. Exit code 4 while files on it are open."""
    from iscsi_ovs.interfaces import mounting

    mounting.unmount(directory)
