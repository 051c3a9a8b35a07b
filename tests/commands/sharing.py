"""Several initiators on one disk: three of them, on two ports each, who register, reserve and preempt."""

from __future__ import annotations

from iscsi_ovs import scsi
from iscsi_ovs.commands import transport_id
from iscsi_ovs.commands.registrations import Registrant
from iscsi_ovs.scsi import PortGroup, TargetPorts
from tests.commands.bench import IQN, Bench

PORTS = ((1, 1), (2, 2))  # portal group tag, relative target port
NAMES = ("iqn.test:a", "iqn.test:b", "iqn.test:c")
ISID = bytes.fromhex("800000000001")

REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_AND_IGNORE, REGISTER_AND_MOVE = range(8)
READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES, READ_FULL_STATUS = range(4)
WRITE_EXCLUSIVE, EXCLUSIVE_ACCESS = 1, 3
WERO, EARO, WEAR, EAAR = 5, 6, 7, 8
TYPES = (WRITE_EXCLUSIVE, EXCLUSIVE_ACCESS, WERO, EARO, WEAR, EAAR)
SPEC_I_PT, ALL_TG_PT, UNREG, APTPL = 0x08, 0x04, 0x02, 0x01


def new_nexus(name: str, port: tuple[int, int] = PORTS[0], isid: bytes = ISID) -> scsi.Nexus:
    tag, relative_port = port
    ports = TargetPorts(IQN, [PortGroup(*port) for port in PORTS])
    return scsi.Nexus(name, isid, IQN, portal_group_tag=tag, relative_port=relative_port, ports=ports)


def plain_list(key: int, action_key: int, flags: int = 0, more: bytes = b"") -> bytes:
    return key.to_bytes(8, "big") + action_key.to_bytes(8, "big") + bytes((0, 0, 0, 0, flags, 0, 0, 0)) + more


def with_ids(identifiers: bytes) -> bytes:
    return len(identifiers).to_bytes(4, "big") + identifiers


def move_list(key: int, action_key: int, identifier: bytes, port: int = 1, flags: int = 0) -> bytes:
    head = key.to_bytes(8, "big") + action_key.to_bytes(8, "big") + bytes((0, flags)) + port.to_bytes(2, "big")
    return head + len(identifier).to_bytes(4, "big") + identifier


def id_of(name: str, isid: bytes = ISID) -> bytes:
    return transport_id.encode(name, isid)


class Cluster:
    """Nexuses ``a1 a2 b1 b2 c1 c2``: initiator and port."""

    def __init__(self) -> None:
        self.disk = Bench()
        self.disk.unit.power_on = "first"
        self.nexuses: dict[str, scsi.Nexus] = {}
        for name in NAMES:
            for number, port in enumerate(PORTS, 1):
                self.nexuses[f"{name[-1]}{number}"] = self.disk.login(new_nexus(name, port))

    def out(
        self, who: str, action: int, key: int = 0, action_key: int = 0, *, kind: int = 0, flags: int = 0
    ) -> scsi.Outcome:
        return self.send(who, action, plain_list(key, action_key, flags), kind)

    def send(
        self, who: str, action: int, data: bytes, kind: int = 0, *, length: int | None = None, sent: int | None = None
    ) -> scsi.Outcome:
        length = len(data) if length is None else length
        cdb = f"5f {action:02x} {kind:02x} 0000 {length:08x} 00"
        return self.disk.execute(cdb, data_out=data, data_out_bytes=sent, nexus=self.nexuses[who])

    def do(self, who: str, action: int, key: int = 0, action_key: int = 0, *, kind: int = 0, flags: int = 0) -> None:
        outcome = self.out(who, action, key, action_key, kind=kind, flags=flags)
        assert outcome.status == scsi.GOOD, outcome
        assert outcome.transfer_bytes == 24

    def conflicts(self, who: str, action: int, key: int = 0, action_key: int = 0, *, kind: int = 0) -> bool:
        outcome = self.out(who, action, key, action_key, kind=kind)
        assert outcome.status in (scsi.GOOD, scsi.RESERVATION_CONFLICT), outcome
        return outcome.status == scsi.RESERVATION_CONFLICT

    def ask(self, action: int, who: str = "c2", length: int = 0xFFFF) -> bytes:
        outcome = self.disk.execute(f"5e {action:02x} 0000000000 {length:04x} 00", nexus=self.nexuses[who])
        assert outcome.status == scsi.GOOD, outcome
        return self.disk.payload

    def keys(self) -> list[int]:
        data = self.ask(READ_KEYS)
        assert int.from_bytes(data[4:8], "big") == len(data) - 8
        return [int.from_bytes(data[at : at + 8], "big") for at in range(8, len(data), 8)]

    @property
    def generation(self) -> int:
        return int.from_bytes(self.ask(READ_KEYS)[:4], "big")

    def reservation(self) -> tuple[int, int] | None:
        """Key and type."""
        data = self.ask(READ_RESERVATION)
        if len(data) == 8:
            assert data[4:] == bytes(4)
            return None
        assert len(data) == 24
        assert data[4:8] == b"\0\0\0\x10"
        assert data[16:21] + data[22:] == bytes(7)
        return int.from_bytes(data[8:16], "big"), data[21]

    def attentions(self, who: str) -> list[tuple[int, int]]:
        """What waits for a nexus; it is heard."""
        pending = self.nexuses[who].attentions[self.disk.unit]
        heard, pending[:] = list(pending), []
        return heard

    def all_attentions(self) -> dict[str, list[tuple[int, int]]]:
        return {who: heard for who in self.nexuses if (heard := self.attentions(who))}

    def can_write(self, who: str) -> bool:
        return self._goes("2a 00 00000000 00 0001 00", who, bytes(512))

    def can_read(self, who: str) -> bool:
        return self._goes("28 00 00000000 00 0001 00", who)

    def _goes(self, cdb: str, who: str, data: bytes = b"") -> bool:
        outcome = self.disk.execute(cdb, data_out=data, nexus=self.nexuses[who])
        assert outcome.status in (scsi.GOOD, scsi.RESERVATION_CONFLICT), outcome
        return outcome.status == scsi.GOOD

    def registrant(self, who: str) -> Registrant:
        return Registrant.of(self.nexuses[who])


def register_all(cluster: Cluster) -> None:
    for who, key in (("a1", 0xA1), ("b1", 0xB1), ("c1", 0xC1)):
        cluster.do(who, REGISTER, 0, key)
