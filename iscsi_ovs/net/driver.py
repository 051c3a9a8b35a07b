"""The loop: sockets, the volume server's doorbell, time. All in batches (DESIGN 1.3).

One turn: drain every readable socket into where the protocol core wants the bytes, execute what came, publish the
submission ring once, collect every completion, send each connection's answers with one ``sendmsg``. The loop sleeps
only after it has said so in shared memory and looked at the ring once more. It runs one thread and takes no locks.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Protocol

from iscsi_ovs.net import portal
from iscsi_ovs.net.clock import Clock
from iscsi_ovs.session import events
from iscsi_ovs.session.connection import Connection

logger = logging.getLogger("iscsi_ovs.net")

# How long a loop that has just worked looks on before it sleeps. To sleep and to be woken costs both sides 20 µs and
# more, most on virtual machines; the next request of an initiator that sends one at a time comes sooner. With more in
# flight the volume server and the initiator have work for every core, so we give way once and then sleep
# (docs/BENCHMARKS.md).
LOOK_S = 50e-6
LOOK_IN_FLIGHT = 2
TICK_S = 1.0  # deadlines are looked at this often; an idle process wakes no oftener
MAX_CHANNELS = 4096  # connections at a time
_RECEIVES_A_TURN = 8  # system calls that one socket may have before the others have their turn
_RECEIVE_S = 0.002  # and time, where each of them brings a thousand PDUs
_ACCEPTS_A_TURN = 64
_LINGER_S = 2.0  # how long a closed connection may take to drain
_READ = select.EPOLLIN
_WRITE = select.EPOLLOUT
EDGE = select.EPOLLIN | select.EPOLLET  # for an eventfd that is never read


class Storage(Protocol):
    """What the loop turns of the volume server's client (shm_client.Service)."""

    def collect(self) -> int: ...
    def flush(self) -> None: ...
    def prepare_sleep(self) -> bool: ...
    def awake(self) -> None: ...
    def has_pending(self) -> bool: ...
    @property
    def in_flight(self) -> int: ...


class Owner(Protocol):
    """The target behind the loop."""

    def connected(self, peer: str, local: portal.Address, now: float, at: portal.Address) -> Connection: ...
    def happened(self, connection: Connection, told: list[events.Event]) -> None: ...
    def turn(self) -> bool: ...  # True: somebody waited, and may have been served
    def tick(self, now: float) -> None: ...


class Channel:
    """A socket and the protocol core of its connection."""

    __slots__ = ("connection", "deadline", "fd", "is_draining", "mask", "sock")

    def __init__(self, sock: socket.socket, connection: Connection) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.connection = connection
        self.mask = _READ
        self.is_draining = False  # closed for us: what still comes is thrown away
        self.deadline = 0.0


