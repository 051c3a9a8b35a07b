"""Nothing that a client writes, into its memory or its socket, harms the server or another client."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shm_server.abi import control, layout
from shm_server.abi.layout import Opcode
from shm_server.server import Server
from tests.shm_server.abi_client import AbiClient, RefusedError
from tests.shm_server.conftest import ServerProcess

Connect = Callable[..., AbiClient]


@pytest.fixture
def witness(server: ServerProcess, connect: Connect) -> AbiClient:
    """Another client, with a volume of its own, that must notice nothing."""
    client = connect(server)
    client.create("witness", 1 << 20)
    client.attach()
    client.open("witness")
    client.write(0, b"mine" * 128)
    return client


def assert_unharmed(witness: AbiClient) -> None:
    assert witness.read(0, 512) == b"mine" * 128
    witness.write(4096, b"more")
    witness.call(control.Stat(witness.id(), "witness"))


@pytest.mark.parametrize(
    ("word", "value"),
    [
        (layout.WORD_SUBMISSION_TAIL, 65),
        (layout.WORD_SUBMISSION_TAIL, 0xFFFFFFFF),
        (layout.WORD_SUBMISSION_TAIL, 0x80000000),
        (layout.WORD_COMPLETION_HEAD, 1),
        (layout.WORD_COMPLETION_HEAD, 0x7FFFFFFF),
    ],
)
def test_an_impossible_index_costs_the_client(
    server: ServerProcess, demo: AbiClient, witness: AbiClient, word: int, value: int
) -> None:
    """Its connection is closed with a log line, its volumes are free, others go on."""
    demo.words[word] = value
    if word == layout.WORD_COMPLETION_HEAD:
        demo.push(Opcode.FLUSH)
        demo.publish()
    demo.submission_bell.ring()
    assert demo.is_closed_by_server()
    assert "is refused: " in server.log()
    assert_unharmed(witness)
    witness.open("demo")


@pytest.mark.parametrize("word", [layout.WORD_SUBMISSION_HEAD, layout.WORD_COMPLETION_TAIL, layout.WORD_SERVER_SLEEPS])
def test_words_of_the_server_are_not_believed(demo: AbiClient, witness: AbiClient, word: int) -> None:
    """Scribbling on the indices that the server writes, or its header, confuses nobody but the client."""
    demo.words[word] = 0xDEADBEEF
    demo.rings[0:64] = os.urandom(64)
    assert_unharmed(witness)
    demo.close()
    assert_unharmed(witness)


HEAD = layout.ENTRY_FIRST


def entry(demo: AbiClient, **fields: int) -> bytes:
    """A good READ of 512 bytes, but for ``fields``."""
    values = {
        "opcode": Opcode.READ,
        "flags": 0,
        "part_count": 1,
        "handle": demo.handle,
        "epoch": demo.epoch,
        "reserved": 0,
        "offset": 0,
        "length": 512,
        "tag": 77,
        "slot": 0,
        "start": 0,
        "part_length": 512,
    }
    values.update(fields)
    return HEAD.pack(*values.values())


WRONG_FIELDS: list[dict[str, int]] = [
    {"flags": 1},
    {"flags": 0x80},
    {"opcode": Opcode.WRITE, "flags": 2},
    {"opcode": Opcode.FLUSH, "part_count": 0, "flags": 1},
    {"opcode": Opcode.DISCARD},
    {"opcode": Opcode.FENCE, "epoch": 2},
    {"reserved": 1},
    {"part_count": 0},
    {"part_count": 8},
    {"part_count": 513},
    {"part_count": 65535},
    {"slot": 16},
    {"slot": 0xFFFFFFFF},
    {"start": 65536},
    {"start": 0xFFFFFFFF},
    {"slot": 15, "start": 65535},
    {"part_length": 511},
    {"part_length": 0xFFFFFFFF},
    {"part_length": 0xFFFFFFFF, "length": 0xFFFFFFFF},
    {"length": 513},
    {"length": 1 << 63},
    {"length": (1 << 64) - 1},
    {"offset": (1 << 64) - 512},
    {"offset": (1 << 63) - 512},
    {"offset": (1 << 64) - 1, "length": (1 << 64) - 1},
]


def test_a_wrong_field_costs_the_request(server: ServerProcess, demo: AbiClient, witness: AbiClient) -> None:
    """EINVAL with its tag and a log line; the next request is served."""
    for fields in WRONG_FIELDS:
        demo.push_raw(entry(demo, **fields))
        completion = demo.wait(77)
        assert (completion[1], completion[3]) == (errno.EINVAL, 0), fields
        demo.push_raw(entry(demo, tag=78))
        assert demo.wait(78)[1] == 0
    assert "bad request" in server.log()
    assert_unharmed(witness)


def test_malformed_continuations(server: ServerProcess, demo: AbiClient, witness: AbiClient) -> None:
    """Missing, miscounted, stray: the head is EINVAL, a stray one has no tag and is dropped, what follows is served."""
    one = struct.pack("<30I", *[0, 0, 64] * 10)
    good = struct.pack("<BBHI", Opcode.CONTINUATION, 0, 1, 0) + one
    for more, count in (
        ([], 8),
        ([struct.pack("<BBHI", Opcode.CONTINUATION, 0, 2, 0) + one], 8),
        ([struct.pack("<BBHI", Opcode.CONTINUATION, 0, 0, 0) + one], 8),
        ([struct.pack("<BBHI", Opcode.CONTINUATION, 0, 1, 9) + one], 8),
        ([good], 18),
        ([entry(demo, tag=5)], 8),
    ):
        demo.push_raw(entry(demo, part_count=count, length=8 * 64), publish=False)
        for raw in more:
            demo.push_raw(raw, publish=False)
        demo.push_raw(entry(demo, tag=78))
        assert demo.wait(77)[1] == errno.EINVAL
        assert demo.wait(78)[1] == 0
    demo.done.clear()
    demo.push_raw(good)
    assert demo.read(0, 512) == bytes(512)
    assert "continues nothing" in server.log()
    assert_unharmed(witness)


@given(st.lists(st.binary(min_size=128, max_size=128), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_entries_harm_nobody(demo: AbiClient, witness: AbiClient, entries: list[bytes]) -> None:
    """Any bytes as entries: each is answered or dropped, and the server goes on."""
    for raw in entries:
        demo.push_raw(raw, publish=False)
    demo.publish()
    assert len(demo.read(0, 512)) == 512
    demo.done.clear()
    assert_unharmed(witness)


@given(
    st.lists(
        st.builds(
            HEAD.pack,
            st.integers(0, 12),
            st.sampled_from([0, 0, 0, 1, 2, 3, 255]),
            st.sampled_from([0, 1, 1, 1, 2, 7, 8, 600]),
            st.sampled_from([0, 1, 1, 1, 2]),
            st.sampled_from([0, 1, 1, 1, 2]),
            st.sampled_from([0, 0, 0, 0, 1]),
            st.sampled_from([0, 512, 4095, (1 << 24) - 512, 1 << 24, 1 << 63, (1 << 64) - 1]),
            st.sampled_from([0, 1, 512, 512, 4096, 1 << 20, 1 << 24, 1 << 40, (1 << 64) - 1]),
            st.integers(0, 99),
            st.sampled_from([0, 0, 1, 15, 16, 0xFFFFFFFF]),
            st.sampled_from([0, 0, 512, 65535, 65536]),
            st.sampled_from([0, 1, 512, 512, 4096, 1 << 20, 0xFFFFFFFF]),
        ),
        min_size=1,
        max_size=40,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nearly_good_entries_harm_nobody(
    server: ServerProcess, witness: AbiClient, connect: Connect, entries: list[bytes]
) -> None:
    """As above, with fields that are often right; every entry with a tag is completed exactly once."""
    with AbiClient(server.socket_path) as client:
        try:
            client.create()
        except RefusedError:
            pass
        client.attach()
        client.open()
        for raw in entries:
            client.push_raw(raw, publish=False)
        client.publish()
        answers = 0
        while answers < len(entries):
            for completion in client.take():
                answers += 1
                assert completion[0] < 100
        assert not client.consumer.has_pending()
    assert_unharmed(witness)


GARBAGE = [
    b"GET / HTTP/1.0\r\n\r\n",
    struct.pack("<I", 1 << 21),
    struct.pack("<I", 0xFFFFFFFF) + b"x" * 100,
    struct.pack("<I", 4) + b"\xc1\xc1\xc1\xc1",
    struct.pack("<I", 0),
    control.LENGTH.pack(3) + b"\x81\xa1a",
    control.encode(control.Done(1)),
    control.encode(control.Welcome(1, 1, "", 1, "")),
]


def test_garbage_on_the_socket_costs_the_connection(
    server: ServerProcess, witness: AbiClient, connect: Connect
) -> None:
    """Before and after Hello: Failed(id 0), the connection closed, a log line, nobody else hurt."""
    for garbage, hello in itertools.product(GARBAGE, (False, True)):
        client = connect(server, hello=hello)
        client.socket.sendall(garbage)
        with pytest.raises(RefusedError) as caught:
            client.reply(-1)
        assert caught.value.errno == errno.EPROTO
        assert client.is_closed_by_server()
    assert "control message" in server.log()
    assert_unharmed(witness)


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_messages_harm_nobody(server: ServerProcess, witness: AbiClient, garbage: bytes) -> None:
    """Any bytes as a message."""
    with AbiClient(server.socket_path) as client:
        client.socket.sendall(control.LENGTH.pack(len(garbage)) + garbage)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.is_closed_by_server()
    assert_unharmed(witness)


def test_a_half_message_is_waited_for_not_guessed(server: ServerProcess, connect: Connect) -> None:
    """A byte at a time is as good as all at once."""
    client = connect(server)
    for byte in control.encode(control.List(50)):
        client.socket.send(bytes([byte]))
    assert client.reply(50).infos == []


def test_a_client_that_does_not_read_is_dropped(
    in_process: Callable[..., Server], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its queue of replies is bounded; another client is served meanwhile."""
    monkeypatch.setattr("shm_server.client.MAX_OUTPUT_BYTES", 100_000)
    server = in_process()
    deaf, other = connect(server), connect(server)
    other.create()
    requests = b"".join(control.encode(control.List(number)) for number in range(100_000))
    with pytest.raises(ConnectionError):
        deaf.socket.sendall(requests)
    other.call(control.List(other.id()))


def test_doorbells_and_rings_of_nothing(demo: AbiClient, witness: AbiClient) -> None:
    """Ringing without a request, filling the counter, ringing while others work: no harm."""
    for _ in range(100):
        demo.submission_bell.ring()
    os.eventfd_write(demo.submission_bell.fileno(), 2**63)
    assert demo.read(0, 512) == bytes(512)
    assert_unharmed(witness)


def test_acks_of_nothing_are_ignored(server: ServerProcess, connect: Connect) -> None:
    """An Ack has no reply, whatever it names."""
    client = connect(server)
    for sequence in (0, -1, 99, 2**40):
        client.send(control.Ack(sequence))
    assert client.call(control.List(client.id())).infos == []
