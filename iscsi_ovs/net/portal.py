"""Portals: addresses to listen on and to advertise (RFC 7143 section 4.1: "the Network Portal")."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from iscsi_ovs.errors import ConfigurationError

ISCSI_PORT = 3260
WILDCARDS = ("0.0.0.0", "::")
_BACKLOG = 256


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(text: str) -> Address:
    """``HOST``, ``HOST:PORT``, ``[V6]:PORT`` → Address; the port is 3260 where none is given."""
    host, port_text = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ConfigurationError(f"portal {text!r}: an IPv6 address is written [ADDRESS]:PORT")
        port_text = rest[1:]
    elif text.count(":") == 1:
        host, _, port_text = text.partition(":")
    if not host:
        raise ConfigurationError(f"portal {text!r} has no host")
    if not port_text:
        return Address(host, ISCSI_PORT)
    if not port_text.isascii() or not port_text.isdigit() or len(port_text) > 5 or int(port_text) > 65535:
        raise ConfigurationError(f"portal {text!r}: {port_text!r} is not a TCP port")
    return Address(host, int(port_text))


def is_loopback(address: Address) -> bool:
    """Nobody but this machine reaches it."""
    host = address.host.partition("%")[0]
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"  # of other names nobody knows where they point to tomorrow


def reached_at(host: str, port: int) -> Address:
    """An end of a connection. A socket on [::] shows IPv4 as ::ffff:192.0.2.1, which is no address to be advertised."""
    return Address(host.removeprefix("::ffff:") if "." in host else host, port)


def listen(address: Address) -> socket.socket:
    """A listening socket. Raises ConfigurationError with a sentence that says what stands in the way."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConfigurationError(f"portal {address}: {error.strerror}") from None
    except UnicodeError:  # the IDNA codec: a label is empty or longer than 63
        raise ConfigurationError(f"portal {address}: that is no host name") from None
    family, kind, protocol, _, where = found[0]
    listener = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            holder = who_listens(address.port)
            by = f"by {holder}" if holder else "by a process of another user, perhaps another target"
            raise ConfigurationError(
                f"portal {address} is taken {by}; choose another with --portal HOST:PORT"
            ) from None
        if error.errno == errno.EACCES:
            raise ConfigurationError(f"portal {address}: ports below 1024 need privileges") from None
        raise ConfigurationError(f"portal {address}: {error.strerror}") from None
    return listener


def who_listens(port: int) -> str | None:
    """Whoever listens on a TCP port, as "name (pid N)", as far as /proc lets us see."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return None
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                for descriptor in (process / "fd").iterdir():
                    if os.readlink(descriptor) in inodes:
                        return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return None
