"""A ring in a memfd: what is taken, what is shown, and when the guest is called."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from shm_server.interfaces import words
from shm_server.interfaces.guest_memory import Region
from shm_server.interfaces.messages import ProtocolError
from tests.shm_server.interfaces.guests import DEVICE, DRIVER, ENTRIES, GUEST, SIZE, Guest


class SplitGuest(Guest):
    def __init__(self, used_index: int = 0, *, is_sealed: bool = False) -> None:
        super().__init__(is_packed=False, is_sealed=is_sealed)
        if used_index:
            self.queue.stop()
            self.put(DEVICE, "<HH", 0, used_index)
            self.start(used_index)

    def offer(self, index: int, *heads: int) -> None:
        for number, head in enumerate(heads):
            self.put(DRIVER + 4 + 2 * ((index + number) % ENTRIES), "<H", head)
        self.put(DRIVER + 2, "<H", (index + len(heads)) & 0xFFFF)


@pytest.fixture(params=[False, True], ids=["", "sealed"])
def guest(request: pytest.FixtureRequest) -> Iterator[SplitGuest]:
    made = SplitGuest(is_sealed=request.param)
    yield made
    made.close()


@pytest.fixture
def unsealed() -> Iterator[SplitGuest]:
    """Its memory may shrink: words of it are changed by system calls."""
    made = SplitGuest()
    yield made
    made.close()


def test_a_buffer_across_two_regions(guest: SplitGuest) -> None:
    """A descriptor may run from one region into the next; one that runs beyond the last is refused."""
    guest.put(0, "<QIHH", GUEST + SIZE - 100, 300, 2, 0)
    guest.offer(0, 0)
    (chain,) = guest.ring.take(guest.memory, 8)
    assert [(start, length) for _, start, length in chain.writable] == [(SIZE - 100, 100), (0, 200)]
    guest.put(0, "<QIHH", GUEST + 2 * SIZE - 100, 101, 2, 0)
    guest.offer(1, 0)
    with pytest.raises(ProtocolError, match="outside"):
        guest.ring.take(guest.memory, 8)


@pytest.mark.parametrize("is_sealed", [False, True], ids=["", "sealed"])
@pytest.mark.parametrize("count", range(1, ENTRIES + 1))
def test_a_batch_is_shown_whole(count: int, is_sealed: bool) -> None:
    """Of every size, across the ring's end and that of the 16 bits of its index; flags beside it stay as they are."""
    guest = SplitGuest(used_index=0xFFFC, is_sealed=is_sealed)
    queue = guest.ring
    for head in range(ENTRIES):
        guest.put(16 * head, "<QIHH", GUEST, 16, 0, 0)
    guest.offer(0xFFFC, *range(count))
    taken = queue.take(guest.memory, ENTRIES)
    assert [chain.head for chain in taken] == list(range(count))
    for chain in reversed(taken):
        queue.put(chain, 7)
    queue.publish()
    assert guest.get(DEVICE, "<HH") == (0, (0xFFFC + count) & 0xFFFF)
    shown = [guest.get(DEVICE + 4 + 8 * ((0xFFFC + number) % ENTRIES), "<II") for number in range(count)]
    assert shown == [(head, 7) for head in reversed(range(count))]
    assert queue.in_flight == 0
    assert guest.calls() == 1
    guest.close()


@pytest.mark.parametrize(
    ("event", "is_called"), [(0, True), (1, True), (2, True), (3, False), (0xFFFF, False), (100, False)]
)
def test_calls_by_event_index(guest: SplitGuest, event: int, is_called: bool) -> None:
    """With EVENT_IDX the guest is called where the used index passes what it asked for, and else not."""
    queue = guest.ring
    guest.queue.has_event_index = True
    guest.put(DRIVER + 4 + 2 * ENTRIES, "<H", event)
    for head in range(3):
        guest.put(16 * head, "<QIHH", GUEST, 16, 0, 0)
    guest.offer(0, 0, 1, 2)
    for chain in queue.take(guest.memory, 8):
        queue.put(chain, 1)
    queue.publish()
    assert bool(guest.calls()) is is_called


def test_calls_by_flag(guest: SplitGuest) -> None:
    """Without it, VIRTQ_AVAIL_F_NO_INTERRUPT keeps us silent."""
    guest.put(0, "<QIHH", GUEST, 16, 0, 0)
    guest.put(DRIVER, "<H", 1)
    guest.offer(0, 0)
    (chain,) = guest.ring.take(guest.memory, 8)
    guest.ring.put(chain, 1)
    guest.ring.publish()
    assert guest.calls() == 0


def test_arming(guest: SplitGuest) -> None:
    """Before sleeping avail_event says where we are; what came meanwhile keeps us awake."""
    queue = guest.ring
    guest.queue.has_event_index = queue.is_active = True
    guest.put(0, "<QIHH", GUEST, 16, 0, 0)
    guest.offer(0, 0)
    assert not queue.arm()
    queue.take(guest.memory, 8)
    assert queue.arm()
    assert not queue.is_active
    assert guest.get(DEVICE + 4 + 8 * ENTRIES, "<H") == (1,)


def test_an_index_copied_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of two moments of the available index, which the kernel may give us, are looked at again."""
    guest = SplitGuest(used_index=0x00FF)
    moments = [b"\xff\x01", *[b"\x00\x01"] * 3]  # 0x00FF becomes 0x0100, and the low byte was copied first
    monkeypatch.setattr(Region, "read", lambda self, start, length: moments.pop(0))
    assert guest.ring.waiting() == 1
    guest.close()


def test_a_word_is_added_to(unsealed: SplitGuest) -> None:
    """One bit of a word that others look at; a word that is not there is EFAULT, and no SIGBUS."""
    region = unsealed.memory.regions[0]
    unsealed.put(0x3000, "<I", 0xFFFF_0001)
    words.add(region.address + 0x3000, 16)
    assert unsealed.get(0x3000, "<I") == (0x0000_0001,)
    words.add(region.address + 0x3000, 31)
    assert unsealed.get(0x3000, "<I") == (0x8000_0001,)
    os.ftruncate(unsealed.fd, 0)
    with pytest.raises(OSError, match="Bad address"):
        words.add(region.address + 0x3000, 16)
