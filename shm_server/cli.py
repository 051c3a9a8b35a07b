"""The command ``shm-server``: words for an operator, and exit codes (0 done, 1 failed, 2 usage or configuration)."""

from __future__ import annotations

import logging
import os
import sys

import click

EXIT_FAILED = 1
EXIT_USAGE = 2

log = logging.getLogger(__name__)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="iscsi-ovs")
@click.option("--config", "config_path", required=True, metavar="VPOOL.JSON", help="The configuration of the pool.")
@click.option("--socket", "socket_path", metavar="PATH", help="Unix socket (default: shm.sock in the pool directory).")
@click.option("--ready-fd", type=int, metavar="N", help='Write "ready" to this descriptor once clients are accepted.')
@click.option(
    "--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"]), show_default=True
)
def main(config_path: str, socket_path: str | None, ready_fd: int | None, log_level: str) -> None:
    """Serve the volumes of a pool over shared memory until SIGTERM."""
    logging.basicConfig(
        stream=sys.stderr,
        level=log_level.upper(),
        format="%(asctime)s shm-server[%(process)d] %(levelname)s %(message)s",
    )
    sys.exit(run(config_path, socket_path, ready_fd))


def run(config_path: str, socket_path: str | None = None, ready_fd: int | None = None) -> int:
    """Serve until a signal; returns the exit code."""
    from shm_server import config, server  # --help needs none of it

    try:
        settings = config.load(config_path, socket_path)
    except config.ConfigError as error:
        log.error("%s", error.strerror)
        return EXIT_USAGE
    instance = server.Server(settings)
    try:
        instance.start()
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        log.error("can't start: %s%s", error.strerror or error, where)
        return EXIT_FAILED
    instance.handle_signals()
    log.info("ready: pool %s, %s store, socket %s", settings.pool, settings.store, settings.socket_path)
    if ready_fd is not None:
        os.write(ready_fd, b"ready\n")
        os.close(ready_fd)
    try:
        instance.run()
    except Exception:
        log.exception("the server failed")
        return EXIT_FAILED
    return 0
