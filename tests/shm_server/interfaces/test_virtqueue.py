"""A ring in a memfd: what is taken, what is shown, and when the guest is called."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from shm_server.interfaces import words
from shm_server.interfaces.guest_memory import GuestMemory, Region
from shm_server.interfaces.messages import ProtocolError, RegionPlace
from shm_server.interfaces.virtqueue import Virtqueue

SIZE, GUEST, USER = 1 << 20, 0x4000_0000, 0x7000_0000_0000
AVAILABLE, USED, ENTRIES = 0x1000, 0x2000, 8


class Guest:
    def __init__(self) -> None:
        self.fd = os.memfd_create("guest")
        os.ftruncate(self.fd, 2 * SIZE)
        self.memory = GuestMemory(trusts_unsealed=True)
        # two regions side by side for the guest, of one file, apart in the front end
        places = [RegionPlace(GUEST, SIZE, USER, 0), RegionPlace(GUEST + SIZE, SIZE, 2 * USER, SIZE)]
        self.memory.replace(places, [os.dup(self.fd), os.dup(self.fd)])
        self.queue = Virtqueue(0)
        self.queue.set_entries(ENTRIES)
        self.queue.addresses = (USER, USER + USED, USER + AVAILABLE)
        self.queue.kick_fd = os.eventfd(0)
        self.queue.call_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.queue.is_enabled = True
        self.queue.resolve(self.memory)

    def put(self, offset: int, layout: str, *values: int) -> None:
        os.pwrite(self.fd, struct.pack(layout, *values), offset)

    def get(self, offset: int, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, os.pread(self.fd, struct.calcsize(layout), offset))

    def offer(self, index: int, *heads: int) -> None:
        for number, head in enumerate(heads):
            self.put(AVAILABLE + 4 + 2 * ((index + number) % ENTRIES), "<H", head)
        self.put(AVAILABLE + 2, "<H", (index + len(heads)) & 0xFFFF)

    def calls(self) -> int:
        assert self.queue.call_fd >= 0
        try:
            return os.eventfd_read(self.queue.call_fd)
        except BlockingIOError:
            return 0


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest()
    yield made
    made.queue.stop()
    made.memory.close()
    os.close(made.fd)


def test_a_buffer_across_two_regions(guest: Guest) -> None:
    """A descriptor may run from one region into the next; one that runs beyond the last is refused."""
    guest.put(0, "<QIHH", GUEST + SIZE - 100, 300, 2, 0)
    guest.offer(0, 0)
    (chain,) = guest.queue.take(guest.memory, 8)
    assert [(start, length) for _, start, length in chain.writable] == [(SIZE - 100, 100), (0, 200)]
    guest.put(0, "<QIHH", GUEST + 2 * SIZE - 100, 101, 2, 0)
    guest.offer(1, 0)
    with pytest.raises(ProtocolError, match="outside"):
        guest.queue.take(guest.memory, 8)


@pytest.mark.parametrize("count", range(1, ENTRIES + 1))
def test_a_batch_is_shown_whole(guest: Guest, count: int) -> None:
    """Of every size, across the ring's end and that of the 16 bits of its index; flags beside it stay as they are."""
    queue = guest.queue
    queue.last_available = 0xFFFC
    guest.put(USED, "<HH", 0, 0xFFFC)
    queue.resolve(guest.memory)
    for head in range(ENTRIES):
        guest.put(16 * head, "<QIHH", GUEST, 16, 0, 0)
    guest.offer(0xFFFC, *range(count))
    taken = queue.take(guest.memory, ENTRIES)
    assert [chain.head for chain in taken] == list(range(count))
    for chain in reversed(taken):
        queue.put(chain.head, 7)
    queue.publish()
    assert guest.get(USED, "<HH") == (0, (0xFFFC + count) & 0xFFFF)
    shown = [guest.get(USED + 4 + 8 * ((0xFFFC + number) % ENTRIES), "<II") for number in range(count)]
    assert shown == [(head, 7) for head in reversed(range(count))]
    assert queue.in_flight == 0
    assert guest.calls() == 1


@pytest.mark.parametrize(
    ("event", "is_called"), [(0, True), (1, True), (2, True), (3, False), (0xFFFF, False), (100, False)]
)
def test_calls_by_event_index(guest: Guest, event: int, is_called: bool) -> None:
    """With EVENT_IDX the guest is called where the used index passes what it asked for, and else not."""
    queue = guest.queue
    queue.has_event_index = True
    guest.put(AVAILABLE + 4 + 2 * ENTRIES, "<H", event)
    for head in range(3):
        guest.put(16 * head, "<QIHH", GUEST, 16, 0, 0)
    guest.offer(0, 0, 1, 2)
    for chain in queue.take(guest.memory, 8):
        queue.put(chain.head, 1)
    queue.publish()
    assert bool(guest.calls()) is is_called


def test_calls_by_flag(guest: Guest) -> None:
    """Without it, VIRTQ_AVAIL_F_NO_INTERRUPT keeps us silent."""
    guest.put(0, "<QIHH", GUEST, 16, 0, 0)
    guest.put(AVAILABLE, "<H", 1)
    guest.offer(0, 0)
    guest.queue.take(guest.memory, 8)
    guest.queue.put(0, 1)
    guest.queue.publish()
    assert guest.calls() == 0


def test_arming(guest: Guest) -> None:
    """Before sleeping avail_event says where we are; what came meanwhile keeps us awake."""
    queue = guest.queue
    queue.has_event_index = queue.is_active = True
    guest.put(0, "<QIHH", GUEST, 16, 0, 0)
    guest.offer(0, 0)
    assert not queue.arm()
    queue.take(guest.memory, 8)
    assert queue.arm()
    assert not queue.is_active
    assert guest.get(USED + 4 + 8 * ENTRIES, "<H") == (1,)


def test_an_index_copied_half(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of two moments of the available index, which the kernel may give us, are looked at again."""
    queue = guest.queue
    queue.last_available = 0x00FF
    moments = [b"\xff\x01", *[b"\x00\x01"] * 3]  # 0x00FF becomes 0x0100, and the low byte was copied first
    monkeypatch.setattr(Region, "read", lambda self, start, length: moments.pop(0))
    assert queue.waiting() == 1


def test_a_word_is_added_to(guest: Guest) -> None:
    """One bit of a word that others look at; a word that is not there is EFAULT, and no SIGBUS."""
    region = guest.memory.regions[0]
    guest.put(0x3000, "<I", 0xFFFF_0001)
    words.add(region.address + 0x3000, 16)
    assert guest.get(0x3000, "<I") == (0x0000_0001,)
    words.add(region.address + 0x3000, 31)
    assert guest.get(0x3000, "<I") == (0x8000_0001,)
    os.ftruncate(guest.fd, 0)
    with pytest.raises(OSError, match="Bad address"):
        words.add(region.address + 0x3000, 16)
