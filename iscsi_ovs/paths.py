"""Where state and sockets live (CONTRACTS 11): the same defaults for every command, server and client.

State is kept in ``$XDG_STATE_HOME/iscsi-ovs`` (root: /var/lib/iscsi-ovs) and sockets in ``$XDG_RUNTIME_DIR/iscsi-ovs``
(root: /run/iscsi-ovs). One option, ``--state-dir DIR``, puts both under DIR. Where a user has no runtime directory (no
login session, a container), sockets live in ``run`` under the state directory: not in /tmp, where others could squat.
These functions only compute; whoever needs a directory makes it, with mode 0700.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

NAME = "iscsi-ovs"
SOCKET_NAME = "shm.sock"
TARGET_SOCKET_NAME = "target.sock"


def state_dir(option: str | os.PathLike[str] | None = None) -> Path:
    """The directory of vpool.json, the pool and the catalogue; ``option`` is what --state-dir said."""
    if option is not None:
        return Path(option)
    if os.geteuid() == 0:
        return Path("/var/lib") / NAME
    home = os.environ.get("XDG_STATE_HOME", "")
    return (Path(home) if os.path.isabs(home) else _home() / ".local" / "state") / NAME


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a uid without an entry and without HOME, as containers have it
        raise OSError(
            errno.EINVAL, f"uid {os.geteuid()} has no home directory: set HOME or XDG_STATE_HOME, or use --state-dir"
        ) from None


def runtime_dir(option: str | os.PathLike[str] | None = None) -> Path:
    """The directory of sockets and locks; ``option`` is what --state-dir said."""
    if option is not None:
        return Path(option) / "run"
    if os.geteuid() == 0:
        return Path("/run") / NAME
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(base) / NAME if os.path.isabs(base) else state_dir() / "run"


def target_socket_path(socket: str | os.PathLike[str]) -> Path:
    """A target's control socket, beside the socket of its volume server."""
    return Path(socket).parent / TARGET_SOCKET_NAME


def socket_path(option: str | os.PathLike[str] | None = None) -> Path:
    """The volume server's control socket; ``option`` is what --state-dir said."""
    return runtime_dir(option) / SOCKET_NAME
