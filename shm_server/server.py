"""The volume server: one process, one epoll loop, one turn after the other.

A turn serves a bounded batch of every client that has entries in its ring, one step of every long operation, and what
the worker threads have finished; then it publishes completions, once per client. Only when there is nothing to do does
it raise its sleep words, look at the rings once more, and sleep in epoll; under load sockets are looked at every
millisecond. Requests of clients are answered in requests.py, entries in dispatch.py; this file knows when, not what.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shm_server.abi import control, segment
from shm_server.abi.ring import RingError
from shm_server.client import Client, ClientError
from shm_server.dispatch import Attachment, Dispatcher
from shm_server.fullness import DEFAULT_SOFT_THRESHOLD_PERCENT, Fullness
from shm_server.interfaces.exports import ExportRule, Exports
from shm_server.locks import FileLock, listen
from shm_server.manager import Manager
from shm_server.promoting import Promoter
from shm_server.records import Records
from shm_server.requests import Requests
from shm_server.runtime import Runtime
from shm_server.sanitizer import Sanitizer
from shm_server.scrubbing import DEFAULT_BYTES_PER_S, Scrubber
from shm_server.snapshots import Snapshots
from shm_server.stores import DEFAULT_MAP_CACHE_BYTES, DelayRule, open_stores
from shm_server.stores.redo import make_directory
from shm_server.unfinished import Unfinished
from shm_server.volumes.catalog import Catalog

log = logging.getLogger(__name__)

MAX_CLIENTS = 128
POLL_S = 0.001  # under load, sockets are looked at behind the turn that ends so long after the last look
STARVED_POLL_S = 0.005  # a client whose completion ring is full rings no doorbell when it makes room
DRAIN_LIMIT_S = 30.0
ACCEPT_RETRY_S = 1.0
LINGER_S = 1.0  # how long a refused client may take to read why


@dataclass(frozen=True)
class Settings:
    """What a server needs to know; config.py fills it."""

    pool: Path
    socket_path: Path
    store: str = "file"
    region_bytes: int = 256 << 20
    max_volume_size: int = 64 << 40
    is_shm_enabled: bool = True
    config_path: str = "vpool.json"
    allowed_uids: tuple[int, ...] = ()
    map_cache_bytes: int = DEFAULT_MAP_CACHE_BYTES
    delays: Sequence[DelayRule] = ()
    exports: Sequence[ExportRule] = ()
    spin_s: float = 100e-6  # how long to look at the rings after work, giving way to others, before sleeping
    soft_threshold_percent: int = DEFAULT_SOFT_THRESHOLD_PERCENT  # of the pool's file system; 0: none
    checksum_bytes_per_s: int = DEFAULT_BYTES_PER_S  # the pace at which sealed layers get their checksums
    sanitize_bytes_per_s: int | None = None  # the pace of an overwrite; None: as fast as it goes


class Server:
    """``start()``, then ``run()`` until ``stop()`` (from any thread, or a signal)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clients: dict[int, Client] = {}
        self._attached: tuple[tuple[Client, Attachment], ...] = ()
        self._doomed: list[tuple[Client, str]] = []
        self._watched: dict[int, Callable[[int], None]] = {}
        self._client_number = 0
        self._is_stopping = False
        self._wakeup: tuple[socket.socket, socket.socket] | None = None

    # Beginning and end ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Lock, open, listen. Raises OSError with words for people."""
        settings = self._settings
        segment.check_machine()
        make_directory(settings.pool)
        self._pool_lock = FileLock(settings.pool / ".lock", f"pool {settings.pool}")
        try:
            lock_path = settings.socket_path.with_name(settings.socket_path.name + ".lock")
            self._socket_lock = FileLock(lock_path, f"socket {settings.socket_path}")
            try:
                self._listener = listen(settings.socket_path, is_public=bool(settings.allowed_uids))
                try:
                    self._build()
                except BaseException:
                    self._listener.close()
                    settings.socket_path.unlink(missing_ok=True)
                    raise
            except BaseException:
                self._socket_lock.close()
                raise
        except BaseException:
            self._pool_lock.close()
            raise

    def _build(self) -> None:
        settings = self._settings
        self._stores = open_stores(settings.store, settings.pool, settings.delays, settings.map_cache_bytes)
        self._catalog = Catalog(settings.pool / "catalogue.sqlite" if self._stores.is_persistent else None)
        self._runtime = Runtime()
        refusal = None
        if not settings.is_shm_enabled:
            refusal = (
                f"attaching is switched off: set filesystem.fs_enable_shm_interface to true in {settings.config_path}"
            )
        self._requests = Requests(self._runtime, self, str(settings.pool), os.getpid(), settings.region_bytes, refusal)
        self._manager = Manager(
            self._runtime, self._stores, self._catalog, settings.max_volume_size, watcher=self._requests
        )
        self._requests.manager = self._manager
        self._requests.records = Records(self._runtime, self._catalog, self._manager, watcher=self._requests)
        self._requests.sanitizer = Sanitizer(
            self._runtime, self._manager, self._requests.volume_changed, settings.sanitize_bytes_per_s
        )
        self._requests.snapshots = Snapshots(self._runtime, self._stores, self._manager, self._requests.volume_changed)
        pool = settings.pool if self._stores.is_persistent else None
        percent = settings.soft_threshold_percent
        self._requests.fullness = Fullness(self._runtime, pool, percent, self._requests.pool_changed)
        self._requests.promoter = Promoter(
            *(self._runtime, self._stores, self._manager, self._requests.snapshots, self._catalog),
            self._requests.volume_changed,
        )
        checks = self._stores.layer_checks if self._stores.can_layer else None
        self._requests.scrubber = Scrubber(self._runtime, checks, self._manager, settings.checksum_bytes_per_s)
        self._requests.unfinished = Unfinished(self._manager)
        self._looks = checks.looks if checks is not None else ()
        self._dispatcher = Dispatcher(self._runtime, self._looks)
        self._exports = Exports(self._runtime, self._manager, self, settings.allowed_uids)
        self._requests.exports = self._exports
        self._epoll = select.epoll()
        self.watch(self._listener.fileno(), self._accept)
        # Edge-triggered: an eventfd that is only there to wake us need not be read.
        self.watch(self._runtime.wake_fd, _ignore, select.EPOLLIN | select.EPOLLET)

    def handle_signals(self) -> None:
        """SIGTERM and SIGINT stop the server. Only from the main thread."""
        self._wakeup = socket.socketpair()
        for end in self._wakeup:
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup[1].fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: None)
        self.watch(self._wakeup[0].fileno(), self._signalled)

    def _signalled(self, _events: int) -> None:
        assert self._wakeup is not None
        numbers = set(self._wakeup[0].recv(64))
        if numbers & {signal.SIGTERM, signal.SIGINT}:
            log.info("stopping: %s", ", ".join(sorted(signal.Signals(number).name for number in numbers)))
            self._is_stopping = True

    def stop(self) -> None:
        """End run() soon. From any thread."""
        self._is_stopping = True
        self._runtime.wake()

    def run(self) -> None:
        """Serve until stopped; then let what has started end, and clean up."""
        try:
            self._exports.begin(self._settings.exports)
            while not self._is_stopping:
                self._turn()
        finally:
            self._shut_down()

    def _shut_down(self) -> None:
        self.unwatch(self._listener.fileno())
        self._listener.close()
        self._requests.is_stopping = True
        deadline = time.monotonic() + DRAIN_LIMIT_S
        while self._in_flight() and time.monotonic() < deadline:
            self._publish()
            timeout_s = self._runtime.timeout_s()
            self._poll(0.5 if timeout_s is None else min(0.5, timeout_s))
        if left := self._in_flight():
            log.warning("%d operations did not end within %g s", left, DRAIN_LIMIT_S)
        self._publish()
        self._exports.close()
        for client in list(self._clients.values()):
            self._close_client(client)
        self._runtime.collect()
        self._settings.socket_path.unlink(missing_ok=True)
        self._runtime.close()
        self._catalog.close()
        self._stores.close()
        self._epoll.close()
        if self._wakeup is not None:
            signal.set_wakeup_fd(-1)
            for end in self._wakeup:
                end.close()
        self._socket_lock.close()
        self._pool_lock.close()
        log.info("stopped")

    def _in_flight(self) -> int:
        operations = sum(attachment.in_flight for _, attachment in self._attached)
        operations += self._exports.in_flight()
        return operations + self._requests.in_flight() + sum(client.requests for client in self._clients.values())

    # The loop -------------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Work until there is nothing to do, then sleep once."""
        clock = time.monotonic
        due = clock() + POLL_S
        while not self._is_stopping:
            if self._serve():
                if clock() > due:
                    self._poll(0)
                    due = clock() + POLL_S
            elif self._may_sleep():
                break
        else:
            return
        timeout_s = self._runtime.timeout_s()
        if any(attachment.is_starved for _, attachment in self._attached):
            timeout_s = STARVED_POLL_S if timeout_s is None else min(timeout_s, STARVED_POLL_S)
        self._poll(timeout_s)
        for _, attachment in self._attached:
            attachment.submissions.lower_sleep()

    def _serve(self) -> bool:
        """A batch of every client, a step of every long operation. False: there was nothing to do."""
        serve = self._dispatcher.serve
        worked = False
        for client, attachment in self._attached:
            try:
                if serve(attachment):
                    worked = True
            except RingError as error:
                self.drop(client, str(error))
            except Exception:
                log.exception("%s: a mistake of the server", client.words)
                self.drop(client, "a mistake of the server")
        if self._exports.front_ends:
            for each in self._looks:
                each.look()
            if self._exports.serve():
                worked = True
        runtime = self._runtime
        if runtime.finished:
            runtime.collect()
            worked = True
        if runtime.ready:
            runtime.step()
            worked = True
        self._dispatcher.publish()
        if self._exports.front_ends:
            self._exports.publish()
        if self._doomed:
            self._bury_doomed()
        return worked

    def _publish(self) -> None:
        self._dispatcher.publish()
        if self._exports.front_ends:
            self._exports.publish()

    def _may_sleep(self) -> bool:
        """Raise the sleep words; False: something has come in meanwhile."""
        if self._settings.spin_s and self._spin():
            return False
        for _, attachment in self._attached:
            if not attachment.is_starved and not attachment.submissions.raise_sleep():
                for _, other in self._attached:
                    other.submissions.lower_sleep()
                return False
        if self._exports.front_ends and not self._exports.arm():
            for _, attachment in self._attached:
                attachment.submissions.lower_sleep()
            return False
        return True

    def _spin(self) -> bool:
        """Look at the rings for a while; True: something has come."""
        deadline = time.monotonic() + self._settings.spin_s
        while time.monotonic() < deadline:
            os.sched_yield()  # whoever else wants this core has it
            if self._runtime.finished or (self._exports.front_ends and self._exports.is_waiting()):
                return True
            for client, attachment in self._attached:
                try:
                    if not attachment.is_starved and attachment.submissions.pending():
                        return True
                except RingError as error:
                    self.drop(client, str(error))
                    return True
        return False

    def _poll(self, timeout_s: float | None) -> None:
        """Sockets, timers, threads."""
        for fd, events in self._epoll.poll(timeout_s):
            watcher = self._watched.get(fd)
            if watcher is not None:
                watcher(events)
        self._runtime.fire_timers()
        self._runtime.collect()
        self._runtime.step()
        if self._doomed:
            self._bury_doomed()

    def watch(self, fd: int, watcher: Callable[[int], None], events: int = select.EPOLLIN) -> None:
        self._epoll.register(fd, events)
        self._watched[fd] = watcher

    def unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    # Clients --------------------------------------------------------------------------------------------------------

    def _accept(self, _events: int) -> None:
        if self._runtime.closings.waiting:
            self._accept_later("what others left is not closed yet")
            return
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            self._accept_later(str(error))  # out of descriptors, most likely
            return
        connection.setblocking(False)
        self._client_number += 1
        client = Client(connection, self._client_number)
        client.on_output_change = lambda: self._output_changed(client)
        refusal = self._refusal(client)
        self._clients[client.number] = client
        self.watch(connection.fileno(), lambda events: self._client_ready(client, events))
        if refusal is not None:
            self._refuse(client, refusal)

    def _accept_later(self, reason: str) -> None:
        """Who comes waits in the queue, and we don't turn in circles meanwhile."""
        log.error("can't accept a client, trying again in %g s: %s", ACCEPT_RETRY_S, reason)
        self.unwatch(self._listener.fileno())
        self._runtime.after(ACCEPT_RETRY_S, self._accept_again)

    def _accept_again(self) -> None:
        if not self._is_stopping:
            self.watch(self._listener.fileno(), self._accept)

    def _refusal(self, client: Client) -> OSError | None:
        settings = self._settings
        if client.uid not in (0, os.getuid(), *settings.allowed_uids):
            return OSError(
                errno.EACCES,
                f"uid {client.uid} may not use this server: "
                f"list it in shm_server.allowed_uids of {settings.config_path}",
            )
        if len(self._clients) >= MAX_CLIENTS:
            return OSError(errno.EAGAIN, f"this server has {MAX_CLIENTS} clients, which is the most it can have")
        return None

    def _refuse(self, client: Client, error: OSError) -> None:
        """Tell it why (id 0) and close, but not before it can have read that: its own words may be on their way."""
        words = error.strerror or str(error)
        try:
            client.send(control.Failed(0, error.errno or errno.EPROTO, words))
        except OSError:
            pass
        if client.attachment is not None:
            self.drop(client, words)
        else:
            log.warning("%s is refused: %s", client.words, words)
            self._linger(client)

    def _linger(self, client: Client) -> None:
        """No more words from us; what comes is thrown away until it closes, for a moment."""
        client.is_closing = True
        client.end_output()
        self._runtime.after(LINGER_S, lambda: self.drop(client, ""))

    def _client_ready(self, client: Client, events: int) -> None:
        if client.is_closed:
            return
        try:
            if events & select.EPOLLOUT:
                client.flush()
            if client.is_closing and events & ~select.EPOLLOUT:
                if not client.discard():
                    self.drop(client, "")
            elif events & ~select.EPOLLOUT:
                requests = client.receive()
                if requests is None:
                    self.drop(client, "")
                    return
                for request in requests:
                    self._requests.accept(client, request)
        except (control.ControlError, ClientError) as error:
            self._refuse(client, error)
        except OSError as error:
            self.drop(client, str(error))
        except Exception:
            log.exception("%s: a mistake of the server", client.words)
            self.drop(client, "a mistake of the server")
        if client.is_closing and not client.is_lingering:
            self._linger(client)

    def drop(self, client: Client, reason: str) -> None:
        """Close a client at the end of this turn; an empty reason needs no log line."""
        if reason:
            log.warning("%s is refused: %s", client.words, reason)
        if not client.is_doomed:
            client.is_doomed = True
            self._doomed.append((client, reason))

    def _bury_doomed(self) -> None:
        while self._doomed:
            client, _ = self._doomed.pop()
            self._close_client(client)

    def _close_client(self, client: Client) -> None:
        if self._clients.pop(client.number, None) is None:
            return
        self.unwatch(client.socket.fileno())
        if client.bell is not None:
            self.unwatch(client.bell.fileno())
        self._attached = tuple(pair for pair in self._attached if pair[0] is not client)
        apart = client.close()
        if apart is not None:
            self._runtime.close_apart(apart)
        self._requests.release(client)

    def attached(self, client: Client) -> None:
        """Its ring is there: serve it from now on."""
        assert client.attachment is not None
        assert client.bell is not None
        self._attached = (*self._attached, (client, client.attachment))
        self.watch(client.bell.fileno(), _ignore, select.EPOLLIN | select.EPOLLET)

    def clients(self) -> Iterable[Client]:
        return self._clients.values()

    def _output_changed(self, client: Client) -> None:
        """Its socket did not take all, or has taken the rest now."""
        self._epoll.modify(client.socket.fileno(), select.EPOLLIN | (select.EPOLLOUT if client.wants_to_send else 0))


def _ignore(_events: int) -> None:
    """Being awake is all that was wanted."""
