"""One front end of a vhost-user export: its connection, its guest's memory and rings, from accept to the end.

Messages are answered one after the other; one that changes what requests stand on (the memory, a ring that stops) waits
for the requests under way, and none is taken meanwhile. Whatever the front end or its guest does wrong ends the
connection, with a line in the log, and nothing else: what has started goes on to its end, and its memory stays until
then.
"""

from __future__ import annotations

import logging
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from shm_server.interfaces import inflight, messages
from shm_server.interfaces.block_device import (
    F_RING_PACKED,
    MAX_QUEUES,
    RING_F_EVENT_IDX,
    RING_F_INDIRECT_DESC,
    BlockDevice,
)
from shm_server.interfaces.chains import Chain
from shm_server.interfaces.descriptors import check as check_descriptors
from shm_server.interfaces.guest_memory import MAX_REGIONS, GuestMemory, Region, close_regions
from shm_server.interfaces.inflight import Inflight
from shm_server.interfaces.messages import Message, ProtocolError, ProtocolFeature, Request
from shm_server.interfaces.rings import Ring
from shm_server.interfaces.virtqueue import MAX_ENTRIES, Virtqueue
from shm_server.runtime import Job, Suspension, Wait
from shm_server.volumes.handle import Handle

log = logging.getLogger(__name__)

BATCH_REQUESTS = 16  # of one ring per turn, and between two looks of the guest at what is used
LARGE_BATCH_REQUESTS = 4  # where requests are large
BATCH_BYTES = 4 << 20  # moved for one machine per turn: then the others have theirs
MAX_MESSAGES = 64  # that wait for one before them
MAX_CONFIG_BYTES = 256
MOST_DESCRIPTORS = 253  # SCM_MAX_FD: what is not taken the kernel closes, on our thread

_FEATURES_KEPT = 1 << messages.PROTOCOL_FEATURES_BIT


class Watching(Protocol):
    """The server's epoll."""

    def watch(self, fd: int, watcher: Callable[[int], None], events: int = ...) -> None: ...

    def unwatch(self, fd: int) -> None: ...