class Driver:
    """The event loop of a target process."""

    def __init__(self, owner: Owner, storage: Storage, clock: Clock) -> None:
        self.owner = owner
        self.storage = storage
        self.clock = clock
        self._epoll = select.epoll()
        self._channels: dict[int, Channel] = {}
        self._by_connection: dict[Connection, Channel] = {}
        self._others: dict[int, Callable[[int], None]] = {}
        self._listeners: dict[int, socket.socket] = {}
        self._portals: dict[int, portal.Address] = {}  # by listener: what was asked for, with its real port
        self._dirty: list[Connection] = []
        self._is_stopping = False
        self._next_tick = 0.0
        self._sink = bytearray(65536)
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.watch(self._stop_fd, lambda mask: None, EDGE)

    # Wiring ----------------------------------------------------------------------------------------------------

    def listen(self, address: portal.Address, inherited_fd: int | None = None) -> portal.Address:
        """Accept connections on an address (or a socket that listens already); returns it with its real port."""
        listener = portal.listen(address) if inherited_fd is None else socket.socket(fileno=inherited_fd)
        listener.setblocking(False)
        self._listeners[listener.fileno()] = listener
        self._epoll.register(listener.fileno(), _READ)
        real = portal.Address(address.host, listener.getsockname()[1])
        self._portals[listener.fileno()] = real
        return real

    def unlisten(self, address: portal.Address) -> None:
        """Accept no more connections at what listen() returned; those that are accepted live on."""
        for fd in [fd for fd, real in self._portals.items() if real == address]:
            del self._portals[fd]
            self._epoll.unregister(fd)
            self._listeners.pop(fd).close()

    def watch(self, fd: int, callback: Callable[[int], None], mask: int = _READ) -> None:
        """Call back with the event mask when a descriptor is ready."""
        self._others[fd] = callback
        self._epoll.register(fd, mask)

    def rewatch(self, fd: int, mask: int) -> None:
        self._epoll.modify(fd, mask)

    def unwatch(self, fd: int) -> None:
        if self._others.pop(fd, None) is not None:
            try:
                self._epoll.unregister(fd)
            except (OSError, ValueError):
                pass  # closed already, or the loop is

    def output_ready(self, connection: Connection) -> None:
        """A connection has something to send at the end of this turn."""
        self._dirty.append(connection)

    @property
    def has_unsent(self) -> bool:
        """Is there anything that the kernel has not taken yet?"""
        return any(channel.connection.has_output for channel in self._channels.values())

    def stop(self) -> None:
        """Leave run() after this turn (from a signal handler or another thread, too)."""
        self._is_stopping = True
        self.wake()

    def wake(self) -> None:
        """Turn now (from a signal handler or another thread, too)."""
        try:
            os.eventfd_write(self._stop_fd, 1)
        except (OSError, ValueError):
            pass  # it has left, and close() was faster than we

    # The loop --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Turn until stop()."""
        is_busy = False
        while not self._is_stopping:
            is_busy = self.turn(is_busy)

    def turn(self, is_busy: bool, *, may_sleep: bool = True) -> bool:
        """One turn; ``is_busy``: the last one found work, so look around once more before sleeping."""
        storage = self.storage
        ready = self._look() if is_busy else None
        if ready is None:
            ready = []
            if may_sleep and not self._dirty and storage.prepare_sleep():
                ready = self._epoll.poll(self.clock.until_next(TICK_S))
                storage.awake()
        for fd, mask in ready:
            channel = self._channels.get(fd)
            if channel is not None:
                try:
                    self._channel_ready(channel, mask)
                except Exception:
                    self._mistaken(channel)
            elif fd in self._others:
                self._others[fd](mask)
            elif fd in self._listeners:
                self._accept(self._listeners[fd])
        storage.flush()
        collected = storage.collect()
        self.owner.turn()
        if collected:
            storage.flush()  # a completion may have led to the next request
        while self._dirty:
            dirty, self._dirty = self._dirty, []
            for connection in dirty:
                try:
                    self._send(connection)
                except Exception:
                    self._mistaken(self._by_connection.get(connection))
            if self.owner.turn():  # what was sent has given slots back: nothing else may come that would wake us
                storage.flush()
        now = self.clock.now()
        if now >= self.clock.next_due:
            self.clock.run_due()
        if now >= self._next_tick:
            self._next_tick = now + TICK_S
            self._tick(now)
        return bool(ready) or collected > 0 or bool(self._dirty)

    def _look(self) -> list[tuple[int, int]] | None:
        """What is ready (nothing, where a completion waits); None: go to sleep."""
        poll = self._epoll.poll
        has_pending = self.storage.has_pending
        if self.storage.in_flight > LOOK_IN_FLIGHT:
            # Whoever waits for this core has it, once: what it does meanwhile comes as one batch, and not one by one.
            os.sched_yield()
            return poll(0) or ([] if has_pending() else None)
        deadline = time.perf_counter() + LOOK_S
        while True:
            ready = poll(0)
            if ready or has_pending():
                return ready
            if time.perf_counter() > deadline:
                return None
            os.sched_yield()  # whoever else wants this core has it

    def _tick(self, now: float) -> None:
        for channel in list(self._channels.values()):
            if channel.is_draining or channel.connection.is_closed:
                if channel.deadline and now > channel.deadline:
                    self._close(channel, "it did not take its last answers")
                elif not channel.deadline:
                    channel.deadline = now + _LINGER_S
                continue
            try:
                self._told(channel, channel.connection.tick(now))
            except Exception:
                self._mistaken(channel)
        self.owner.tick(now)

    # Sockets ---------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            try:
                sock, peer = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    logger.error("can't accept a connection: %s", error.strerror)
                    self._pause_listening(listener)
                    return
                continue  # the peer was gone before we looked
            if len(self._channels) >= MAX_CHANNELS and not self._make_room():
                logger.error("connection from %s refused: %d are open", peer[0], MAX_CHANNELS)
                sock.close()
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            local = sock.getsockname()
            name = str(portal.reached_at(peer[0], peer[1]))
            ours = portal.reached_at(local[0], local[1])
            connection = self.owner.connected(name, ours, self.clock.now(), self._portals[listener.fileno()])
            channel = Channel(sock, connection)
            self._channels[channel.fd] = channel
            self._by_connection[connection] = channel
            self._epoll.register(channel.fd, channel.mask)

    def _make_room(self) -> bool:
        """Who has taken longest to log in goes: to connect and to say nothing must not be enough to keep others out."""
        channels = self._channels.values()  # in the order in which they came
        oldest = next((channel for channel in channels if channel.connection.is_logging_in), None)
        if oldest is None:
            return False
        self._lost(oldest, "others want to connect, and it has not logged in")
        return True

    def _pause_listening(self, listener: socket.socket) -> None:
        """No descriptors left: a level-triggered listener would spin; look again in a second."""
        self._epoll.modify(listener.fileno(), 0)

        def look_again() -> None:
            if listener.fileno() in self._listeners:
                self._epoll.modify(listener.fileno(), _READ)

        self.clock.call_later(TICK_S, look_again)

    def _channel_ready(self, channel: Channel, mask: int) -> None:
        if channel.is_draining:
            self._drain(channel)
            return
        if mask & _WRITE:
            self._dirty.append(channel.connection)
        if mask & ~_WRITE and channel.mask & _READ:
            self._receive(channel)
        elif mask & (select.EPOLLHUP | select.EPOLLERR):
            self._lost(channel, "the connection was reset")

    def _receive(self, channel: Channel) -> None:
        connection = channel.connection
        if connection.is_closed:  # by what came on another connection in this turn, or by the clock
            self._adjust(channel)
            return
        sock = channel.sock
        now = self.clock.now()
        for _ in range(_RECEIVES_A_TURN):
            buffers = connection.receive_buffers()
            try:
                if len(buffers) == 1:
                    room = len(buffers[0])
                    count = sock.recv_into(buffers[0])
                else:
                    room = sum(map(len, buffers))
                    count = sock.recvmsg_into(buffers)[0]
            except BlockingIOError:
                break
            except OSError as error:
                self._lost(channel, f"the connection failed: {error.strerror}")
                return
            told = connection.received(count, now)
            if told:
                self._told(channel, told)
            if count < room or not connection.wants_read or self.clock.now() - now > _RECEIVE_S:
                break
        self._adjust(channel)

    def _told(self, channel: Channel, told: list[events.Event]) -> None:
        if told:
            self.owner.happened(channel.connection, told)
            if channel.connection.is_closed:
                self._dirty.append(channel.connection)

    def closing(self, connection: Connection) -> None:
        """The owner has ended a connection outside of its own events."""
        self._dirty.append(connection)

    def _send(self, connection: Connection) -> None:
        channel = self._by_connection.get(connection)
        if channel is None:
            return
        sock = channel.sock
        while connection.has_output:
            try:
                connection.sent(sock.sendmsg(connection.data_to_send()))
            except BlockingIOError:
                break
            except OSError as error:
                self._lost(channel, f"the connection failed: {error.strerror}")
                return
        self._adjust(channel)

    def _adjust(self, channel: Channel) -> None:
        """Ask epoll for what the connection can use now; begin the end of one that is closed."""
        connection = channel.connection
        mask = _WRITE if connection.has_output else 0
        if connection.wants_read or channel.is_draining:
            mask |= _READ
        elif not mask and connection.is_closed:
            self._begin_draining(channel)
            return
        if mask != channel.mask and channel.fd in self._channels:
            channel.mask = mask
            self._epoll.modify(channel.fd, mask)

    def _begin_draining(self, channel: Channel) -> None:
        """All is sent. Closing with unread input would reset the connection under our last answers: read to its end."""
        channel.is_draining = True
        channel.deadline = self.clock.now() + _LINGER_S
        try:
            channel.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(channel, "")
            return
        channel.mask = _READ
        self._epoll.modify(channel.fd, _READ)

    def _drain(self, channel: Channel) -> None:
        try:
            for _ in range(_RECEIVES_A_TURN):
                if not channel.sock.recv_into(self._sink):
                    break
            else:
                return  # there is more, and there are others
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close(channel, "")

    def _mistaken(self, channel: Channel | None) -> None:
        """An exception that should not be: it costs this connection, and no other (DESIGN 7)."""
        logger.exception("%s: our mistake; the connection ends", channel.connection.name if channel else "a connection")
        if channel is None:
            return
        try:
            self._lost(channel, "our mistake")
        except Exception:
            logger.exception("%s: and again at its end", channel.connection.name)
            self._close(channel, "")

    def _lost(self, channel: Channel, reason: str) -> None:
        told = channel.connection.lost(reason)
        self._close(channel, "")
        self.owner.happened(channel.connection, told)

    def _close(self, channel: Channel, reason: str) -> None:
        if self._channels.pop(channel.fd, None) is None:
            return
        if reason:
            logger.info("%s: closed: %s", channel.connection.name, reason)
        self._by_connection.pop(channel.connection, None)
        channel.connection.let_go()
        self._epoll.unregister(channel.fd)
        channel.sock.close()

    def close(self) -> None:
        """Close every socket."""
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()
        for channel in list(self._channels.values()):
            self._lost(channel, "the target stops")
        self._epoll.close()
        os.close(self._stop_fd)
        self._stop_fd = -1
