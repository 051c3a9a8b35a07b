"""A small blocking client straight on the ABI, for tests: nothing between the test and the bytes."""

from __future__ import annotations

import mmap
import os
import re
import select
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from shm_server.abi import control, layout, ring, segment
from shm_server.abi.doorbell import Doorbell
from shm_server.abi.layout import Opcode

LIMIT_S = 20.0


class RefusedError(OSError):
    """The server answered Failed."""


class AbiClient:
    def __init__(self, socket_path: str | Path, words: str = "", *, hello: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(LIMIT_S)
        self.socket.connect(str(socket_path))
        self.reader = control.AnswerReader()
        self.events: list[control.Event] = []
        self.replies: list[control.Reply] = []
        self.descriptors: list[int] = []
        self.next_id = 0
        self.next_tag = 100
        self.done: dict[int, ring.Completion] = {}
        self.slots_map: mmap.mmap | None = None
        if hello:
            self.welcome = self.call(control.Hello(self.id(), layout.ABI_VERSION, words))

    # Control

    def id(self) -> int:
        self.next_id += 1
        return self.next_id

    def send(self, message: control.Message) -> None:
        self.socket.sendall(control.encode(message))

    def pump(self) -> None:
        """Read once."""
        data, descriptors, _, _ = socket.recv_fds(self.socket, 65536, 8)
        self.descriptors += descriptors
        if not data:
            raise ConnectionResetError("the server has closed the connection")
        for message in self.reader.feed(data):
            if hasattr(message, "sequence"):
                self.events.append(message)
            else:
                self.replies.append(message)

    def reply(self, number: int) -> control.Reply:
        while True:
            for reply in self.replies:
                if reply.id in (number, 0):
                    self.replies.remove(reply)
                    if isinstance(reply, control.Failed):
                        raise RefusedError(reply.errno, reply.message)
                    return reply
            self.pump()

    def event(self) -> control.Event:
        while not self.events:
            self.pump()
        return self.events.pop(0)

    def call(self, message):
        self.send(message)
        return self.reply(message.id)

    def is_closed_by_server(self) -> bool:
        try:
            while True:
                self.pump()
        except (ConnectionError, BrokenPipeError):
            return True

    def create(self, name: str = "demo", size: int = 1 << 24) -> control.VolumeInfo:
        return self.call(control.Create(self.id(), name, size)).info

    def attach(self, segment_bytes: int = 1 << 20, entries: int = 64) -> control.Attached:
        reply = self.call(control.Attach(self.id(), segment_bytes, entries))
        assert len(self.descriptors) == control.ATTACH_DESCRIPTORS
        self.slots_fd, self.rings_fd, submission, completion = self.descriptors
        self.submission_bell, self.completion_bell = Doorbell(submission), Doorbell(completion)
        self.slots_map = segment.map_slots(self.slots_fd, reply.slot_count, reply.slot_bytes)
        self.slots = memoryview(self.slots_map)
        self.rings_map = segment.map_rings(self.rings_fd, reply.submission_entries, reply.completion_entries)
        self.rings = memoryview(self.rings_map)
        self.words = self.rings[: layout.HEADER_BYTES].cast("I")
        self.producer = ring.SubmissionProducer(self.rings, reply.submission_entries)
        self.consumer = ring.CompletionConsumer(self.rings, reply.submission_entries, reply.completion_entries)
        self.attached = reply
        self.poll = select.poll()
        self.poll.register(completion, select.POLLIN)
        self.poll.register(self.socket, select.POLLHUP)
        return reply

    def open(self, name: str = "demo", access: str = "rw", owner: str = "", words: str = "") -> control.Opened:
        opened = self.call(control.Open(self.id(), name, access, owner, words))
        self.handle, self.epoch = opened.handle, opened.epoch
        return opened

    def close_handle(self, handle: int) -> None:
        self.call(control.Close(self.id(), handle))

    # Data

    def push(
        self,
        opcode: int,
        offset: int = 0,
        length: int = 0,
        parts: Sequence[ring.Part] = (),
        *,
        flags: int = 0,
        handle: int | None = None,
        epoch: int | None = None,
    ) -> int:
        self.next_tag += 1
        handle = self.handle if handle is None else handle
        epoch = self.epoch if epoch is None else epoch
        assert self.producer.has_room(ring.entries_needed(len(parts)))
        self.producer.push(opcode, flags, handle, epoch, offset, length, self.next_tag, parts)
        return self.next_tag

    def publish(self) -> None:
        if self.producer.publish():
            self.submission_bell.ring()

    def push_raw(self, entry: bytes, *, publish: bool = True) -> None:
        """Any 128 bytes as the next entry."""
        at = layout.submission_offset() + (self.producer._tail & self.producer._mask) * layout.ENTRY_BYTES
        self.rings[at : at + layout.ENTRY_BYTES] = entry
        self.producer._tail = (self.producer._tail + 1) & layout.INDEX_MASK
        if publish:
            self.publish()

    def take(self, limit_s: float = LIMIT_S) -> list[ring.Completion]:
        """At least one completion."""
        deadline = time.monotonic() + limit_s
        while True:
            taken = self.consumer.take()
            if taken:
                return taken
            if self.consumer.raise_sleep():
                left = deadline - time.monotonic()
                ready = self.poll.poll(max(0, left * 1000))
                self.consumer.lower_sleep()
                self.completion_bell.clear()
                dead = any(events & select.POLLHUP for _, events in ready)
                if (left <= 0 or not ready or dead) and not self.consumer.has_pending():
                    raise TimeoutError("no completion")

    def wait(self, tag: int, limit_s: float = LIMIT_S) -> ring.Completion:
        self.publish()
        while tag not in self.done:
            for completion in self.take(limit_s):
                self.done[completion[0]] = completion
        return self.done.pop(tag)

    def do(self, opcode: int, offset: int = 0, length: int = 0, parts: Sequence[ring.Part] = (), **more) -> int:
        """One operation; returns the bytes done, raises OSError."""
        completion = self.wait(self.push(opcode, offset, length, parts, **more))
        if completion[1]:
            raise OSError(completion[1], os.strerror(completion[1]))
        return completion[3]

    def write(self, offset: int, data: bytes, slot: int = 0, start: int = 0, flags: int = 0, **more) -> int:
        at = slot * layout.SLOT_BYTES + start
        self.slots[at : at + len(data)] = data
        return self.do(Opcode.WRITE, offset, len(data), [(slot, start, len(data))], flags=flags, **more)

    def read(self, offset: int, length: int, slot: int = 0, start: int = 0, **more) -> bytes:
        at = slot * layout.SLOT_BYTES + start
        done = self.do(Opcode.READ, offset, length, [(slot, start, length)], **more)
        return bytes(self.slots[at : at + done])

    def consumer_backlog(self) -> int:
        """Completions published and not taken."""
        return (self.words[layout.WORD_COMPLETION_TAIL] - self.words[layout.WORD_COMPLETION_HEAD]) & layout.INDEX_MASK

    def flush(self) -> None:
        self.do(Opcode.FLUSH)

    def fence(self) -> int:
        """Push a fence to the next epoch; returns its tag."""
        self.epoch = (self.epoch + 1) & layout.INDEX_MASK
        return self.push(Opcode.FENCE)

    def close(self) -> None:
        self.socket.close()
        if self.slots_map is not None:
            self.producer.release()
            self.consumer.release()
            self.words.release()
            self.rings.release()
            self.slots.release()
            self.rings_map.close()
            self.slots_map.close()
            self.slots_map = None
        for fd in self.descriptors:
            os.close(fd)
        self.descriptors = []

    def __enter__(self) -> AbiClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def leftover_segments(limit_s: float = 5.0) -> list[str]:
    """Segments that have a name in /dev/shm and keep it (while one is being made it has one for a moment)."""
    deadline = time.monotonic() + limit_s
    while names := [name for name in os.listdir("/dev/shm") if re.fullmatch("ovs-[0-9a-f]{24}", name)]:
        if time.monotonic() > deadline:
            return names
    return []
