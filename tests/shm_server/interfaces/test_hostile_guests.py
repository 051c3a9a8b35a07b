"""Guests and front ends that lie: each loses its device, and nobody else notices anything."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iscsi_ovs.shm_client import Context
from shm_server.stores import linux
from tests.shm_server.conftest import ServerProcess
from tests.shm_server.interfaces.machines import Machines, loses_its_device
from tests.shm_server.vhost_front_end import (
    AVAILABLE,
    GUEST_BASE,
    IN,
    INDIRECT_FLAG,
    INDIRECT_TABLE,
    IO_ERROR,
    MEMORY_BYTES,
    NEXT,
    OK,
    TABLE,
    USED,
    USER_BASE,
    WRITE,
    FrontEnd,
)

MIB = 1 << 20


# Rings --------------------------------------------------------------------------------------------------------------


def loop(guest: FrontEnd) -> None:
    guest.describe(0, GUEST_BASE, 16, NEXT, 1)
    guest.describe(1, GUEST_BASE, 16, NEXT, 0)
    guest.offer(0)


def head_outside(guest: FrontEnd) -> None:
    guest.offer(guest.entries)


def next_outside(guest: FrontEnd) -> None:
    guest.describe(0, GUEST_BASE, 16, NEXT, 0xFFFF)
    guest.offer(0)


def address_outside(guest: FrontEnd) -> None:
    guest.describe(0, GUEST_BASE + MEMORY_BYTES - 8, 16, 0)
    guest.offer(0)


def address_overflows(guest: FrontEnd) -> None:
    guest.describe(0, (1 << 64) - 8, 16, 0)
    guest.offer(0)


def four_gigabytes(guest: FrontEnd) -> None:
    guest.describe(0, GUEST_BASE, 0xFFFFFFFF, WRITE)
    guest.offer(0)


def index_jumps(guest: FrontEnd) -> None:
    struct.pack_into("<H", guest.memory, AVAILABLE + 2, 0x8000)
    os.eventfd_write(guest.kick, 1)


def no_status(guest: FrontEnd) -> None:
    guest.chain([(0x30000, 16, False)])
    guest.offer(0)


def half_a_header(guest: FrontEnd) -> None:
    guest.chain([(0x30000, 8, False), (0x31000, 1, True)])
    guest.offer(0)


def wrong_order(guest: FrontEnd) -> None:
    guest.chain([(0x31000, 1, True), (0x30000, 16, False)])
    guest.offer(0)


def indirect_in_indirect(guest: FrontEnd) -> None:
    guest.describe(0, GUEST_BASE + INDIRECT_TABLE, 32, INDIRECT_FLAG)
    guest.describe(0, GUEST_BASE + INDIRECT_TABLE, 32, INDIRECT_FLAG, table=INDIRECT_TABLE)
    guest.offer(0)


def indirect_of_odd_length(guest: FrontEnd) -> None:
    guest.describe(0, GUEST_BASE + INDIRECT_TABLE, 17, INDIRECT_FLAG)
    guest.offer(0)


def indirect_and_next(guest: FrontEnd) -> None:
    guest.describe(0, GUEST_BASE + INDIRECT_TABLE, 16, INDIRECT_FLAG | NEXT, 1)
    guest.offer(0)


def indirect_loop(guest: FrontEnd) -> None:
    guest.describe(0, GUEST_BASE + INDIRECT_TABLE, 32, INDIRECT_FLAG)
    guest.describe(0, GUEST_BASE, 16, NEXT, 1, table=INDIRECT_TABLE)
    guest.describe(1, GUEST_BASE, 16, NEXT, 0, table=INDIRECT_TABLE)
    guest.offer(0)


def huge_indirect(guest: FrontEnd) -> None:
    guest.describe(0, GUEST_BASE, MEMORY_BYTES, INDIRECT_FLAG)
    guest.offer(0)


RINGS = [
    loop, head_outside, next_outside, address_outside, address_overflows, four_gigabytes, index_jumps, no_status,
    half_a_header, wrong_order, indirect_in_indirect, indirect_of_odd_length, indirect_and_next, indirect_loop,
    huge_indirect,
]  # fmt: skip


@pytest.mark.parametrize("is_sealed", [False, True], ids=["", "sealed"])
def test_rings_that_lie(machines: Machines, is_sealed: bool) -> None:
    """Loops, addresses and indices that can't be: that guest loses its device, and can connect again."""
    for lie in RINGS:
        with machines.bad(is_sealed=is_sealed) as guest:
            lie(guest)
            loses_its_device(guest)
        machines.others_go_on()
    with machines.bad() as guest:
        assert guest.request(IN, read_bytes=512)[0] == OK


