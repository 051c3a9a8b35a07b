"""A volume and a pool of buffers in ordinary memory: everything above the block port can be tested without a server.

    pool = MemoryPool()                                   # 4 MiB in slots of 64 KiB
    device = MemoryDevice(1 << 20)
    buffer = pool.allocate(4096)
    device.submit(block.Request(block.Operation.READ, 0, 4096, buffer, done=on_done))
    device.run()                                          # now it is done, and on_done was called

Nothing completes by itself: ``submit`` puts requests aside, ``run`` works and completes them in order, with those that
their ``done`` submits in turn; ``complete`` takes one, so that a test chooses the order. ``fail_next`` and ``hold``
stand for a bad disk and a slow one. As with the real server, a request that ``hold`` has caught is *started*: a fence
waits for it and does not discard it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from iscsi_ovs import block
from iscsi_ovs.block import Error, Operation
from iscsi_ovs.storage.slots import SlotPool

DEFAULT_SLOT_BYTES = 64 * 1024
DEFAULT_SLOTS = 64


class MemoryPool(SlotPool):
    """Implements block.Pool over a bytearray: the same slots as those of a shared segment."""

    def __init__(self, slots: int = DEFAULT_SLOTS, slot_bytes: int = DEFAULT_SLOT_BYTES) -> None:
        super().__init__(memoryview(bytearray(slots * slot_bytes)), slot_bytes)

    @property
    def is_whole(self) -> bool:
        """True when every slot is free again: the leak check at the end of a test."""
        return self.free_slots == self.capacity_slots and self.reserved_slots == 0


class MemoryDevice:
    """Implements block.Device over ``data``, a bytearray that tests may look into and change.

    ``log`` keeps every request that was worked, in that order.
    """

    def __init__(
        self,
        size_bytes: int,
        *,
        logical_block_bytes: int = 512,
        physical_block_bytes: int = 4096,
        features: block.Features | None = None,
    ) -> None:
        self.data = bytearray(size_bytes)
        self.geometry = block.Geometry(size_bytes, logical_block_bytes, physical_block_bytes)
        self.features = features or block.Features()
        self.log: list[block.Request] = []
        self.flushed = bytearray(size_bytes)  # what a power cut would leave
        self._queue: deque[block.Request] = deque()
        self._held: deque[block.Request] = deque()
        self._cancelled: deque[block.Request] = deque()
        self._fences: list[Callable[[], None]] = []
        self._faults: deque[tuple[Error, Operation | None]] = deque()
        self._is_holding = False

    # block.Device -----------------------------------------------------------------------------------------------

    def submit(self, request: block.Request) -> None:
        """Put a request aside until ``run`` or ``complete``."""
        self._queue.append(request)

    def fence(self, done: Callable[[], None]) -> None:
        """Cancel what is not started, and call ``done`` when what is held has completed; both in the next ``run``."""
        while self._queue:
            self._cancelled.append(self._queue.popleft())
        self._fences.append(done)

    # What tests do ----------------------------------------------------------------------------------------------

    @property
    def pending(self) -> list[block.Request]:
        """Requests that are submitted and not started, in order."""
        return list(self._queue)

    @property
    def held(self) -> list[block.Request]:
        """Requests that are started and that ``hold`` keeps from completing."""
        return list(self._held)

    def fail_next(self, error: Error, operation: Operation | None = None) -> None:
        """The next request (of ``operation``, if given) completes with this error and does nothing. Calls add up."""
        self._faults.append((error, operation))

    def hold(self) -> None:
        """Requests start but do not complete, until ``let_go``."""
        self._is_holding = True

    def let_go(self) -> None:
        """The disk is quick again: what is held completes in the next ``run``."""
        self._is_holding = False

    def complete(self, request: block.Request) -> block.Completion:
        """Work and complete this one now, out of turn; held ones too."""
        queue = self._held if any(each is request for each in self._held) else self._queue
        at = next(number for number, each in enumerate(queue) if each is request)
        del queue[at]
        completion = self._work(request)
        self._tell(completion)
        self._pass_fences()
        return completion

    def run(self) -> list[block.Completion]:
        """Work everything that is there, and what it brings, until nothing is left or only held requests are."""
        completions = []
        while True:
            if self._cancelled:
                completion = block.Completion(self._cancelled.popleft(), Error.CANCELLED, 0)
            elif self._held and not self._is_holding:
                completion = self._work(self._held.popleft())
            elif self._queue:
                request = self._queue.popleft()
                if self._is_holding:
                    self._held.append(request)
                    continue
                completion = self._work(request)
            else:
                break
            completions.append(completion)
            self._tell(completion)
        self._pass_fences()
        return completions

    def resize(self, size_bytes: int) -> block.Geometry:
        """Grow (or, as no volume may, shrink); the caller tells the logical unit of the new geometry."""
        old = self.geometry
        for image in (self.data, self.flushed):
            del image[size_bytes:]
            image.extend(bytes(size_bytes - len(image)))
        self.geometry = block.Geometry(
            size_bytes, old.logical_block_bytes, old.physical_block_bytes, old.generation + 1
        )
        return self.geometry

    # Inside -----------------------------------------------------------------------------------------------------

    def _tell(self, completion: block.Completion) -> None:
        if completion.request.done is not None:
            completion.request.done(completion)

    def _pass_fences(self) -> None:
        while self._fences and not self._held and not self._cancelled:
            self._fences.pop(0)()

    def _fault(self, request: block.Request) -> Error | None:
        for number, (error, operation) in enumerate(self._faults):
            if operation is None or operation == request.operation:
                del self._faults[number]
                return error
        return None

    def _work(self, request: block.Request) -> block.Completion:
        self.log.append(request)
        error = self._fault(request)
        if error is not None:
            return block.Completion(request, error, 0)
        start, stop = request.offset_bytes, request.offset_bytes + request.length_bytes
        if request.operation is Operation.READ:
            return self._read(request, start, min(stop, len(self.data)))
        if request.operation is Operation.EXTENTS:  # nothing is ever unallocated here
            return block.Completion(request, None, request.length_bytes, 1)
        if request.operation in (Operation.FLUSH, Operation.FENCE):
            self.flushed[:] = self.data
            return block.Completion(request, None, 0)
        if request.operation is not Operation.COMPARE and not self.features.can_write:
            return block.Completion(request, Error.READ_ONLY, 0)
        if stop > len(self.data):  # "a write across the end fails whole"
            return block.Completion(request, Error.OUT_OF_RANGE, 0)
        if not self._is_supported(request):
            return block.Completion(request, Error.UNSUPPORTED, 0)
        if request.operation in (Operation.COMPARE, Operation.COMPARE_AND_WRITE):
            differs = self._first_difference(request)
            if differs is not None:
                return block.Completion(request, Error.MISCOMPARE, 0, differs)
            if request.operation is Operation.COMPARE:
                return block.Completion(request, None, request.length_bytes)
        if request.operation is Operation.COPY:
            assert isinstance(request.source, MemoryDevice)
            if request.source_offset_bytes + request.length_bytes > len(request.source.data):
                return block.Completion(request, Error.OUT_OF_RANGE, 0)
        self.data[start:stop] = self._new_content(request)
        if request.fua:
            self.flushed[start:stop] = self.data[start:stop]
        return block.Completion(request, None, request.length_bytes)

    def _read(self, request: block.Request, start: int, stop: int) -> block.Completion:
        """Short where it goes across the end."""
        assert request.buffer is not None
        for view in request.buffer.views(0, max(stop - start, 0)):
            view[:] = self.data[start : start + len(view)]
            start += len(view)
        return block.Completion(request, None, max(stop - request.offset_bytes, 0))

    def _is_supported(self, request: block.Request) -> bool:
        features, operation = self.features, request.operation
        if operation is Operation.WRITE_ATOMIC:
            return request.length_bytes <= features.max_atomic_write_bytes
        if operation in (Operation.COMPARE, Operation.COMPARE_AND_WRITE, Operation.OR_WRITE):
            return features.can_compare
        return operation is not Operation.COPY or features.can_copy

    def _first_difference(self, request: block.Request) -> int | None:
        there = self.data[request.offset_bytes : request.offset_bytes + request.length_bytes]
        expected = _payload(request, 0, request.pattern_bytes or request.length_bytes)
        if request.pattern_bytes:
            expected *= len(there) // len(expected)
        return next((at for at in range(len(there)) if expected and there[at] != expected[at]), None)

    def _new_content(self, request: block.Request) -> bytes:
        length = request.length_bytes
        if request.operation in (Operation.WRITE, Operation.WRITE_ATOMIC):
            return _payload(request, 0, length)
        if request.operation is Operation.COMPARE_AND_WRITE:
            return _payload(request, length, 2 * length)
        if request.operation is Operation.OR_WRITE:
            there = self.data[request.offset_bytes : request.offset_bytes + length]
            return bytes(old | new for old, new in zip(there, _payload(request, 0, length), strict=True))
        if request.operation is Operation.COPY:
            assert isinstance(request.source, MemoryDevice)
            return bytes(request.source.data[request.source_offset_bytes : request.source_offset_bytes + length])
        if request.operation is Operation.WRITE_SAME:
            return _payload(request, 0, request.pattern_bytes) * (length // request.pattern_bytes)
        return bytes(length)  # DISCARD, WRITE_ZEROES


def _payload(request: block.Request, start: int, stop: int) -> bytes:
    return b"" if request.buffer is None else b"".join(request.buffer.views(start, stop))
