"""Connections to the volume server for an interface of many threads: each operation borrows a lane for itself.

A lane is a Context, one buffer of its segment and the volumes opened over it; all lanes open with one owner token and
so share one writer's right. The server's death is lived through here: whoever is in an operation waits for the
successor, opens again, and repeats the operation, which all are such that twice is as good as once (CONTRACTS 1:
what was acknowledged has survived). After PATIENCE_S it is EIO. Idle lanes are looked after by a keeper thread:
events of the server are acknowledged, and a lane that was lost comes back by itself, with the writer's right of every
volume that is held for writing. This file knows no files and no FUSE.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import secrets
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from iscsi_ovs import shm_client

logger = logging.getLogger("iscsi_ovs.fuse")

THREADS_MAX = 4  # of libfuse's: more are in each other's way, because one at a time has the interpreter
LANES_MAX = 12  # libfuse before 3.12 has ten, whatever it is told
BUFFER_BYTES = 1 << 20  # the most that Linux hands over at once
PATIENCE_S = 30.0  # a volume server that is away for so long is not waited for any longer
ANSWER_LIMIT_S = 30.0
_RETRY_DELAYS_S = (0.02, 0.05, 0.1, 0.2, 0.5)  # the last one repeats
# What says that the server went away. Not ENOENT: that is a volume's.
_LOST = frozenset((errno.ECONNRESET, errno.ECONNREFUSED, errno.EPIPE, errno.EPROTO, errno.ENOTCONN))
_SMALLER = (BUFFER_BYTES, BUFFER_BYTES // 4, BUFFER_BYTES // 16)  # where the server's region is short

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Volume:
    """A volume as lanes open it: by name, and from the first time on by its UUID."""

    __slots__ = ("is_gone", "is_written", "name", "uuid")

    def __init__(self, name: str) -> None:
        self.name = name
        self.uuid: str | None = None
        self.is_written = False  # somebody has it for writing
        self.is_gone = False  # it was removed by force: nothing of it is left to read or write


class Lane:
    """One connection. Whoever holds ``lock`` has it to himself."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self.lock = threading.Lock()
        self.context: Any = None  # shm_client.Context; Any: None only while is_lost, which perform() looks at
        self.is_lost = True
        self.released: list[str] = []  # UUIDs of volumes that somebody removes by force
        self._open: dict[Volume, tuple[shm_client.Volume, bool]] = {}  # … and whether for writing
        self._buffer: Any = None
        self._memory: Any = None
        self._address = 0

    def connect(self) -> None:
        """Find the server, for the first time or again. OSError where there is none."""
        self._open.clear()
        if self.context is None:
            self.context = shm_client.Context(
                self._lanes.socket_path,
                segment_bytes=BUFFER_BYTES,
                words=self._lanes.words,
                on_event=self._happened,
                answer_limit_s=ANSWER_LIMIT_S,
            )
        else:
            self.context.reconnect()
        self._buffer = self._allocate()
        self._memory = (ctypes.c_char * self._buffer.size).from_buffer(self._buffer.data)
        self._address = ctypes.addressof(self._memory)
        self.is_lost = False
        self._lanes.watch(self)

    def _allocate(self) -> shm_client.Buffer:
        for size in _SMALLER:
            try:
                buffer: shm_client.Buffer = self.context.allocate(size)
                return buffer
            except OSError as error:
                if error.errno != errno.ENOMEM or size == _SMALLER[-1]:
                    raise
        raise AssertionError

    def close(self) -> None:
        self._memory = self._buffer = None
        if self.context is not None:
            self.context.close()

    # Operations: each may be repeated ------------------------------------------------------------------------------

    def read(self, volume: Volume, target: Any, size: int, offset: int) -> int:
        """Fill memory at a ctypes pointer; bytes done, short across the volume's end."""
        opened, buffer = self.open(volume, volume.is_written), self._buffer
        if size <= buffer.size:
            done = opened.read(buffer, size, offset)
            ctypes.memmove(target, self._address, done)
            return done
        done, start = 0, ctypes.addressof(target.contents)
        while done < size and (part := opened.read(buffer, min(buffer.size, size - done), offset + done)):
            ctypes.memmove(start + done, self._address, part)
            done += part
        return done

    def write(self, volume: Volume, source: Any, size: int, offset: int, fua: bool) -> int:
        """Write from a ctypes pointer. EFBIG: across the volume's end."""
        opened, buffer = self.open(volume, True), self._buffer
        if size <= buffer.size:
            ctypes.memmove(self._address, source, size)
            return opened.write(buffer, size, offset, fua=fua)
        start = ctypes.addressof(source.contents)
        for done in range(0, size, buffer.size):
            part = min(buffer.size, size - done)
            ctypes.memmove(self._address, start + done, part)
            opened.write(buffer, part, offset + done, fua=fua)
        return size

    def flush(self, volume: Volume) -> None:
        self.open(volume, True).flush()

    def discard(self, volume: Volume, offset: int, length: int) -> None:
        self.open(volume, True).discard(offset, length)

    def write_zeroes(self, volume: Volume, offset: int, length: int) -> None:
        self.open(volume, True).write_zeroes(offset, length, no_unmap=True)

    def create(self, name: str, size_bytes: int) -> None:
        """Create; twice is once, where the first answer was lost."""
        try:
            self.context.create_volume(name, size_bytes)
        except FileExistsError:
            if self.context.stat_volume(name).size_bytes < size_bytes:
                raise

    def open(self, volume: Volume, for_writing: bool) -> shm_client.Volume:
        """The volume on this lane. EBUSY: another owner writes; ESTALE: it is not the one it was."""
        held = self._open.get(volume)
        if held is not None and (held[1] or not for_writing):
            return held[0]
        if volume.is_gone:
            raise OSError(errno.ESTALE, f"volume {volume.name} was removed")
        if held is not None:
            self.let_go(volume)
        flags = os.O_RDWR if for_writing else os.O_RDONLY
        try:
            opened: shm_client.Volume = self.context.open(volume.name, flags, owner=self._lanes.owner)
        except FileNotFoundError:
            if volume.uuid is None:
                raise
            raise OSError(errno.ESTALE, f"volume {volume.name} was removed") from None
        uuid = opened.device.info.uuid
        if volume.uuid is None:
            volume.uuid = uuid
        elif uuid != volume.uuid:
            opened.close()
            raise OSError(errno.ESTALE, f"volume {volume.name} is another one now")
        self._open[volume] = opened, for_writing
        return opened

    def let_go(self, volume: Volume) -> None:
        """Close the volume, where it is open here."""
        held = self._open.pop(volume, None)
        if held is not None and not self.is_lost:
            try:
                held[0].close()
            except OSError as error:
                if error.errno not in _LOST:
                    raise

    # Events --------------------------------------------------------------------------------------------------------

    def _happened(self, event: Any) -> None:
        if isinstance(event, shm_client.ReleaseRequested):
            self.released.append(event.uuid)

    def look(self) -> None:
        """The server has said something while nobody was in an operation."""
        self.context.poll()
        self.is_lost = not self.context.is_connected
        self.release()

    def release(self) -> None:
        """Close what somebody removes by force."""
        while self.released:
            uuid = self.released.pop()
            for volume in [each for each in self._open if each.uuid == uuid]:
                volume.is_gone = True
                self.let_go(volume)