def test_a_request_of_more_than_32_bits(machines: Machines) -> None:
    """Memory that is named a thousand times is more bytes than a used length can say: that request fails, no more."""
    machines.context.create_volume("large", 16 << 30)
    machines.context.export_volume("large", machines.bad_path.with_name("large.sock"))
    with FrontEnd(machines.bad_path.with_name("large.sock")).setup() as guest:
        guest.chain([(0x20000, 16, False)] + [(0, MEMORY_BYTES, True)] * 62)
        guest.describe(62, GUEST_BASE, MEMORY_BYTES, WRITE | NEXT, 63)
        guest.describe(63, GUEST_BASE + INDIRECT_TABLE, 16 * 1024, INDIRECT_FLAG)
        guest.chain([(0, MEMORY_BYTES, True)] * 1023 + [(0x21000, 1, True)], table=INDIRECT_TABLE)
        guest.offer(0)
        assert guest.await_used() == [(0, 1)]
        assert guest.memory[0x21000] == IO_ERROR
    machines.others_go_on()


# Messages -----------------------------------------------------------------------------------------------------------


def region(size: int = MEMORY_BYTES, guest: int = GUEST_BASE, user: int = USER_BASE, offset: int = 0) -> bytes:
    return struct.pack("<QQQQ", guest, size, user, offset)


def table_of(*regions: bytes) -> bytes:
    return struct.pack("<II", len(regions), 0) + b"".join(regions)


MESSAGES = {
    "unknown": (99, b"", 0),
    "of a wrong version": (1, b"", 0),
    "short": (9, b"\0" * 8, 0),
    "memory longer than its file": (5, table_of(region(MEMORY_BYTES + 1)), 1),
    "memory behind its file": (5, table_of(region(4096, offset=MEMORY_BYTES)), 1),
    "memory that overflows": (5, table_of(region(guest=(1 << 64) - 4096)), 1),
    "an offset that overflows": (5, table_of(region(offset=(1 << 64) - 4096)), 1),
    "memory of no bytes": (5, table_of(region(0)), 1),
    "overlapping memory": (5, table_of(region(), region(user=USER_BASE + MEMORY_BYTES)), 2),
    "overlapping addresses": (5, table_of(region(), region(guest=GUEST_BASE + MEMORY_BYTES)), 2),
    "memory without descriptors": (5, table_of(region()), 0),
    "no memory": (5, table_of(), 0),
    "more regions than bytes": (5, struct.pack("<II", 8, 0), 1),
    "a descriptor where none belongs": (1, b"", 1),
    "a ring that is not there": (8, struct.pack("<II", 200, 64), 0),
    "a size that is no power of two": (8, struct.pack("<II", 0, 65), 0),
    "a size of nothing": (8, struct.pack("<II", 0, 0), 0),
    "an endless ring": (8, struct.pack("<II", 0, 1 << 31), 0),
    "a ring outside of memory": (9, struct.pack("<IIQQQQ", 0, 0, 1, 2, 3, 0), 0),
    "a ring across the end": (
        9,
        struct.pack("<IIQQQQ", 0, 0, USER_BASE + MEMORY_BYTES - 16, USER_BASE + USED, USER_BASE + AVAILABLE, 0),
        0,
    ),
    "a ring that is not aligned": (
        9, struct.pack("<IIQQQQ", 0, 0, USER_BASE + TABLE, USER_BASE + USED + 2, USER_BASE + AVAILABLE, 0), 0,
    ),
    "features that were not offered": (2, struct.pack("<Q", 1 << 34), 0),
    "protocol features that were not offered": (16, struct.pack("<Q", 1 << 14), 0),
    "no kick": (12, struct.pack("<Q", 0), 0),
    "a kick to be polled": (12, struct.pack("<Q", 0x100), 0),
    "a file as kick": (12, struct.pack("<Q", 0), 1),
    "configuration beyond its end": (24, struct.pack("<III", 200, 100, 0), 0),
    "configuration without words": (25, b"\0" * 4, 0),
    "flight of no rings": (31, struct.pack("<QQHH", 0, 0, 0, 64), 0),
    "flight of too many rings": (31, struct.pack("<QQHH", 0, 0, 9, 64), 0),
    "flight without memory": (32, struct.pack("<QQHH", 4096, 0, 1, 64), 0),
    "flight in no memory": (32, struct.pack("<QQHH", 0, 0, 0, 0), 1),
    "flight in memory that is not sealed": (32, struct.pack("<QQHH", 4096, 0, 1, 64), 1),
    "flight in memory too small": (32, struct.pack("<QQHH", 64, 0, 1, 64), 1),
    "an unknown region": (38, struct.pack("<Q", 0) + region(4096), 0),
    "a region that is there": (37, struct.pack("<Q", 0) + region(), 1),
}  # fmt: skip


