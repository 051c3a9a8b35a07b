"""``iscsi-ovs target``, a target alone on a volume server that runs already, and ``iscsi-ovs reload``."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from iscsi_ovs import config, paths
from iscsi_ovs.cli import portals, shared
from iscsi_ovs.errors import ConfigurationError

if TYPE_CHECKING:
    from iscsi_ovs import target as targets
    from iscsi_ovs.targets.nodes import Node

logger = logging.getLogger("iscsi_ovs.target")

# What the target asks of the server: more than one client may have, so it gets its whole share.
_SEGMENT_WISH_BYTES = 1 << 40
_OTHER_DESCRIPTORS = 256  # beside those of connections: portals, the volume server, files that are read


@click.command()
@shared.state_dir_option
@shared.config_option
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), help="The volume server's socket.")
@click.option("--portal", "portal_texts", multiple=True, metavar="HOST:PORT", help="Listen here.")
@click.option("--advertise", metavar="HOST:PORT", help="Tell initiators this address instead.")
@click.option("--iqn-prefix", default=None, help="What IQNs begin with.")
@click.option("--instance", default="", help="Goes between the prefix and the volume's name.")
@click.option("--snapshot", "snapshots", multiple=True, metavar="NAME@SNAPSHOT", help="Serve this, too, read-only.")
@shared.open_option
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
    snapshots: Sequence[str],
    is_open: bool,
    listen_fds: Sequence[int],
    ready_fd: int | None,
) -> int:
    """Run a target alone, on a volume server that runs already."""
    from iscsi_ovs import target as targets
    from iscsi_ovs.net.portal import is_loopback
    from iscsi_ovs.shm_client import Service

    shared.log_to_stderr("target")
    _raise_descriptor_limit()
    if config_file is not None and (iqn_prefix or instance or snapshots):
        raise ConfigurationError("with --config names stand in the file")
    addresses = portals.portals_of(config_file, portal_texts, advertise, is_open)
    settings = targets.Settings(
        iqn_prefix=iqn_prefix or targets.DEFAULT_IQN_PREFIX,
        instance=instance,
        snapshots=tuple(map(config.parse_snapshot_option, snapshots)),
        advertise=portals.parse_advertised(advertise),
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
            shared.say(f"ready {url}")

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
        shared.complain(server.refusal.strerror or str(server.refusal))
        return shared.EXIT_FAILED
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


@click.command()
@click.option("--socket", "socket_path", type=click.Path(path_type=Path), help="The volume server's socket.")
@shared.state_dir_option
def reload(state_dir: Path | None, socket_path: Path | None) -> None:
    """Have the running target read its config.toml again, and say what is different.

    Living sessions go on. What can't be obeyed is refused as a whole, and the target goes on as it was.
    """
    from iscsi_ovs.net import control

    path = paths.target_socket_path(socket_path or paths.socket_path(state_dir))
    try:
        changes = control.ask(path, "reload", shared.ANSWER_LIMIT_S)
    except OSError as error:
        reason = "it does not answer" if isinstance(error, TimeoutError) else error.strerror or error
        shared.complain(f"no target with --config at {path}: {reason}")
        sys.exit(shared.EXIT_UNREACHABLE)
    for change in changes:
        click.echo(change)