class Lanes:
    """The lanes of one mount, made as they are needed."""

    def __init__(self, socket_path: str | os.PathLike[str], words: str, patience_s: float = PATIENCE_S) -> None:
        self.socket_path = Path(socket_path)
        self.words = words
        self.owner = f"{words} {secrets.token_hex(8)}"
        self.written: Callable[[], list[Volume]] = list  # whose writer's right is taken again after a loss
        self._patience_s = patience_s
        self._all: list[Lane] = []
        self._limit = LANES_MAX
        self._idle: list[Lane] = []
        self._waiting = 0
        self._returned = threading.Condition()
        self._watched: dict[int, Lane] = {}
        self._epoll = select.epoll()
        self._is_closed = False
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def start(self) -> None:
        """Connect the first lane; OSError where no server is. Then the keeper begins."""
        with self._borrowed() as lane, lane.lock:
            if lane.is_lost:
                lane.connect()
        self._keeper.start()

    def close(self) -> None:
        """Close every lane: volumes are flushed by who wrote them, before."""
        self._is_closed = True
        for lane in self._all:
            with lane.lock:
                lane.close()

    def perform(self, action: Callable[Concatenate[Lane, _P], _R], *arguments: _P.args, **options: _P.kwargs) -> _R:
        """``action(lane, …)`` on a lane of its own, again after a loss of the server. EIO: it stays away."""
        try:
            lane = self._idle.pop()
        except IndexError:
            lane = self._borrow_late()
        try:
            with lane.lock:
                try:
                    if not lane.is_lost:
                        lane.context.looks_first = len(self._all) - len(self._idle) == 1  # nobody else is at work
                        return action(lane, *arguments, **options)
                    error = OSError(errno.ECONNRESET, "the volume server is gone")
                except OSError as failure:
                    if failure.errno not in _LOST:
                        raise
                    error = failure
                return self._outlive(error, lane, lambda: action(lane, *arguments, **options))
        finally:
            if lane.released:
                with lane.lock:
                    lane.release()
            self._idle.append(lane)
            if self._waiting:
                with self._returned:
                    self._returned.notify()

    def let_go(self, volume: Volume) -> None:
        """Close the volume on every lane."""
        for lane in list(self._all):
            with lane.lock:
                lane.let_go(volume)

    def watch(self, lane: Lane) -> None:
        """Have the keeper look when the lane's connection has something, or ends."""
        fd = lane.context.control_fileno()
        self._watched[fd] = lane
        with contextlib.suppress(FileExistsError):
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)

    # Borrowing -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[Lane]:
        lane = self._borrow_late()
        try:
            yield lane
        finally:
            self._idle.append(lane)

    def _borrow_late(self) -> Lane:
        """None is idle: make one, or wait. A lane given back after we have said that we wait notifies us."""
        with self._returned:
            self._waiting += 1
            try:
                while True:
                    with contextlib.suppress(IndexError):
                        return self._idle.pop()
                    if len(self._all) < self._limit and (lane := self._make()) is not None:
                        return lane
                    self._returned.wait()
            finally:
                self._waiting -= 1

    def _make(self) -> Lane | None:
        """None: the server's region has no room for another, so those that there are must do."""
        lane = Lane(self)
        try:
            with lane.lock:
                lane.connect()
        except OSError as error:
            if error.errno in (errno.ENOMEM, errno.ENOSPC) and self._all:
                logger.warning("%d connections must do: %s", len(self._all), error.strerror)
                self._limit = len(self._all)
                lane.close()
                return None
            # It is lost: perform() waits for the server.
        self._all.append(lane)
        return lane

    # The server's death --------------------------------------------------------------------------------------------

    def _outlive(self, error: OSError, lane: Lane, again: Callable[[], _R]) -> _R:
        """Wait for the server's successor and repeat."""
        deadline = time.monotonic() + self._patience_s
        for attempt in range(1 << 30):
            if attempt:
                if time.monotonic() > deadline or self._is_closed:
                    break
                time.sleep(_RETRY_DELAYS_S[min(attempt, len(_RETRY_DELAYS_S)) - 1])
            lane.is_lost = True
            try:
                lane.connect()
            except OSError as failure:
                error = failure
                continue
            try:
                return again()
            except OSError as failure:
                if failure.errno not in _LOST:
                    raise
                error = failure
        logger.error("no volume server for %g s: %s", self._patience_s, error.strerror or error)
        raise OSError(errno.EIO, "the volume server is gone")

    def _keep(self) -> None:
        """The keeper's thread: an idle lane's events, and its return."""
        later: set[Lane] = set()
        misses = 0
        while not self._is_closed:
            for fd, _ in self._epoll.poll(min(1.0, 0.02 * (1 + misses)) if later else 1.0):
                if (lane := self._watched.get(fd)) is not None:
                    later.add(lane)
            for lane in list(later):
                if not lane.lock.acquire(blocking=False):
                    continue  # in an operation, which sees to it; we look again all the same
                try:
                    if not self._is_closed and self._look_after(lane):
                        later.discard(lane)
                        misses = 0
                    else:
                        misses += 1
                finally:
                    lane.lock.release()

    def _look_after(self, lane: Lane) -> bool:
        """False: it is lost, and still to be connected again."""
        try:
            if not lane.is_lost:
                lane.look()
            if lane.is_lost:
                lane.connect()
        except OSError as error:
            logger.debug("a lane that is not back yet: %s", error)
            return False
        for volume in self.written():
            try:
                lane.open(volume, True)
            except OSError as error:
                logger.warning("%s is open for writing, and not to be had: %s", volume.name, error.strerror or error)
        return True