class FrontEnd:
    """``on_gone`` is called once, when nothing of it is left."""

    def __init__(
        self,
        watching: Watching,
        connection: socket.socket,
        handle: Handle,
        credentials: tuple[int, int],
        on_gone: Callable[[], None],
    ) -> None:
        """``credentials`` are the pid and uid of the other side."""
        pid, uid = credentials
        self.words = f"{handle.words}, front end pid {pid}"
        self.is_closed = False
        self._watching = watching
        self._socket = connection
        self._handle = handle
        self._runtime = handle.volume.runtime
        self._on_gone = on_gone
        self._is_trusted = uid in (0, os.getuid())
        self._memory = GuestMemory(trusts_unsealed=self._is_trusted)
        self._device = BlockDevice(handle, self._done)
        self._queues = [Virtqueue(index, is_trusted=self._is_trusted) for index in range(MAX_QUEUES)]
        self._running: list[Ring] = []
        self._batch = BATCH_REQUESTS
        self._protocol_features = 0
        self._is_paused = False  # no requests are taken
        self._drained: Wait[None] | None = None
        self._inflight: Inflight | None = None
        self._reply_fd = -1  # goes with the reply, and is closed then
        self._backend_channel: socket.socket | None = None
        self._input = bytearray()
        self._descriptors: list[int] = []  # come, and not yet of a whole message
        self._messages: deque[Message] = deque()
        self._is_answering = False
        self._handlers: dict[Request, Callable[[Message], Coroutine[Suspension, Any, bytes | None]]] = {
            Request.GET_FEATURES: self._get_features,
            Request.SET_FEATURES: self._set_features,
            Request.SET_OWNER: self._set_owner,
            Request.RESET_OWNER: self._reset_owner,
            Request.SET_MEM_TABLE: self._set_mem_table,
            Request.SET_VRING_NUM: self._set_vring_num,
            Request.SET_VRING_ADDR: self._set_vring_addr,
            Request.SET_VRING_BASE: self._set_vring_base,
            Request.GET_VRING_BASE: self._get_vring_base,
            Request.SET_VRING_KICK: self._set_vring_kick,
            Request.SET_VRING_CALL: self._set_vring_call,
            Request.SET_VRING_ERR: self._set_vring_err,
            Request.GET_PROTOCOL_FEATURES: self._get_protocol_features,
            Request.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            Request.GET_QUEUE_NUM: self._get_queue_num,
            Request.SET_VRING_ENABLE: self._set_vring_enable,
            Request.SET_BACKEND_REQ_FD: self._set_backend_req_fd,
            Request.GET_CONFIG: self._get_config,
            Request.SET_CONFIG: self._set_config,
            Request.GET_INFLIGHT_FD: self._get_inflight_fd,
            Request.SET_INFLIGHT_FD: self._set_inflight_fd,
            Request.RESET_DEVICE: self._reset_device,
            Request.GET_MAX_MEM_SLOTS: self._get_max_mem_slots,
            Request.ADD_MEM_REG: self._add_mem_reg,
            Request.REM_MEM_REG: self._rem_mem_reg,
        }
        watching.watch(connection.fileno(), self._readable)

    # The guest's requests -------------------------------------------------------------------------------------------

    def serve(self) -> bool:
        """A batch of every ring that has something, as long as there is not much to move; False: there was nothing."""
        worked = False
        if self._is_paused:
            return False
        handle, running = self._handle, self._running
        before = handle.read_bytes + handle.written_bytes
        for number, ring in enumerate(running, 1):
            if ring.is_active and (chains := ring.take(self._memory, self._batch)):
                worked = True
                for chain in chains:
                    self._device.start(chain)
                if ring.has_pending:
                    ring.publish()
                if handle.read_bytes + handle.written_bytes - before >= BATCH_BYTES:
                    self._batch = LARGE_BATCH_REQUESTS
                    self._running = running[number:] + running[:number]  # those that had no turn come first
                    return True
        self._batch = BATCH_REQUESTS
        return worked

    def publish(self) -> None:
        """Show the guest what has ended since."""
        for ring in self._running:
            if ring.has_pending:
                ring.publish()

    def is_waiting(self) -> bool:
        """Has a guest whose kicks are silenced something for us?"""
        return not self._is_paused and any(ring.is_active and ring.waiting() for ring in self._running)

    def arm(self) -> bool:
        """Ask for kicks, before sleeping; False: there is work."""
        if self._is_paused:
            return True
        armed = True
        for ring in self._running:
            if ring.is_active and not ring.arm():
                armed = False
        return armed

    def in_flight(self) -> int:
        return sum(queue.in_flight for queue in self._queues)

    def _done(self, chain: Chain, written_bytes: int | None) -> None:
        """The device has written the status of ``chain``; None: it could not."""
        if written_bytes is None:
            chain.ring.forget()
        else:
            chain.ring.put(chain, written_bytes)
        if self._drained is not None and not self.in_flight():
            drained, self._drained = self._drained, None
            drained.set()

    def _kicked(self, queue: Virtqueue) -> None:
        """The eventfd need not be read, and reading one that is not ours alone could wait."""
        if queue.ring is not None:
            queue.ring.is_active = True

    # Messages -------------------------------------------------------------------------------------------------------

    def _readable(self, _events: int) -> None:
        try:
            for _ in range(MAX_MESSAGES):  # and then the others have their turn
                if self.is_closed or not self._receive():
                    break
        except ProtocolError as error:
            self.drop(str(error))
        except OSError as error:
            self.drop(error.strerror or str(error))

    def _receive(self) -> bool:
        """A piece of a message; False: there is no more. Never beyond its end: its descriptors are its own."""
        header = messages.HEADER
        if len(self._input) < header.size:
            wanted = header.size - len(self._input)
        else:
            _, _, size = messages.decode_header(bytes(self._input[: header.size]))
            wanted = header.size + size - len(self._input)
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, wanted, MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        self._descriptors += descriptors
        if len(self._descriptors) > messages.MAX_DESCRIPTORS:
            raise ProtocolError(f"more than {messages.MAX_DESCRIPTORS} descriptors with a message")
        if not data:
            self.drop("")
            return False
        self._input += data
        if len(self._input) >= header.size:
            request, flags, size = messages.decode_header(bytes(self._input[: header.size]))
            if len(self._input) == header.size + size:
                payload = bytes(self._input[header.size :])
                self._input.clear()
                descriptors, self._descriptors = self._descriptors, []
                self._accept(Message(request, flags, payload, descriptors))
        return True

    def _accept(self, message: Message) -> None:
        self._messages.append(message)
        check_descriptors(message.request, message.descriptors, is_trusted=self._is_trusted)
        if len(self._messages) > MAX_MESSAGES:
            raise ProtocolError(f"more than {MAX_MESSAGES} messages at once")
        self._answer_next()

    def _answer_next(self) -> None:
        while self._messages and not self._is_answering and not self.is_closed:
            message = self._messages.popleft()
            self._is_answering = True
            Job(self._handlers[message.request](message), partial(self._answered, message)).start()

    def _answered(self, message: Message, payload: bytes | None, error: BaseException | None) -> None:
        self._is_answering = False
        if error is None or self.is_closed:
            _close(message.descriptors)
        else:
            self._descriptors += message.descriptors
        if self.is_closed:
            return
        if error is not None and not isinstance(error, (ProtocolError, OSError)):
            log.error("%s: %s failed by a mistake of the server", self.words, message.request.name, exc_info=error)
        if payload is None and message.needs_reply and self._has(ProtocolFeature.REPLY_ACK):
            # "a payload of zero indicates success, non-zero failure"
            payload = messages.U64.pack(0 if error is None else 1)
        descriptors, self._reply_fd = [self._reply_fd] if self._reply_fd >= 0 else [], -1
        try:
            if payload is not None:
                socket.send_fds(self._socket, [messages.reply(message, payload)], descriptors)
        except OSError as lost:
            error = error or lost
        _close(descriptors)
        if error is not None:
            self.drop(f"{message.request.name}: {error}")
            return
        self._look_at_queues()
        self._answer_next()

    def _has(self, feature: ProtocolFeature) -> bool:
        return bool(self._protocol_features >> feature & 1)

    def _look_at_queues(self) -> None:
        """Serve those that are started and enabled; look into each, it may have been kicked before we knew it."""
        self._running = [queue.ring for queue in self._queues if queue.ring is not None and queue.is_enabled]
        for ring in self._running:
            ring.is_active = True

    async def _drain(self) -> None:
        """Wait for every request under way; the caller has set ``_is_paused``."""
        if self.in_flight():
            self._drained = Wait()
            await self._drained
        self._check_open()
        self.publish()

    def _check_open(self) -> None:
        if self.is_closed:
            raise ProtocolError("the front end has gone")

    # Features and configuration -------------------------------------------------------------------------------------

    async def _get_features(self, message: Message) -> bytes:
        return messages.U64.pack(self._device.offered)

    async def _set_features(self, message: Message) -> None:
        features = message.u64()
        if unknown := features & ~self._device.offered:
            raise ProtocolError(f"features {unknown:#x} were not offered")
        self._device.features = features
        for queue in self._queues:
            queue.set_features(
                is_packed=self._device.has(F_RING_PACKED),
                has_event_index=self._device.has(RING_F_EVENT_IDX),
                has_indirect=self._device.has(RING_F_INDIRECT_DESC),
            )
            # "If VHOST_USER_F_PROTOCOL_FEATURES has not been negotiated, the ring starts directly in the enabled
            # state."
            if not features & _FEATURES_KEPT:
                queue.is_enabled = True

    async def _get_protocol_features(self, message: Message) -> bytes:
        return messages.U64.pack(messages.PROTOCOL_FEATURES)

    async def _set_protocol_features(self, message: Message) -> None:
        features = message.u64()
        if unknown := features & ~messages.PROTOCOL_FEATURES:
            raise ProtocolError(f"protocol features {unknown:#x} were not offered")
        self._protocol_features = features

    async def _set_owner(self, message: Message) -> None:
        pass

    async def _reset_owner(self, message: Message) -> None:
        """ "This is no longer used … back-ends … either ignore this message or use it to disable all rings." """
        for queue in self._queues:
            queue.is_enabled = False

    async def _reset_device(self, message: Message) -> None:
        self._is_paused = True
        try:
            await self._drain()
        finally:
            self._is_paused = False
        for queue in self._queues:
            self._stop(queue)
            queue.reset()
        self._device.features = 0
        self._device.is_writeback = True

    async def _get_queue_num(self, message: Message) -> bytes:
        return messages.U64.pack(MAX_QUEUES)

    async def _get_config(self, message: Message) -> bytes:
        offset, size, _ = messages.decode_config(message.payload)
        if offset + size > MAX_CONFIG_BYTES:
            raise ProtocolError(f"{size} bytes of configuration from {offset}")
        # What a newer front end knows beyond ours is zero.
        config = self._device.config().ljust(MAX_CONFIG_BYTES, b"\0")[offset : offset + size]
        return messages.CONFIG_HEAD.pack(offset, size, 0) + config

    async def _set_config(self, message: Message) -> None:
        offset, size, data = messages.decode_config(message.payload)
        if size > len(data):
            raise ProtocolError(f"{len(data)} bytes of configuration where {size} are said to be")
        self._device.set_config(offset, data[:size])

    async def _set_backend_req_fd(self, message: Message) -> None:
        if not message.descriptors:
            raise ProtocolError("no channel to the front end")
        channel = socket.socket(fileno=message.descriptors[0])
        if channel.family != socket.AF_UNIX:
            channel.detach()
            raise ProtocolError("a channel to the front end that is no Unix socket")
        del message.descriptors[0]
        if self._backend_channel is not None:
            self._close_theirs(self._backend_channel.close)
        self._backend_channel = channel

    def config_changed(self) -> None:
        """The volume has another size."""
        if self._backend_channel is not None and self._has(ProtocolFeature.CONFIG):
            try:
                changed = messages.encode(messages.CONFIG_CHANGED, b"")
                self._backend_channel.send(changed, socket.MSG_DONTWAIT)  # O_NONBLOCK would not be ours alone
            except OSError as error:
                log.warning("%s could not be told of the new size: %s", self.words, error.strerror)

    # Memory ---------------------------------------------------------------------------------------------------------

    async def _set_mem_table(self, message: Message) -> None:
        places = messages.decode_memory(message.payload)
        await self._change_memory(self._memory.detach, lambda: self._memory.fill(places, message.descriptors))

    async def _add_mem_reg(self, message: Message) -> None:
        place = messages.decode_region(message.payload)
        await self._change_memory(list, lambda: self._memory.add(place, message.descriptors))

    async def _rem_mem_reg(self, message: Message) -> None:
        place = messages.decode_region(message.payload)
        await self._change_memory(lambda: [self._memory.remove(place)], lambda: None)

    async def _change_memory(self, take: Callable[[], list[Region]], give: Callable[[], None]) -> None:
        self._is_paused = True
        try:
            await self._drain()
            if regions := take():
                await self._runtime.call(self._runtime.closings, partial(close_regions, regions))
                self._check_open()
            give()
            for queue in self._queues:
                queue.resolve(self._memory)
        finally:
            self._is_paused = False

    async def _get_max_mem_slots(self, message: Message) -> bytes:
        return messages.U64.pack(MAX_REGIONS)

    async def _get_inflight_fd(self, message: Message) -> bytes:
        _, _, rings, entries = inflight.PAYLOAD.unpack_from(message.payload)
        if not 0 < rings <= MAX_QUEUES or not 0 < entries <= MAX_ENTRIES:
            raise ProtocolError(f"memory for {rings} rings of {entries} in flight")
        is_packed = self._device.has(F_RING_PACKED)
        self._reply_fd = inflight.create(rings, entries, is_packed=is_packed)
        size = rings * inflight.ring_bytes(entries, is_packed=is_packed)
        answer = inflight.PAYLOAD.pack(size, 0, rings, entries)
        return answer.ljust(len(message.payload), b"\0")

    async def _set_inflight_fd(self, message: Message) -> None:
        if not message.descriptors:
            raise ProtocolError("no memory for what is in flight")
        size, offset, rings, entries = inflight.PAYLOAD.unpack_from(message.payload)
        is_packed = self._device.has(F_RING_PACKED)
        self._inflight = Inflight(message.descriptors[0], size, offset, rings, entries, is_packed=is_packed)

    # Rings ----------------------------------------------------------------------------------------------------------

    def _queue(self, index: int) -> Virtqueue:
        if index >= MAX_QUEUES:
            raise ProtocolError(f"ring {index} of {MAX_QUEUES}")
        return self._queues[index]

    async def _set_vring_num(self, message: Message) -> None:
        index, count = message.vring_state()
        self._queue(index).set_entries(count)

    async def _set_vring_addr(self, message: Message) -> None:
        index, _, table, used, available, _ = messages.VRING_ADDRESS.unpack_from(message.payload)
        queue = self._queue(index)
        if queue.in_flight:
            raise ProtocolError(f"ring {index} is moved with requests in flight")
        queue.addresses = (table, used, available)
        queue.resolve(self._memory)

    async def _set_vring_base(self, message: Message) -> None:
        index, base = message.vring_state()
        self._queue(index).set_base(base)

    async def _get_vring_base(self, message: Message) -> bytes:
        """Ends the ring; the answer is where it ended, with nothing under way."""
        index, _ = message.vring_state()
        queue = self._queue(index)
        self._is_paused = True
        try:
            await self._drain()
        finally:
            self._is_paused = False
        self._stop(queue)
        return messages.VRING_STATE.pack(index, queue.base)

    def _stop(self, queue: Virtqueue) -> None:
        if queue.kick_fd >= 0:
            self._watching.unwatch(queue.kick_fd)
        self._running = [ring for ring in self._running if ring is not queue.ring]
        queue.stop()

    def _take_descriptor(self, message: Message) -> tuple[Virtqueue, int]:
        """The ring, and the descriptor, which does not block us; -1: there is none."""
        number = message.u64()
        queue = self._queue(number & messages.VRING_INDEX_MASK)
        if number & messages.VRING_NO_DESCRIPTOR:
            return queue, -1
        if not message.descriptors:
            raise ProtocolError("a descriptor is missing")
        os.set_blocking(message.descriptors[0], False)
        return queue, message.descriptors.pop()

    async def _set_vring_kick(self, message: Message) -> None:
        queue, fd = self._take_descriptor(message)
        if fd < 0:
            raise ProtocolError("a ring without a kick, to be looked at all the time, is not served")
        if queue.kick_fd >= 0:
            self._watching.unwatch(queue.kick_fd)
        queue.set_descriptor("kick_fd", fd)
        try:
            self._watching.watch(fd, lambda _events: self._kicked(queue), select.EPOLLIN | select.EPOLLET)
        except OSError as error:
            queue.set_descriptor("kick_fd", -1)
            raise ProtocolError(f"a kick descriptor that can't be watched: {error.strerror}") from None
        was_started = queue.ring is not None
        queue.resolve(self._memory)
        if queue.ring is not None and not was_started and self._inflight is not None:
            queue.ring.keep_track(self._inflight)

    async def _set_vring_call(self, message: Message) -> None:
        queue, fd = self._take_descriptor(message)
        queue.set_descriptor("call_fd", fd)
        queue.call()  # what was used while there was another, or none: a call too many harms nobody

    async def _set_vring_err(self, message: Message) -> None:
        queue, fd = self._take_descriptor(message)
        queue.set_descriptor("error_fd", fd)

    async def _set_vring_enable(self, message: Message) -> None:
        index, enable = message.vring_state()
        self._queue(index).is_enabled = bool(enable)

    # The end --------------------------------------------------------------------------------------------------------

    def drop(self, reason: str) -> None:
        """Close it; what has started goes on to its end. An empty reason needs no word of warning."""
        if self.is_closed:
            return
        self.is_closed = True
        if reason:
            log.warning("%s loses its device: %s", self.words, reason)
        else:
            log.info("%s has gone", self.words)
        self._device.is_gone = True
        self._watching.unwatch(self._socket.fileno())
        self._close_what_is_theirs()
        for queue in self._queues:
            self._stop(queue)
        if self._drained is not None:
            drained, self._drained = self._drained, None
            drained.set()
        self._handle.fence(self._handle.epoch + 1, self._gone)

    def _close_what_is_theirs(self) -> None:
        """Sockets, with what lies in their queues, and what no message should have brought."""
        descriptors, self._descriptors = self._descriptors, []
        for message in self._messages:
            descriptors += message.descriptors
        self._messages.clear()
        sockets = [each for each in (self._socket, self._backend_channel) if each is not None]

        def close() -> None:
            for each in sockets:
                each.close()
            _close(descriptors)

        self._close_theirs(close)

    def _close_theirs(self, close: Callable[[], None]) -> None:
        if self._is_trusted:
            close()
        else:
            self._runtime.close_apart(close)

    def _gone(self) -> None:
        """Nothing of its guest's memory is in use any more."""
        self._inflight = None
        self._runtime.close_apart(partial(close_regions, self._memory.detach()), self._on_gone)


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
