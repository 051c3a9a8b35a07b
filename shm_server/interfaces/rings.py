"""What the two kinds of ring have in common for whoever serves them, and no more than that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from shm_server.interfaces.chains import Chain
from shm_server.interfaces.guest_memory import GuestMemory
from shm_server.interfaces.inflight import Inflight

if TYPE_CHECKING:
    from shm_server.interfaces.virtqueue import Virtqueue


class Ring(ABC):
    """A queue that is started. The guest is trusted in nothing: what can't be is a ProtocolError."""

    def __init__(self, queue: Virtqueue) -> None:
        self.queue = queue
        self.entries = queue.entries
        self.in_flight = 0
        self.is_active = False  # the guest's kicks are silenced: look at the ring every turn
        self.has_pending = False  # there is something for ``publish``

    @property
    @abstractmethod
    def base(self) -> int:
        """Where it stands, in the words of GET_VRING_BASE."""

    @abstractmethod
    def resolve(self, memory: GuestMemory, addresses: tuple[int, int, int]) -> None:
        """Find its parts in memory (descriptors, what the device writes, what the driver writes)."""

    @abstractmethod
    def keep_track(self, inflight: Inflight) -> None:
        """Note what is under way there; what is noted already is done again, before anything else."""

    @abstractmethod
    def waiting(self) -> int:
        """Is there something made available and not taken?"""

    @abstractmethod
    def take(self, memory: GuestMemory, limit: int) -> list[Chain]:
        """At most ``limit`` requests."""

    @abstractmethod
    def put(self, chain: Chain, written_bytes: int) -> None:
        """``chain`` is used; ``publish`` shows it."""

    @abstractmethod
    def publish(self) -> None:
        """Show the guest what is used, and call it where it wants that."""

    @abstractmethod
    def arm(self) -> bool:
        """Ask for a kick at the next entry. False: there is one already."""

    def forget(self) -> None:
        """One of what is under way can't be shown any more."""
        self.in_flight -= 1
