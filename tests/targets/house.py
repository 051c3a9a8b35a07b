"""A target process without processes: a volume server of ordinary memory, sockets that are function calls."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from iscsi_ovs import block, scsi
from iscsi_ovs.config.configuration import Configuration
from iscsi_ovs.errors import ConfigurationError
from iscsi_ovs.net.clock import Clock
from iscsi_ovs.net.portal import Address
from iscsi_ovs.session.connection import Connection
from iscsi_ovs.target import Settings, TargetServer
from iscsi_ovs.testing.initiator import Initiator, Result
from iscsi_ovs.testing.memory_device import MemoryDevice, MemoryPool
from shm_server.abi import control, names

BLOCK = 512
IQN = Settings().iqn("demo")
PORTAL = Address("127.0.0.1", 3260)
OTHER_PORT = b"\x80\x12\x34\x56\x00\x02"


def info_of(name: str = "demo", uuid: str = "a" * 32, size: int = 1 << 20, generation: int = 0) -> control.VolumeInfo:
    return control.VolumeInfo(name, uuid, size, 0, generation, True, is_read_only=names.is_snapshot(name))


def uuid_of(name: str) -> str:
    """As good as random; the first volume's is what info_of says."""
    return "a" * 32 if name == "demo" else hashlib.md5(name.encode()).hexdigest()


class Handle(MemoryDevice):
    """An open volume; all handles of one share its bytes."""

    def __init__(self, service: FakeService, info: control.VolumeInfo, access: str) -> None:
        super().__init__(info.size_bytes)
        self.access = access
        self.data = service.bytes_of.setdefault(info.uuid, self.data)
        self.service = service
        self.info = info
        self.is_closed = False
        self.closing: Callable[[OSError | None], None] | None = None

    def close(self, callback: Callable[[OSError | None], None]) -> None:
        assert not self.is_closed
        self.is_closed = True
        self.closing = callback

    def run(self) -> list[block.Completion]:
        completions = super().run()
        if self.closing is not None and not self.held:
            closing, self.closing = self.closing, None
            self.service.handles.remove(self)
            closing(None)
        return completions


