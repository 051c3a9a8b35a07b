"""A vhost-user front end with a guest of its own in a memfd: what QEMU and a driver do, and what they never would.

It shares nothing with the server's code: layouts and numbers are written down once more, from the specifications.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

VERSION_1, EVENT_INDEX, INDIRECT, PROTOCOL = 1 << 32, 1 << 29, 1 << 28, 1 << 30
FLUSH, CONFIG_WCE = 1 << 9, 1 << 11
READ_ONLY = 1 << 5
OTHER_FORMAT = 1 << 34  # of packed rings

GUEST_BASE = 0x1000_0000  # where the memory lies for the guest
USER_BASE = 0x7F00_0000_0000  # and for the front end
MEMORY_BYTES = 4 << 20
TABLE, AVAILABLE, USED, INDIRECT_TABLE, DATA = 0x0000, 0x4000, 0x8000, 0x10000, 0x20000  # in the memory

IN, OUT, FLUSH_KIND, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IO_ERROR, UNSUPPORTED = 0, 1, 2
NEXT, WRITE, INDIRECT_FLAG = 1, 2, 4

Buffer = tuple[int, int, bool]  # offset in the memory, length, may the device write it


class FrontEnd:
    """Connected; ``setup`` makes the rest as a driver would. Its rings are split ones."""

    always = 0  # a feature that is taken whatever else is
    seals = False  # its memory, as soon as it has some
    memory_flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING

    def __init__(self, path: Path, timeout_s: float = 20.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout_s)
        self.socket.connect(os.fspath(path))
        self.memory_fd = os.memfd_create("guest", self.memory_flags)
        os.ftruncate(self.memory_fd, MEMORY_BYTES)
        self.memory = mmap.mmap(self.memory_fd, MEMORY_BYTES)
        if self.seals:
            self.seal()
        self.kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.entries = 64
        self.features = 0
        self.available = 0
        self.used = 0
        self.in_flight = -1  # what the server notes of what is under way

    def reconnect(self, path: Path) -> bool:
        """To the next server, with everything as it is; False: it does not listen yet."""
        self.socket.close()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(20)
        try:
            self.socket.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        return True

    def track(self) -> None:
        """Have what is under way noted in memory of the server's making, which we keep."""
        wish = struct.pack("<QQHH4x", 0, 0, 1, self.entries)
        if self.in_flight < 0:
            self.send(31, wish)
            header, (self.in_flight,), _, _ = socket.recv_fds(self.socket, 12, 1)
            assert struct.unpack("<III", header) == (31, 5, len(wish))
            wish = self._exactly(len(wish))
        else:
            wish = struct.pack("<QQHH4x", os.fstat(self.in_flight).st_size, 0, 1, self.entries)
        self.acknowledged(32, wish, [self.in_flight])

    def seal(self) -> FrontEnd:
        """Its memory can't shrink any more, as QEMU's can't."""
        fcntl.fcntl(self.memory_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return self

    def close(self) -> None:
        self.socket.close()
        self.memory.close()
        for fd in (self.memory_fd, self.kick, self.call, self.in_flight):
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> FrontEnd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The protocol ---------------------------------------------------------------------------------------------------

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 1) -> None:
        socket.send_fds(self.socket, [struct.pack("<III", request, flags, len(payload)) + payload], list(fds))

    def receive(self) -> bytes:
        """The payload of a reply. EOFError: we lost the device."""
        try:
            header = self._exactly(12)
            return self._exactly(struct.unpack("<III", header)[2])
        except ConnectionError:
            raise EOFError from None

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        self.send(request, payload, fds)
        return self.receive()

    def ask_u64(self, request: int, payload: bytes = b"") -> int:
        return int(struct.unpack("<Q", self.ask(request, payload))[0])

    def acknowledged(self, request: int, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Send, and await that it has been acted on, by NEED_REPLY where that was negotiated: it must be success."""
        if not self.features & PROTOCOL:
            self.send(request, payload, fds)
            self.ask(1)
            return
        self.send(request, payload, fds, flags=1 | 8)
        assert self.receive() == bytes(8)

    def negotiate(self, features: int | None = None) -> None:
        offered = self.ask_u64(1)
        self.features = offered & ~OTHER_FORMAT if features is None else features & offered
        self.features |= self.always
        self.send(2, struct.pack("<Q", self.features))
        if self.features & PROTOCOL:
            self.send(16, struct.pack("<Q", self.ask_u64(15)))
        self.send(3)

    def share_memory(self) -> None:
        region = struct.pack("<IIQQQQ", 1, 0, GUEST_BASE, MEMORY_BYTES, USER_BASE, 0)
        self.acknowledged(5, region, [self.memory_fd])

    def start_ring(self, index: int = 0) -> None:
        self.send(8, struct.pack("<II", index, self.entries))
        self.send(10, struct.pack("<II", index, self.base()))
        self.send(9, struct.pack("<IIQQQQ", index, 0, USER_BASE + TABLE, USER_BASE + USED, USER_BASE + AVAILABLE, 0))
        self.send(13, struct.pack("<Q", index), [self.call])
        self.send(12, struct.pack("<Q", index), [self.kick])
        if self.features & PROTOCOL:
            self.acknowledged(18, struct.pack("<II", index, 1))

    def base(self) -> int:
        """Where the ring begins, as the front end knows it."""
        return self.available

    def move(self, available: int) -> None:
        """As if so many requests had come and gone."""
        self.available = self.used = available
        struct.pack_into("<H", self.memory, AVAILABLE + 2, available)
        struct.pack_into("<H", self.memory, USED + 2, available)

    def stop_ring(self, index: int = 0) -> int:
        """Where it stands, with nothing under way."""
        return int(struct.unpack("<II", self.ask(11, struct.pack("<II", index, 0)))[1])

    def setup(self, features: int | None = None) -> FrontEnd:
        self.negotiate(features)
        self.share_memory()
        self.start_ring()
        return self

    def config(self, size: int = 60) -> bytes:
        return self.ask(24, struct.pack("<III", 0, size, 0) + bytes(size))[12:]

    # The ring -------------------------------------------------------------------------------------------------------

    def describe(self, at: int, address: int, length: int, flags: int, following: int = 0, table: int = TABLE) -> None:
        struct.pack_into("<QIHH", self.memory, table + 16 * at, address, length, flags, following)

    def chain(self, buffers: Sequence[Buffer], head: int = 0, table: int = TABLE) -> None:
        """Descriptors ``head``, ``head`` + 1 …"""
        for number, (offset, length, is_written) in enumerate(buffers):
            flags = (WRITE if is_written else 0) | (NEXT if number + 1 < len(buffers) else 0)
            self.describe(head + number, GUEST_BASE + offset, length, flags, head + number + 1, table)

    def offer(self, *heads: int) -> None:
        """Make chains available and kick."""
        for head in heads:
            struct.pack_into("<H", self.memory, AVAILABLE + 4 + 2 * (self.available % self.entries), head)
            self.available = (self.available + 1) & 0xFFFF
        struct.pack_into("<H", self.memory, AVAILABLE + 2, self.available)
        os.eventfd_write(self.kick, 1)

    def await_call(self) -> None:
        """EOFError: the device has gone."""
        ready, _, _ = select.select([self.call, self.socket], [], [], 20)
        assert ready, "no call"
        if self.socket in ready and not self.socket.recv(1, socket.MSG_PEEK):
            raise EOFError
        if self.call in ready:
            os.eventfd_read(self.call)

    def await_used(self, count: int = 1) -> list[tuple[int, int]]:
        """(head, bytes written) of the next ``count`` used entries, in the order of their completion."""
        found: list[tuple[int, int]] = []
        while len(found) < count:
            # used_event: call us at the next one
            struct.pack_into("<H", self.memory, AVAILABLE + 4 + 2 * self.entries, self.used)
            index = struct.unpack_from("<H", self.memory, USED + 2)[0]
            if index == self.used:
                self.await_call()
                continue
            while self.used != index:
                found.append(struct.unpack_from("<II", self.memory, USED + 4 + 8 * (self.used % self.entries)))
                self.used = (self.used + 1) & 0xFFFF
        return found

    def request(self, kind: int, sector: int = 0, data: bytes = b"", read_bytes: int = 0) -> tuple[int, bytes]:
        """One request, awaited: its status and what was read."""
        header, status = DATA, DATA + 16
        start = DATA + 4096
        struct.pack_into("<IIQ", self.memory, header, kind, 0, sector)
        self.memory[status] = 0xFF
        self.memory[start : start + len(data)] = data
        buffers: list[Buffer] = [(header, 16, False)]
        buffers += [(start, len(data), False)] if data else []
        buffers += [(start, read_bytes, True)] if read_bytes else []
        buffers.append((status, 1, True))
        if self.features & INDIRECT:
            self.chain(buffers, table=INDIRECT_TABLE)
            self.describe(0, GUEST_BASE + INDIRECT_TABLE, 16 * len(buffers), INDIRECT_FLAG)
        else:
            self.chain(buffers)
        self.offer(0)
        ((head, written),) = self.await_used()
        assert head == 0
        found = self.memory[status]
        if found == OK:
            assert written == 1 + (len(self.serial(start)) if kind == GET_ID else read_bytes)
        return found, self.memory[start : start + read_bytes]

    def serial(self, start: int) -> bytes:
        return self.memory[start : start + 20]
