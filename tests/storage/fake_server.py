"""A volume server of 150 lines for tests: one client, one bytearray per volume, stepped by hand or by a thread.

It speaks the ABI as the real one does, so far as the client needs that, and lies on demand: ``answer_control`` and
``answer_entry`` may be replaced by a test. ``is_holding`` keeps ring entries unanswered.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shm_server.abi import control, layout, ring, segment
from shm_server.abi.doorbell import Doorbell


class FakeServer:
    def __init__(self, path: Path, *, completion_entries: int = 32) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(8)
        self.listener.setblocking(False)
        self.volumes: dict[str, bytearray] = {}
        self.handles: dict[int, str] = {}
        self.epochs: dict[int, int] = {}
        self.seen: list[control.Request] = []
        self.entries: list[tuple[int, ...]] = []  # as they came, heads only
        self.is_holding = False
        self._completion_entries = completion_entries
        self._held: list[tuple[int, ...]] = []
        self._client: socket.socket | None = None
        self._reader = control.RequestReader()
        self._rings: tuple[ring.SubmissionConsumer, ring.CompletionProducer] | None = None
        self.bells: tuple[Doorbell, Doorbell] | None = None

    # One turn ----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Everything that can be done without waiting."""
        if self._client is None:
            try:
                self._client, _ = self.listener.accept()
                self._client.setblocking(False)
            except BlockingIOError:
                return
        try:
            data = self._client.recv(65536)
        except BlockingIOError:
            data = None
        if data is not None:
            if not data:
                self.drop()
                return
            for request in self._reader.feed(data):
                self.seen.append(request)
                self.answer_control(request)
        self.serve_ring()

    def serve_ring(self) -> None:
        if self._rings is None:
            return
        submissions, completions = self._rings
        entries = submissions.peek(1024)
        submissions.advance(len(entries))
        self.entries += entries
        self._held += entries
        if self.is_holding:
            return
        held, self._held = self._held, []
        for entry in held:
            if entry[0] != layout.Opcode.CONTINUATION:
                self.answer_entry(entry)
        if completions.publish():
            assert self.bells is not None
            self.bells[1].ring()

    # Answers -----------------------------------------------------------------------------------------------------

    def send(self, message: control.Message, descriptors: list[int] | None = None) -> None:
        self.send_raw(control.encode(message), descriptors)

    def send_raw(self, data: bytes, descriptors: list[int] | None = None) -> None:
        assert self._client is not None
        socket.send_fds(self._client, [data], descriptors or [])

    def info(self, name: str) -> control.VolumeInfo:
        return control.VolumeInfo(name, uuid.uuid5(uuid.NAMESPACE_DNS, name).hex, len(self.volumes[name]), 0, 0, True)

    def answer_control(self, request: control.Request) -> None:
        match request:
            case control.Hello(id):
                self.send(control.Welcome(id, layout.ABI_VERSION, "instance", os.getpid(), "pool"))
            case control.Attach(id, segment_bytes, entries):
                self.attach(id, segment_bytes // layout.SLOT_BYTES, entries)
            case control.Create(id, name, size):
                self.volumes[name] = bytearray(size)
                self.send(control.Volume(id, self.info(name)))
            case control.Stat(id, name) if name in self.volumes:
                self.send(control.Volume(id, self.info(name)))
            case control.Open(id, name) if name in self.volumes:
                handle = len(self.handles) + 1
                self.handles[handle] = name
                self.epochs[handle] = 7
                self.send(control.Opened(id, handle, 7, self.info(name)))
            case control.Subscribe(id) | control.List(id):
                self.send(control.Volumes(id, [self.info(name) for name in self.volumes]))
            case control.Close(id) | control.Remove(id):
                self.send(control.Done(id))
            case control.Ack():
                pass
            case _:
                self.send(control.Failed(request.id, errno.ENOENT, "not here"))

    def attach(self, number: int, slots: int, entries: int) -> None:
        slot_fd = segment.create_slots(slots)
        ring_fd = segment.create_rings(entries, self._completion_entries, layout.SLOT_BYTES, slots)
        self.memory = memoryview(segment.map_slots(slot_fd, slots, layout.SLOT_BYTES))
        self.ring_memory = memoryview(segment.map_rings(ring_fd, entries, self._completion_entries))
        self._rings = (
            ring.SubmissionConsumer(self.ring_memory, entries),
            ring.CompletionProducer(self.ring_memory, entries, self._completion_entries),
        )
        self.bells = Doorbell(), Doorbell()
        self.send(
            control.Attached(number, layout.SLOT_BYTES, slots, entries, self._completion_entries),
            [slot_fd, ring_fd, self.bells[0].fileno(), self.bells[1].fileno()],
        )
        os.close(slot_fd)
        os.close(ring_fd)

    def answer_entry(self, entry: tuple[int, ...]) -> None:
        opcode, _, _, handle, epoch, _, offset, length, tag, slot, start, part_length = entry[:12]
        number = done = 0
        data = self.volumes[self.handles[handle]]
        at = slot * layout.SLOT_BYTES + start
        if opcode == layout.Opcode.FENCE:
            self.epochs[handle] = epoch
        elif epoch != self.epochs[handle]:
            number = errno.ECANCELED
        elif opcode == layout.Opcode.READ:
            done = max(0, min(length, len(data) - offset))
            self.memory[at : at + done] = data[offset : offset + done]
        elif offset + length > len(data):
            number = errno.EFBIG
        elif opcode == layout.Opcode.WRITE:
            data[offset : offset + length] = self.memory[at : at + part_length]
            done = length
        self.complete(tag, number, done)

    def complete(self, tag: int, number: int, done: int) -> None:
        assert self._rings is not None
        self._rings[1].push(tag, number, done, 0)

    # Its life ----------------------------------------------------------------------------------------------------

    def drop(self) -> None:
        """As if we had died: the client sees EOF."""
        if self._client is not None:
            self._client.close()
        self._client = self._rings = None
        self._held.clear()
        self._reader = control.RequestReader()

    def close(self) -> None:
        self.drop()
        self.listener.close()
        for bell in self.bells or ():
            bell.close()

    @contextmanager
    def running(self) -> Iterator[FakeServer]:
        """Step in a thread (for callers that block)."""
        stop = threading.Event()

        def run() -> None:
            while not stop.is_set():
                self.step()
                waits = [self.listener if self._client is None else self._client]
                select.select(waits, [], [], 0.001)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join()
