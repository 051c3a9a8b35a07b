"""A packed ring in a memfd: what is taken, what is shown, when the guest is called, what a successor finds."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from shm_server.interfaces import inflight, packed, words
from shm_server.interfaces.inflight import Inflight
from shm_server.interfaces.messages import ProtocolError
from shm_server.interfaces.packed_inflight import PackedInflight
from tests.shm_server.interfaces.guests import DEVICE, DRIVER, ENTRIES, GUEST, SIZE, Guest

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAILABLE, USED = 1 << 7, 1 << 15
DISABLE, AT_DESCRIPTOR = 1, 2
BEFORE_THE_END = 5 | 1 << 15 | 5 << 16 | 1 << 31  # a base three slots before the ring's end, in the first lap


class PackedGuest(Guest):
    """Positions are counted from the first lap on, whose wrap counter is 1."""

    def __init__(self, base: int | None = None, *, is_sealed: bool = False) -> None:
        super().__init__(is_packed=True, base=base, is_sealed=is_sealed)

    def offer(self, position: int, *heads: int, length: int = 16, flags: int = 0) -> None:
        """Each a buffer of one descriptor."""
        for number, head in enumerate(heads):
            self.descriptor(position + number, GUEST, length, head, flags)

    def descriptor(self, position: int, address: int, length: int, buffer_id: int, flags: int) -> None:
        marks = USED if position // ENTRIES % 2 else AVAILABLE
        self.put(16 * (position % ENTRIES), "<QIHH", address, length, buffer_id, flags | marks)

    def used(self, position: int) -> tuple[int, int] | None:
        """ID and length, where the guest finds a used descriptor."""
        length, buffer_id, flags = self.get(16 * (position % ENTRIES) + 8, "<IHH")
        marks = 0 if position // ENTRIES % 2 else AVAILABLE | USED
        return (buffer_id, length) if flags & (AVAILABLE | USED) == marks and flags & WRITE else None

    def track(self, fd: int) -> None:
        size = inflight.ring_bytes(ENTRIES, is_packed=True)
        self.ring.keep_track(Inflight(fd, size, 0, 1, ENTRIES, is_packed=True))

    def restart(self) -> None:
        """The next server, which was told of no position."""
        self.queue.stop()
        self.queue.reset()
        self.queue.set_features(is_packed=True, has_event_index=False, has_indirect=True)
        self.start()


@pytest.fixture(params=[False, True], ids=["", "sealed"])
def guest(request: pytest.FixtureRequest) -> Iterator[PackedGuest]:
    made = PackedGuest(is_sealed=request.param)
    yield made
    made.close()


@pytest.fixture
def unsealed() -> Iterator[PackedGuest]:
    """Its memory may shrink: words of it are changed by system calls."""
    made = PackedGuest()
    yield made
    made.close()


@pytest.fixture
def noted() -> Iterator[int]:
    """Memory for what is in flight."""
    fd = inflight.create(1, ENTRIES, is_packed=True)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("is_sealed", [False, True], ids=["", "sealed"])
@pytest.mark.parametrize("count", range(1, ENTRIES + 1))
def test_a_batch_is_shown_whole(count: int, is_sealed: bool) -> None:
    """Of every size, across the ring's end, in another order than it was taken; and the next lap begins behind it."""
    guest = PackedGuest(BEFORE_THE_END, is_sealed=is_sealed)
    guest.offer(5, *range(100, 100 + count))
    assert guest.ring.waiting()
    taken = guest.ring.take(guest.memory, ENTRIES)
    assert [chain.head for chain in taken] == list(range(100, 100 + count))
    assert not guest.ring.waiting()
    for chain in reversed(taken):
        guest.ring.put(chain, 7)
    assert [guest.used(5 + number) for number in range(count)] == [None] * count
    guest.ring.publish()
    assert [guest.used(5 + number) for number in range(count)] == [(100 + n, 7) for n in reversed(range(count))]
    assert guest.calls() == 1
    assert guest.ring.in_flight == 0
    assert not guest.ring.waiting()
    guest.offer(5 + count, 3)
    assert [chain.head for chain in guest.ring.take(guest.memory, 1)] == [3]
    guest.close()