class FakeService:
    """The volume server as storage.service shows it. Answers come when ``run`` is called, as in a turn of the loop."""

    def __init__(self, slots: int = 256) -> None:
        self.slots = slots
        self.infos: dict[str, control.VolumeInfo] = {"demo": info_of()}
        self.bytes_of: dict[str, bytearray] = {}
        self.handles: list[Handle] = []
        self.openings: list[tuple[str, str, Callable[[Any], None]]] = []  # volume, access
        self.opens = 0
        self.holds_opens = False
        self.open_error: OSError | None = None
        self.held: set[str] = set()  # volumes that somebody else has
        self.records: dict[tuple[str, str], tuple[int, bytes]] = {}
        self.stats: list[tuple[str, Callable[[Any], None]]] = []
        self.pool_info = control.PoolInfo(0, 0, 0, False)
        self.recordings: list[Callable[[Any], None]] = []  # what is to be read or put: called when it is its turn
        self.holds_records = False
        self.sanitizes: list[tuple[control.Sanitize, Callable[[Any], None]]] = []  # asked for and not answered
        self.acks: list[control.Event] = []
        self.is_attached = False
        self.is_there = True
        self.is_connected = False
        self.wants_write = False
        self.pool: Any = None
        self.on_attached: Any = None
        self.on_lost: Any = None
        self.on_event: Any = None

    def connect(self) -> None:
        if not self.is_there:
            raise OSError(errno.ECONNREFUSED, "nobody listens")
        assert not self.is_connected
        self.is_connected = True

    def attach(self) -> None:
        self.pool = MemoryPool(self.slots)
        self.is_attached = True
        self.on_attached([info for name, info in self.infos.items() if not names.is_snapshot(name)])

    def lose(self) -> None:
        """Everything is answered as the real one does: control requests, then I/O, then on_lost."""
        error = OSError(errno.ECONNRESET, "the volume server closed the connection")
        openings, self.openings = self.openings, []
        for _, _, callback in openings:
            callback(error)
        recordings, self.recordings = self.recordings, []
        for record in recordings:
            record(error)
        sanitizes, self.sanitizes = self.sanitizes, []
        for _, callback in sanitizes:
            callback(error)
        handles, self.handles = self.handles, []
        for handle in handles:
            if handle.closing is not None:
                handle.closing(error)
        for handle in handles:
            for request in [*handle.held, *handle.pending, *handle._cancelled]:
                assert request.done is not None
                request.done(block.Completion(request, block.Error.UNREACHABLE, 0))
            for fence in handle._fences:
                fence()
            handle._held.clear()
            handle._queue.clear()
            handle._cancelled.clear()
            handle._fences.clear()
        self.is_there = False
        self.is_connected = False
        self.on_lost(error)
        self.is_attached = False
        self.pool = None

    def control_fileno(self) -> int:
        return 98

    def doorbell_fileno(self) -> int:
        return 99

    def control_ready(self, readable: bool = True, writable: bool = False) -> None:
        pass

    def ack(self, event: control.Event) -> None:
        self.acks.append(event)

    def open(self, name: str, access: str, owner: str, words: str, callback: Callable[[Any], None]) -> None:
        self.opens += 1
        self.openings.append((name, access, callback))

    def get_record(self, name: str, record: str, callback: Callable[[Any], None]) -> None:
        def get(error: OSError | None) -> None:
            callback(error or control.Record(0, record, *self.records.get((name, record), (0, b""))))

        self.recordings.append(get)

    def put_record(self, name: str, record: str, version: int, data: bytes, callback: Callable[[Any], None]) -> None:
        def put(error: OSError | None) -> None:
            if error is None and self.records.get((name, record), (0, b""))[0] != version:
                error = OSError(errno.ESTALE, "it has another version")
            if error is None:
                self.records[name, record] = (version + 1, data)
            callback(error or control.Record(0, record, version + 1, b""))

        self.recordings.append(put)

    def sanitize(self, message: control.Sanitize, callback: Callable[[Any], None]) -> None:
        self.sanitizes.append((message, callback))

    def stat_pool(self, callback: Callable[[Any], None]) -> None:
        callback(self.pool_info)

    def stat(self, name: str, callback: Callable[[Any], None]) -> None:
        self.stats.append((name, callback))

    def change(self, **fields: Any) -> None:
        """Something is new of the volume "demo", and its holders hear of it."""
        self.infos["demo"] = msgspec.structs.replace(self.infos["demo"], **fields)
        self.on_event(control.VolumeChanged(1, self.infos["demo"]))

    def run(self) -> bool:
        worked = False
        stats, self.stats = self.stats, []
        for name, told in stats:
            worked = True
            missing = OSError(errno.ENOENT, "no such volume")
            told(self.infos.get(name, missing) if self.is_there else OSError(errno.ENOTCONN, "not connected"))
        if not self.holds_records:
            recordings, self.recordings = self.recordings, []
            for record in recordings:
                worked = True
                record(None if self.is_attached else OSError(errno.ENOTCONN, "not attached to a volume server"))
        if not self.holds_opens or not self.is_attached:
            openings, self.openings = self.openings, []
            for name, access, callback in openings:
                worked = True
                if not self.is_attached:
                    callback(OSError(errno.ENOTCONN, "not attached to a volume server"))
                elif self.open_error is not None:
                    callback(self.open_error)
                elif name in self.held:
                    callback(OSError(errno.EBUSY, "held by qemu pid 7"))
                elif name not in self.infos:
                    callback(OSError(errno.ENOENT, "no such volume"))
                else:
                    handle = Handle(self, self.infos[name], access)
                    self.handles.append(handle)
                    callback(handle)
        for handle in list(self.handles):
            had_closing = handle.closing is not None
            worked = bool(handle.run()) or (had_closing and handle.closing is None) or worked
        return worked


class FakeDriver:
    """Sockets that nobody has."""

    def __init__(self) -> None:
        self.watched: set[int] = set()
        self.stopped = False
        self.listening: set[Address] = set()
        self.taken: set[Address] = set()  # by somebody else
        self.has_unsent = False

    def watch(self, fd: int, callback: Callable[[int], None], mask: int = 1) -> None:
        assert fd not in self.watched
        self.watched.add(fd)

    def rewatch(self, fd: int, mask: int) -> None:
        assert fd in self.watched

    def unwatch(self, fd: int) -> None:
        self.watched.discard(fd)

    def listen(self, address: Address, inherited_fd: int | None = None) -> Address:
        if address in self.taken:
            raise ConfigurationError(f"portal {address} is taken")
        assert address not in self.listening
        self.listening.add(address)
        return address

    def unlisten(self, address: Address) -> None:
        self.listening.remove(address)

    def output_ready(self, connection: Connection) -> None:
        pass

    def closing(self, connection: Connection) -> None:
        pass

    def stop(self) -> None:
        self.stopped = True