def test_messages_that_lie(machines: Machines) -> None:
    """Every one of them ends that front end's connection, whose descriptors are closed."""
    before = 0
    for name, (request, payload, descriptors) in MESSAGES.items():
        with machines.bad() as front_end:
            flags = 2 if name == "of a wrong version" else 1
            front_end.send(request, payload, [front_end.memory_fd] * descriptors, flags)
            loses_its_device(front_end)
        machines.others_go_on()
        with machines.bad():
            opened = machines.server.open_files()
        assert opened == (before or opened), f"{name}: a descriptor was left"
        before = opened


def test_too_many_descriptors(machines: Machines) -> None:
    """More descriptors than a message may have are refused and closed."""
    with machines.bad() as front_end:
        front_end.send(5, table_of(region()), [front_end.memory_fd] * 30)
        loses_its_device(front_end)
    machines.others_go_on()


def test_memory_of_the_wrong_kind(machines: Machines, tmp_path: Path) -> None:
    """A pipe, a descriptor that only reads, a device, a file on a disk: none is a guest's memory."""
    reading, writing = os.pipe()
    read_only = os.open(f"/proc/self/fd/{machines.good.memory_fd}", os.O_RDONLY)
    wrong = [reading, read_only, os.open("/dev/zero", os.O_RDWR)]
    on_disk = os.open(tmp_path / "memory", os.O_RDWR | os.O_CREAT)
    os.truncate(on_disk, 4096)
    if linux.filesystem_magic(on_disk) != linux.TMPFS_MAGIC:  # as /tmp is on some machines: right, there
        wrong.append(on_disk)
    for fd in wrong:
        with machines.bad() as front_end:
            front_end.send(5, table_of(region(4096)), [fd])
            loses_its_device(front_end)
        os.close(fd)
    os.close(writing)
    machines.others_go_on()


def test_more_memory_than_there_can_be(machines: Machines) -> None:
    """Files cost nothing as long as nobody writes there, addresses do: 1 TiB a guest, however it is cut up."""
    fd = os.memfd_create("large", os.MFD_CLOEXEC)
    os.ftruncate(fd, 2 << 40)
    for parts in ([1 << 40, 4096], [(1 << 40) + 4096]):
        with machines.bad() as front_end:
            for part in parts[:-1]:
                front_end.send(5, table_of(region(part)), [fd])
            base = struct.pack("<QQQQQ", 0, 1 << 44, parts[-1], 1 << 45, 0)
            front_end.send(37, base, [fd])
            loses_its_device(front_end)
    os.close(fd)
    machines.others_go_on()


def test_memory_that_shrinks(machines: Machines) -> None:
    """A front end that cuts its guest's memory off, while the server reads there, loses its device; no SIGBUS."""
    for size in (0, 4096, 0x20000):
        with machines.bad() as guest:
            os.ftruncate(guest.memory_fd, size)
            os.eventfd_write(guest.kick, 1)
            if size == 0x20000:  # the rings are there, the data is not
                guest.chain([(0x1000, 16, False), (0x30000, 4096, True), (0x1100, 1, True)])
                struct.pack_into("<IIQ", guest.memory, 0x1000, IN, 0, 0)
                guest.offer(0)
                assert guest.await_used() == [(0, 1)]
                assert guest.memory[0x1100] == 1
            else:
                loses_its_device(guest)
        machines.others_go_on()