def test_the_first_of_a_batch_is_shown_last(unsealed: PackedGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All others stand there before the one that the driver looks at."""
    unsealed.offer(0, 4, 5, 6)
    for chain in unsealed.ring.take(unsealed.memory, 3):
        unsealed.ring.put(chain, 1)
    seen = []
    add = words.add

    def look(address: int, bit: int) -> None:
        seen.append([unsealed.used(number) for number in range(3)])
        add(address, bit)

    monkeypatch.setattr(words, "add", look)
    unsealed.ring.publish()
    assert seen == [[None, (5, 1), (6, 1)]]


def test_chains(guest: PackedGuest) -> None:
    """A chain's ID stands in its last descriptor; its one used descriptor skips as many slots as it took."""
    guest.descriptor(0, GUEST, 16, 0, NEXT)
    guest.descriptor(1, GUEST + SIZE - 100, 300, 0, NEXT | WRITE)
    guest.descriptor(2, GUEST, 1, 9, WRITE)
    guest.descriptor(3, GUEST, 16, 7, 0)
    first, second = guest.ring.take(guest.memory, 8)
    assert (first.head, first.slots, second.head, second.slots) == (9, 3, 7, 1)
    assert [(start, length) for _, start, length in first.writable] == [(SIZE - 100, 100), (0, 200), (0, 1)]
    guest.ring.put(first, 301)
    guest.ring.put(second, 1)
    guest.ring.publish()
    assert (guest.used(0), guest.used(3)) == ((9, 301), (7, 1))
    assert guest.used(1) is None


def test_an_indirect_table(guest: PackedGuest) -> None:
    """Its descriptors follow one another; flags other than WRITE mean nothing there."""
    guest.put(0x4000, "<QIHH", GUEST, 16, 99, NEXT | INDIRECT)
    guest.put(0x4010, "<QIHH", GUEST + 16, 1, 99, WRITE)
    guest.descriptor(0, GUEST + 0x4000, 32, 5, INDIRECT)
    (chain,) = guest.ring.take(guest.memory, 8)
    assert (chain.head, chain.slots, len(chain.readable), len(chain.writable)) == (5, 1, 1, 1)


def test_a_front_end_without_wrap_counters(guest: PackedGuest) -> None:
    """A base of 0 is the second lap's beginning where the ring has been used, and the first's where it is fresh."""
    guest.queue.stop()
    guest.start(0)
    guest.offer(0, 1)
    assert [chain.head for chain in guest.ring.take(guest.memory, 1)] == [1]
    guest.queue.stop()
    for slot in range(ENTRIES):
        guest.put(16 * slot + 14, "<H", AVAILABLE | USED)  # used in the first lap
    guest.start(0)
    assert not guest.ring.waiting()
    guest.offer(ENTRIES, 2)
    assert [chain.head for chain in guest.ring.take(guest.memory, 1)] == [2]


def test_lies(guest: PackedGuest) -> None:
    """A chain longer than the ring, one whose part is not there, an indirect part of a chain, a position outside."""
    for position in range(ENTRIES):
        guest.descriptor(position, GUEST, 16, 0, NEXT)
    with pytest.raises(ProtocolError, match="longer than"):
        guest.ring.take(guest.memory, 8)
    guest.put(16 + 14, "<H", NEXT)
    guest.descriptor(2, GUEST, 16, 0, 0)
    with pytest.raises(ProtocolError, match="not available"):
        guest.ring.take(guest.memory, 8)
    guest.descriptor(1, GUEST, 16, 0, INDIRECT)
    with pytest.raises(ProtocolError, match="indirect"):
        guest.ring.take(guest.memory, 8)
    with pytest.raises(ProtocolError, match="begins at 8"):
        PackedGuest(8)


@pytest.mark.parametrize(
    ("position", "is_called"),
    [(4, False), (5, True), (6, True), (8, True), (9, False), (15, False), (16, False), (13, False)],
)
def test_calls_by_event_index(position: int, is_called: bool) -> None:
    """With EVENT_IDX the guest is called where the descriptor it asked for is used, and else not."""
    guest = PackedGuest(BEFORE_THE_END)
    guest.queue.has_event_index = True
    guest.put(DRIVER, "<HH", position % ENTRIES | (position // ENTRIES + 1) % 2 << 15, AT_DESCRIPTOR)
    guest.offer(5, 1, 2, 3, 4)
    for chain in guest.ring.take(guest.memory, 8):
        guest.ring.put(chain, 1)
    guest.ring.publish()
    assert bool(guest.calls()) is is_called
    guest.close()


def test_calls_by_flag(guest: PackedGuest) -> None:
    """RING_EVENT_FLAGS_DISABLE keeps us silent."""
    guest.put(DRIVER, "<HH", 0, DISABLE)
    guest.offer(0, 0)
    (chain,) = guest.ring.take(guest.memory, 8)
    guest.ring.put(chain, 1)
    guest.ring.publish()
    assert guest.calls() == 0


def test_arming(guest: PackedGuest) -> None:
    """Before sleeping we say for which descriptor we want a kick; what came meanwhile keeps us awake."""
    guest.queue.has_event_index = guest.ring.is_active = True
    guest.offer(0, 0)
    assert not guest.ring.arm()
    guest.ring.take(guest.memory, 8)
    assert guest.ring.arm()
    assert not guest.ring.is_active
    assert guest.get(DEVICE, "<HH") == (1 | 1 << 15, AT_DESCRIPTOR)


def test_a_full_ring_under_way(guest: PackedGuest) -> None:
    """Descriptors of the lap before, still under way, are not taken for new ones."""
    guest.offer(0, *range(ENTRIES))
    taken = guest.ring.take(guest.memory, ENTRIES)
    for slot in range(ENTRIES):  # a driver that lies: as if they were of the next lap
        guest.put(16 * slot + 14, "<H", USED)
    assert not guest.ring.waiting()
    guest.ring.put(taken[3], 1)
    guest.ring.publish()
    assert not guest.ring.waiting()
    guest.offer(ENTRIES, 50)
    assert [chain.head for chain in guest.ring.take(guest.memory, ENTRIES)] == [50]


# After a death ------------------------------------------------------------------------------------------------------


class DiedError(Exception):
    pass


def die(*_: object) -> None:
    raise DiedError


DEATHS = {
    "before it is noted": (PackedInflight, "chain"),
    "before it is written": (packed.PackedRing, "_write_used"),
    "before it is shown": (words, "add"),
    "when it is shown": (PackedInflight, "let_go"),
    "before the last word": (PackedInflight, "commit"),
}


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("batch", [(0,), (2, 0), (3, 1, 2, 0)], ids=str)
def test_death_in_the_middle_of_a_batch(
    unsealed: PackedGuest, noted: int, monkeypatch: pytest.MonkeyPatch, death: str, batch: tuple[int, ...]
) -> None:
    """A batch that the ring shows is over, one that it does not show is done again; each is answered once."""
    unsealed.track(noted)
    unsealed.descriptor(0, GUEST, 16, 0, NEXT)
    unsealed.descriptor(1, GUEST, 1, 10, WRITE)
    unsealed.offer(2, 11, 12, 13, 14)
    taken = unsealed.ring.take(unsealed.memory, ENTRIES)
    for number in batch:
        unsealed.ring.put(taken[number], 1)
    with monkeypatch.context() as patch:
        patch.setattr(*DEATHS[death], die)
        with pytest.raises(DiedError):
            unsealed.ring.publish()
    is_shown = death in ("when it is shown", "before the last word")
    unsealed.restart()
    unsealed.track(noted)
    again = unsealed.ring.take(unsealed.memory, ENTRIES)
    expected = [10 + number for number in range(5) if not is_shown or number not in batch]
    assert [chain.head for chain in again] == expected
    assert not unsealed.ring.waiting()
    shown = [10 + number for number in batch] if is_shown else []
    for chain in reversed(again):
        unsealed.ring.put(chain, 1)
        unsealed.ring.publish()
        shown.append(chain.head)
        position = 0
        for head in shown:
            assert unsealed.used(position) == (head, 1)
            position += 2 if head == 10 else 1
        assert position == 6 or unsealed.used(position) is None
    unsealed.offer(6, 1, 2, 3)
    assert [chain.head for chain in unsealed.ring.take(unsealed.memory, ENTRIES)] == [1, 2, 3]


def test_death_while_it_takes(guest: PackedGuest, noted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not noted wholly is found in the ring again, in its place."""
    guest.track(noted)
    guest.offer(0, 1, 2, 3)
    guest.ring.take(guest.memory, 1)
    calls = []
    pack = packed.PackedInflight._set

    def once(self: PackedInflight, entry: int, field: int, value: int) -> None:
        calls.append(entry)
        if len(calls) == 2:
            raise DiedError
        pack(self, entry, field, value)

    with monkeypatch.context() as patch:
        patch.setattr(PackedInflight, "_set", once)
        with pytest.raises(DiedError):
            guest.ring.take(guest.memory, 2)
    guest.restart()
    guest.track(noted)
    heads = []
    while chains := guest.ring.take(guest.memory, ENTRIES):
        heads += [chain.head for chain in chains]
    assert heads == [1, 2, 3]


@pytest.mark.parametrize("field", range(12, 22))
def test_scribbles(guest: PackedGuest, noted: int, field: int) -> None:
    """Whatever a front end writes into that memory, no index of it leads out of it."""
    guest.track(noted)
    guest.offer(0, *range(ENTRIES))
    guest.ring.take(guest.memory, ENTRIES)
    os.pwrite(noted, b"\xff", field)
    for entry in range(ENTRIES):
        os.pwrite(noted, b"\x01\xff\xff\xff\xff\xff\x09", 32 + 32 * entry)
    guest.restart()
    with pytest.raises(ProtocolError):
        guest.track(noted)


def test_lists_that_loop(guest: PackedGuest, noted: int) -> None:
    """A list of more descriptors than the ring has is not followed: each of its entries may say 65535 of them."""
    guest.track(noted)
    for entry in range(ENTRIES):
        os.pwrite(noted, struct.pack("<BxHHHQ", 1, entry, entry, 0xFFFF, entry), 32 + 32 * entry)
    os.pwrite(noted, struct.pack("<HH", ENTRIES, ENTRIES), 12)
    guest.restart()
    with pytest.raises(ProtocolError, match="more descriptors in flight"):
        guest.track(noted)


def test_a_counter_at_its_end(guest: PackedGuest, noted: int) -> None:
    """What a front end wrote there is no number that can't be counted on from."""
    guest.track(noted)
    guest.offer(0, 1)
    guest.ring.take(guest.memory, 1)
    os.pwrite(noted, b"\xff" * 8, 32 + 8)
    guest.restart()
    guest.track(noted)
    guest.offer(1, 2)
    assert [chain.head for _ in range(2) for chain in guest.ring.take(guest.memory, 1)] == [1, 2]


def test_memory_of_the_other_kind(guest: PackedGuest, noted: int) -> None:
    """What split rings note has another shape, and is too small."""
    with pytest.raises(ProtocolError, match="other kind"):
        guest.ring.keep_track(Inflight(noted, inflight.ring_bytes(ENTRIES), 0, 1, ENTRIES))
