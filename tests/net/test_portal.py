"""Portals: what may be written, who holds a port, what stands in the way of listening."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from iscsi_ovs.errors import ConfigurationError
from iscsi_ovs.net import portal
from iscsi_ovs.net.portal import Address


@pytest.fixture
def held() -> Iterator[socket.socket]:
    """Somebody's listening socket on a port of the kernel's choice."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:3999", Address("127.0.0.1", 3999)),
        ("127.0.0.1", Address("127.0.0.1", 3260)),
        ("0.0.0.0:0", Address("0.0.0.0", 0)),
        ("storage.example:860", Address("storage.example", 860)),
        ("storage.example", Address("storage.example", 3260)),
        ("storage.example:", Address("storage.example", 3260)),
        ("host:65535", Address("host", 65535)),
        ("host:00860", Address("host", 860)),
        ("[::1]:3999", Address("::1", 3999)),
        ("[::1]", Address("::1", 3260)),
        ("[::]:0", Address("::", 0)),
        ("::1", Address("::1", 3260)),
        ("fe80::1", Address("fe80::1", 3260)),
    ],
)
def test_parse(text: str, expected: Address) -> None:
    """HOST, HOST:PORT, [V6]:PORT and bare IPv6; the port is 3260 where none is given."""
    assert portal.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no host"),
        (":3260", "no host"),
        ("[]:3260", "no host"),
        ("host:65536", "not a TCP port"),
        ("host:-1", "not a TCP port"),
        ("host:iscsi", "not a TCP port"),
        ("host: 3260", "not a TCP port"),
        ("host:٣", "not a TCP port"),
        ("host:" + "9" * 5000, "not a TCP port"),
        ("[::1", "[ADDRESS]:PORT"),
        ("[::1]3260", "[ADDRESS]:PORT"),
    ],
)
def test_parse_refuses(text: str, words: str) -> None:
    """Anything else is refused with a sentence that repeats what was written."""
    with pytest.raises(ConfigurationError) as refused:
        portal.parse(text)
    assert words in str(refused.value)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize("address", [Address("127.0.0.1", 3260), Address("::1", 860), Address("name", 1)])
def test_an_address_is_written_as_it_is_parsed(address: Address) -> None:
    """str() and parse() are inverse; IPv6 stands in brackets."""
    assert portal.parse(str(address)) == address


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::1", "::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:c000:201", "::ffff:c000:201"),
    ],
)
def test_reached_at(host: str, expected: str) -> None:
    """IPv4 on a socket of both families is told as IPv4: an initiator can use that."""
    assert portal.reached_at(host, 3260) == Address(expected, 3260)


def test_listen() -> None:
    """A listening socket: non-blocking, closed on exec, and somebody can connect."""
    with portal.listen(Address("127.0.0.1", 0)) as listener:
        assert not listener.getblocking()
        assert not listener.get_inheritable()
        with socket.create_connection(listener.getsockname()):
            pass


def test_listen_again_at_once() -> None:
    """A port whose last connections still linger (TIME_WAIT) can be listened on."""
    with portal.listen(Address("127.0.0.1", 0)) as first:
        where = first.getsockname()
        first.setblocking(True)
        client = socket.create_connection(where)
        accepted, _ = first.accept()
        accepted.close()  # the side that closes first lingers
        client.close()
    portal.listen(Address(*where)).close()


def test_a_taken_portal_names_its_holder(held: socket.socket) -> None:
    """The sentence has the portal, the holder's name and pid, and what to do."""
    port = held.getsockname()[1]
    with pytest.raises(ConfigurationError) as refused:
        portal.listen(Address("127.0.0.1", port))
    sentence = str(refused.value)
    assert sentence.startswith(f"portal 127.0.0.1:{port} is taken by ")
    assert f"(pid {os.getpid()})" in sentence
    assert "--portal" in sentence


def test_a_taken_portal_whose_holder_is_hidden(held: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /proc does not tell, the sentence says so much."""
    monkeypatch.setattr(portal, "who_listens", lambda port: None)
    with pytest.raises(ConfigurationError, match="taken by a process of another user"):
        portal.listen(Address("127.0.0.1", held.getsockname()[1]))


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 64 + ".example", "two..dots", "203.0.113.77"])
def test_listen_refuses(host: str) -> None:
    """A name nobody knows, one that can't be, an address that is not ours: a sentence that begins with the portal."""
    with pytest.raises(ConfigurationError, match=rf"^portal {host}:3260: \S"):
        portal.listen(Address(host, 3260))


def test_who_listens(held: socket.socket) -> None:
    """Us, by name and pid; nobody on a port that is free; and a connection is no listener."""
    port = held.getsockname()[1]
    with open("/proc/self/comm", encoding="ascii") as comm:
        assert portal.who_listens(port) == f"{comm.read().strip()} (pid {os.getpid()})"
    with socket.create_connection(held.getsockname()) as client:
        assert portal.who_listens(client.getsockname()[1]) is None
    held.close()
    assert portal.who_listens(port) is None


def test_who_listens_on_ipv6() -> None:
    """A listener on [::1] is found as well."""
    with portal.listen(Address("::1", 0)) as listener:
        found = portal.who_listens(listener.getsockname()[1])
        assert found is not None
        assert f"(pid {os.getpid()})" in found