def test_sealed_memory(machines: Machines) -> None:
    """Memory that its owner has sealed against shrinking, as QEMU does, is as good as any."""
    with FrontEnd(machines.bad_path) as guest:
        guest.seal().setup()
        assert guest.request(IN, read_bytes=4096)[0] == OK


# At random ----------------------------------------------------------------------------------------------------------

_hypothesis = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@_hypothesis
@given(
    seed=st.integers(0, 1 << 32), heads=st.lists(st.integers(0, 70), min_size=1, max_size=64), is_sealed=st.booleans()
)
def test_random_chains(machines: Machines, seed: int, heads: list[int], is_sealed: bool) -> None:
    """Tables of descriptors at random, near enough to the truth to get far: the server and the others go on."""
    chance = random.Random(seed)
    with machines.bad(is_sealed=is_sealed) as guest:
        for table, count in ((TABLE, guest.entries), (INDIRECT_TABLE, 64)):
            for at in range(count):
                address = GUEST_BASE + chance.choice((0, INDIRECT_TABLE, 0x20000, chance.randrange(MEMORY_BYTES + 64)))
                length = chance.choice((0, 1, 16, 512, 4096, 1024, chance.randrange(1 << 20)))
                flags = chance.choice((0, NEXT, NEXT, NEXT, WRITE, NEXT | WRITE, INDIRECT_FLAG, chance.randrange(16)))
                guest.describe(at, address, length, flags, chance.randrange(guest.entries + 2), table)
        for at in range(0x20000, 0x30000, 16):
            struct.pack_into("<IIQ", guest.memory, at, chance.choice((0, 1, 4, 8, 11, 13, 99)), 0, chance.randrange(64))
        guest.offer(*heads)
        try:
            guest.stop_ring()
        except (EOFError, OSError):
            pass  # it has hung up on us by now
    machines.others_go_on()


@_hypothesis
@given(
    st.lists(
        st.tuples(
            st.integers(0, 42),
            st.one_of(
                st.binary(max_size=80),
                st.builds(lambda *v: struct.pack("<II", *v), st.integers(0, 9), st.integers(0, 1 << 16)),
                st.builds(lambda v: struct.pack("<Q", v), st.integers(0, 0x1FF)),
                st.sampled_from([payload for _, payload, _ in MESSAGES.values()]),
            ),
            st.integers(0, 3),
            st.sampled_from([1, 1, 1, 9, 0, 5]),
        ),
        max_size=12,
    ),
    st.booleans(),
)
def test_random_messages(machines: Machines, conversation: list[tuple[int, bytes, int, int]], is_running: bool) -> None:
    """Messages at random, before or after a ring runs: the server and the others go on."""
    with FrontEnd(machines.bad_path) as front_end:
        if is_running:
            front_end.setup()
        try:
            for request, payload, count, flags in conversation:
                front_end.send(request, payload, [front_end.memory_fd, front_end.kick, front_end.call][:count], flags)
        except OSError:
            pass  # it has hung up on us by now
    machines.others_go_on()


def test_another_user_is_refused(start_server: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """Whoever is not the server's user, root or listed is not served at an export."""
    if os.getuid() != 0:
        pytest.skip("needs root to become somebody else")
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent != Path("/") and parent != Path("/tmp"):
            parent.chmod(0o755)
    server = start_server(shm_server={"allowed_uids": [65533]})
    with Context(server.socket_path) as context:
        context.create_volume("disk", MIB)
        context.export_volume("disk", tmp_path / "vm.sock")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setuid(65534)
                front_end = FrontEnd(tmp_path / "vm.sock")
                try:
                    front_end.ask(1)
                except (EOFError, ConnectionError):
                    code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        with FrontEnd(tmp_path / "vm.sock") as front_end:
            front_end.setup()
