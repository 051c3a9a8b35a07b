"""Guests that lie in a packed ring: each loses its device, and nobody else notices anything."""

from __future__ import annotations

import os
import random
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.shm_server.interfaces.machines import Machines, loses_its_device
from tests.shm_server.packed_front_end import AVAILABLE_MARK, DRIVER_AREA, USED_MARK, PackedFrontEnd
from tests.shm_server.vhost_front_end import (
    GUEST_BASE,
    IN,
    INDIRECT_FLAG,
    INDIRECT_TABLE,
    MEMORY_BYTES,
    NEXT,
    OK,
    TABLE,
    WRITE,
)


def a_chain_round_the_ring(guest: PackedFrontEnd) -> None:
    for slot in range(guest.entries):
        guest.write_slot(slot, GUEST_BASE, 16, 0, NEXT)


def a_chain_that_is_not_there(guest: PackedFrontEnd) -> None:
    guest.write_slot(1, GUEST_BASE, 16, 0, AVAILABLE_MARK)
    guest.write_slot(0, GUEST_BASE, 16, 0, NEXT)


def address_outside(guest: PackedFrontEnd) -> None:
    guest.write_slot(0, GUEST_BASE + MEMORY_BYTES - 8, 16, 0, 0)


def address_overflows(guest: PackedFrontEnd) -> None:
    guest.write_slot(0, (1 << 64) - 8, 16, 0, 0)


def no_status(guest: PackedFrontEnd) -> None:
    guest.write_slot(0, GUEST_BASE + 0x30000, 16, 0, 0)


def wrong_order(guest: PackedFrontEnd) -> None:
    guest.write_slot(1, GUEST_BASE, 16, 0, 0)
    guest.write_slot(0, GUEST_BASE, 1, 0, NEXT | WRITE)


def indirect_in_a_chain(guest: PackedFrontEnd) -> None:
    guest.write_slot(1, GUEST_BASE + INDIRECT_TABLE, 16, 0, INDIRECT_FLAG)
    guest.write_slot(0, GUEST_BASE, 16, 0, NEXT)


def indirect_of_odd_length(guest: PackedFrontEnd) -> None:
    guest.write_slot(0, GUEST_BASE + INDIRECT_TABLE, 17, 0, INDIRECT_FLAG)


def indirect_of_nothing(guest: PackedFrontEnd) -> None:
    guest.write_slot(0, GUEST_BASE + INDIRECT_TABLE, 0, 0, INDIRECT_FLAG)


def huge_indirect(guest: PackedFrontEnd) -> None:
    guest.write_slot(0, GUEST_BASE, MEMORY_BYTES, 0, INDIRECT_FLAG)


RINGS = [
    a_chain_round_the_ring, a_chain_that_is_not_there, address_outside, address_overflows, no_status, wrong_order,
    indirect_in_a_chain, indirect_of_odd_length, indirect_of_nothing, huge_indirect,
]  # fmt: skip


def bad(machines: Machines, *, is_sealed: bool = False) -> PackedFrontEnd:
    guest = machines.bad(PackedFrontEnd, is_sealed=is_sealed)
    assert isinstance(guest, PackedFrontEnd)
    return guest


@pytest.mark.parametrize("is_sealed", [False, True], ids=["", "sealed"])
def test_rings_that_lie(machines: Machines, is_sealed: bool) -> None:
    """Chains without an end, addresses and tables that can't be: that guest loses its device, and can connect again."""
    for lie in RINGS:
        with bad(machines, is_sealed=is_sealed) as guest:
            lie(guest)
            os.eventfd_write(guest.kick, 1)
            loses_its_device(guest)
        machines.others_go_on()
    with bad(machines) as guest:
        assert guest.request(IN, read_bytes=512)[0] == OK


def test_a_base_outside(machines: Machines) -> None:
    """A ring that is to begin beyond its end, and one that changes its format while it runs, are refused."""
    with PackedFrontEnd(machines.bad_path) as guest:
        guest.negotiate()
        guest.share_memory()
        guest.base = lambda: guest.entries | 1 << 15  # type: ignore[method-assign]
        try:
            guest.start_ring()
        except (EOFError, OSError):
            pass
        loses_its_device(guest)
    with bad(machines) as guest:
        guest.send(2, struct.pack("<Q", guest.features & ~(1 << 34)))
        loses_its_device(guest)
    machines.others_go_on()


_hypothesis = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@_hypothesis
@given(seed=st.integers(0, 1 << 32), is_tracked=st.booleans(), is_sealed=st.booleans(), rounds=st.integers(1, 4))
def test_random_rings(machines: Machines, seed: int, is_tracked: bool, is_sealed: bool, rounds: int) -> None:
    """Rings of descriptors at random, near enough to the truth to get far: the server and the others go on."""
    chance = random.Random(seed)
    with PackedFrontEnd(machines.bad_path) as guest:
        guest.negotiate()
        if is_sealed:
            guest.seal()
        if is_tracked:
            guest.track()
        guest.share_memory()
        guest.start_ring()
        try:
            for _ in range(rounds):
                scatter(guest, chance)
                os.eventfd_write(guest.kick, 1)
            guest.stop_ring()
        except (EOFError, OSError):
            pass  # it has hung up on us by now
    machines.others_go_on()


def scatter(guest: PackedFrontEnd, chance: random.Random) -> None:
    """Marks are those of one of two laps up to some slot, mostly."""
    struct.pack_into("<HH", guest.memory, DRIVER_AREA, chance.randrange(1 << 16), chance.randrange(4))
    for at in range(0x20000, 0x30000, 16):
        struct.pack_into("<IIQ", guest.memory, at, chance.choice((0, 1, 4, 8, 11, 13, 99)), 0, chance.randrange(64))
    lap = chance.choice((AVAILABLE_MARK, AVAILABLE_MARK, USED_MARK))
    end = chance.randrange(guest.entries + 1)
    for table, count in ((INDIRECT_TABLE, 64), (TABLE, guest.entries)):
        for at in range(count):
            address = GUEST_BASE + chance.choice((0, INDIRECT_TABLE, 0x20000, chance.randrange(MEMORY_BYTES + 64)))
            length = chance.choice((0, 1, 16, 512, 4096, 1024, chance.randrange(1 << 20)))
            flags = chance.choice((0, NEXT, NEXT, WRITE, NEXT | WRITE, INDIRECT_FLAG, chance.randrange(1 << 16)))
            if table == TABLE:
                flags |= lap if at < end else 0
            struct.pack_into("<QIHH", guest.memory, table + 16 * at, address, length, chance.randrange(70), flags)