class House:
    """A target, its volume server, and initiators that log in."""

    def __init__(self, slots: int = 256, configuration: Configuration | None = None, volumes: str = "demo") -> None:
        self.service = FakeService(slots)
        self.service.infos = {name: info_of(name, uuid_of(name)) for name in volumes.split()}
        self.now = 100.0
        self.clock = Clock(lambda: self.now)
        self.target = TargetServer(self.service, self.clock)  # type: ignore[arg-type]
        self.target.core.driver.close()
        self.driver = FakeDriver()
        self.target.core.driver = self.driver  # type: ignore[assignment]
        if configuration is None:
            self.target.listen(PORTAL)
        else:
            self.target.configure(configuration)
        self.clients: list[Client] = []
        self.target.volume_server.connect()
        self.service.attach()

    def restart(self) -> None:
        """The volume server is there again: the target finds it by itself."""
        self.service.is_there = True
        self.pass_time(0.1)
        assert self.service.is_connected
        self.service.attach()

    def run(self, *, storage: bool = True) -> None:
        """Turns of the loop until nothing moves."""
        for _ in range(10_000):
            moved = sum(client.move() for client in self.clients) > 0  # all of them move
            moved = (self.service.run() if storage else False) or moved
            self.target.turn()
            if not moved:
                return
        raise AssertionError("it never ends")

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.clock.run_due()
        for client in self.clients:
            if not client.connection.is_closed:
                self.target.happened(client.connection, client.connection.tick(self.now))

    def client(self, **identity: Any) -> Client:
        client = Client(self, **identity)
        self.clients.append(client)
        return client

    def login(self, **identity: Any) -> Client:
        client = self.client(**identity)
        client.initiator.login(IQN)
        self.run()
        assert client.initiator.is_logged_in
        client.attentions()
        return client

    @property
    def node(self) -> Any:
        return self.target.nodes.find(IQN)


class Client:
    """An initiator on a connection of the target."""

    def __init__(self, house: House, at: Address = PORTAL, host: str = "127.0.0.1", **identity: Any) -> None:
        self.house = house
        self.connection = house.target.connected(f"{host}:49152", at, house.now, at)
        self.initiator = Initiator(**identity)
        self.is_stopped = False

    def move(self) -> bool:
        connection = self.connection
        if self.is_stopped:
            return False
        data = self.initiator.to_send() if connection.wants_read else b""
        self.give(data)
        pieces = b"".join(bytes(piece) for piece in connection.data_to_send())
        if pieces:
            connection.sent(len(pieces))
            self.initiator.feed(pieces)
        return bool(data or pieces)

    def give(self, data: bytes) -> None:
        connection = self.connection
        while data and connection.wants_read:
            taken = 0
            for buffer in connection.receive_buffers():
                piece = data[taken : taken + len(buffer)]
                buffer[: len(piece)] = piece
                taken += len(piece)
            data = data[taken:]
            self.house.target.happened(connection, connection.received(taken, self.house.now))

    def lose(self) -> None:
        self.house.target.happened(self.connection, self.connection.lost("cable"))

    def attentions(self, lun: int = 0) -> list[Any]:
        """Hear what the unit has to say first."""
        heard = []
        while True:
            result = self.do(self.initiator.command(bytes(6), lun=lun))
            if not result.sense or result.sense[2] & 0x0F != scsi.UNIT_ATTENTION_KEY:
                return heard
            heard.append(result.additional_sense)

    def luns(self) -> list[int]:
        """What REPORT LUNS says."""
        data = self.do(self.initiator.command(bytes.fromhex("a00000000000000004000000"), read=1024)).data
        fields = [int.from_bytes(data[at : at + 8], "big") for at in range(8, len(data), 8)]
        return [field >> 48 & 0x3FFF for field in fields]

    def send_targets(self, text: str = "All") -> dict[str, list[str]]:
        """Names, each with its addresses."""
        answer = self.do(self.initiator.send_targets(text)).data
        found: dict[str, list[str]] = {}
        for pair in bytes(answer).decode().split("\0"):
            key, _, value = pair.partition("=")
            if key == "TargetName":
                addresses = found[value] = []
            elif key:
                addresses.append(value)
        return found

    def do(self, tag: int) -> Result:
        self.house.run()
        result = self.initiator.results[tag]
        assert result.is_complete
        return result

    def read(self, lba: int, blocks: int, lun: int = 0) -> int:
        cdb = bytes((0x28, 0)) + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"
        return self.initiator.command(cdb, read=blocks * BLOCK, lun=lun)

    def write(self, lba: int, data: bytes, lun: int = 0) -> int:
        cdb = bytes((0x2A, 0)) + lba.to_bytes(4, "big") + b"\0" + (len(data) // BLOCK).to_bytes(2, "big") + b"\0"
        return self.initiator.command(cdb, write=data, lun=lun)


def kept(house: House) -> Iterator[House]:
    """The body of a fixture: at its end everybody leaves, and every slot is where it was."""
    yield house
    for handle in house.service.handles:
        handle.let_go()
    for client in house.clients:
        client.lose()
    house.run()
    if house.service.is_attached:
        assert house.service.handles == [], "a handle that nobody closes holds its volume for ever"
        assert house.service.pool.is_whole
    assert house.target.members.is_empty
