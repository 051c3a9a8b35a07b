"""What a connection has to send: headers, and views of shared memory beside them, in order.

Nothing is joined or copied: ``buffers()`` goes to one ``sendmsg``. A mark behind a piece is called when the kernel has
taken everything up to it: only then may the slots that lie in front of it be given back (CONTRACTS 2).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

IOV_MAX = 1024  # Linux's limit of buffers to one sendmsg


class Outbox:
    """The sending half of one connection."""

    def __init__(self) -> None:
        self._pieces: list[bytes | memoryview] = []
        self._marks: deque[tuple[int, Callable[[], None]]] = deque()
        self._queued_bytes = 0  # ever
        self._sent_bytes = 0  # ever

    @property
    def pending_bytes(self) -> int:
        return self._queued_bytes - self._sent_bytes

    @property
    def pending_pieces(self) -> int:
        return len(self._pieces)

    @property
    def pending_marks(self) -> int:
        """Buffers, about, that wait for the kernel."""
        return len(self._marks)

    @property
    def sent_bytes(self) -> int:
        """What the kernel has taken so far, in all."""
        return self._sent_bytes

    def put(self, piece: bytes | memoryview) -> None:
        """Send this next."""
        self._pieces.append(piece)
        self._queued_bytes += len(piece)

    def put_payload(
        self, header: bytes, views: list[memoryview], length: int, padding: bytes, release: Callable[[], None]
    ) -> None:
        """A header, ``length`` bytes of payload and its padding; ``release`` is a mark behind them."""
        pieces = self._pieces
        pieces.append(header)
        pieces += views
        if padding:
            pieces.append(padding)
        self._queued_bytes += len(header) + length + len(padding)
        self._marks.append((self._queued_bytes, release))

    def mark(self, callback: Callable[[], None]) -> None:
        """Call when all that was put so far has been taken by the kernel (or is thrown away)."""
        self._marks.append((self._queued_bytes, callback))

    def buffers(self) -> list[bytes | memoryview]:
        """What to send now, as one gather list."""
        pieces = self._pieces
        return pieces if len(pieces) <= IOV_MAX else pieces[:IOV_MAX]

    def sent(self, count: int) -> None:
        """The kernel took ``count`` bytes of buffers()."""
        self._sent_bytes += count
        if self._sent_bytes == self._queued_bytes:
            self._pieces = []
        else:
            pieces = self._pieces
            at = 0
            while count >= len(pieces[at]):
                count -= len(pieces[at])
                at += 1
            if count:
                pieces[at] = memoryview(pieces[at])[count:]
            del pieces[:at]
        marks = self._marks
        while marks and marks[0][0] <= self._sent_bytes:
            marks.popleft()[1]()

    def discard(self) -> None:
        """The connection is gone: everything that waited for the kernel is let go."""
        self._pieces = []
        self._sent_bytes = self._queued_bytes
        while self._marks:
            self._marks.popleft()[1]()
