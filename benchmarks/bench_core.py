"""What the target's own Python costs a command: driver, sockets and volume server left out.

A connection of the assembled target is fed whole batches of SCSI commands as a socket would bring them; requests go
through the real ring queue, and what stands in for the volume server pushes a completion for each entry (not counted).
Counted is what the target does from received bytes to the gather list of the answers, in processor time.

    python -m benchmarks.bench_core [--batch 32] [--rounds 7] [--profile write]
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import os
import pstats
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from benchmarks import report
from benchmarks.report import KIB
from iscsi_ovs import pdu
from iscsi_ovs.net.clock import Clock
from iscsi_ovs.net.portal import Address
from iscsi_ovs.storage.attachment import Attachment
from iscsi_ovs.storage.device import DeviceHandle
from iscsi_ovs.target import Settings, TargetServer
from iscsi_ovs.testing.initiator import Initiator
from shm_server.abi import control, layout, ring, segment

SLOTS = 1024
INFO = control.VolumeInfo("bench", "a" * 32, 1 << 30, 0, 0, True)


class Volumes:
    """Storage's service with the real queue and pool, and a volume server that finds everything done."""

    def __init__(self) -> None:
        entries = layout.DEFAULT_RING_ENTRIES
        rings_fd = segment.create_rings(entries, entries, layout.SLOT_BYTES, SLOTS)
        rings = memoryview(segment.map_rings(rings_fd, entries, entries))
        self._submissions = ring.SubmissionConsumer(rings, entries)
        self._completions = ring.CompletionProducer(rings, entries, entries)
        attached = control.Attached(0, layout.SLOT_BYTES, SLOTS, entries, entries)
        descriptors = [segment.create_slots(SLOTS), rings_fd, os.eventfd(0), os.eventfd(0)]
        self._attachment = Attachment(attached, descriptors, deque())
        self._openings: list[Callable[[Any], None]] = []
        self.queue = self._attachment.queue
        self.pool = self._attachment.pool
        self.is_attached = True
        self.is_connected = True
        self.wants_write = False
        self.on_attached: Any = None
        self.on_lost: Any = None
        self.on_event: Any = None

    def connect(self) -> None: ...

    def control_fileno(self) -> int:
        return self.queue.fileno()

    def doorbell_fileno(self) -> int:
        return -1

    def control_ready(self, readable: bool = True, writable: bool = False) -> None: ...

    def open(self, name: str, access: str, owner: str, words: str, callback: Callable[[Any], None]) -> None:
        opened = control.Opened(0, 1, 1, INFO)
        self._openings.append(lambda: callback(DeviceHandle(self._attachment, opened, access, lambda *_: None)))

    def get_record(self, name: str, record: str, callback: Callable[[Any], None]) -> None:
        self._openings.append(lambda: callback(control.Record(0, record, 0, b"")))

    def stat_pool(self, callback: Callable[[Any], None]) -> None: ...

    def serve(self) -> None:
        """The volume server's turn."""
        openings, self._openings = self._openings, []
        for opening in openings:
            opening()
        entries = self._submissions.peek(layout.DEFAULT_RING_ENTRIES)
        for entry in entries:
            self._completions.push(entry[8], 0, entry[7], 0)
        self._submissions.advance(len(entries))
        self._completions.publish()


class NoDriver:
    """Sockets that nobody has."""

    def listen(self, address: Address, inherited_fd: int | None = None) -> Address:
        return address

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class Bench:
    def __init__(self) -> None:
        self.volumes = Volumes()
        self.target = TargetServer(self.volumes, Clock())  # type: ignore[arg-type]
        self.target.core.driver = NoDriver()  # type: ignore[assignment]
        self.target.volume_server.connect()
        self.volumes.on_attached([INFO])
        portal = Address("127.0.0.1", 3260)
        self.target.listen(portal)
        self.connection = self.target.connected("127.0.0.1:1", portal, 0.0, portal)
        self.initiator = Initiator()
        self.initiator.login(Settings().iqn("bench"))
        self._exchange()
        self.initiator.command(bytes(6))  # the power-on unit attention
        self._exchange()
        self._cmd_sn = self.connection.session.window.exp_cmd_sn  # type: ignore[union-attr]

    def _exchange(self) -> None:
        for _ in range(20):
            self.feed(self.initiator.to_send())
            self.volumes.serve()
            self.initiator.feed(b"".join(self.answers()))

    def feed(self, data: bytes) -> None:
        """Bytes as a socket would bring them."""
        connection, rest = self.connection, memoryview(data)
        while rest:
            count = 0
            for buffer in connection.receive_buffers():
                piece = rest[count : count + len(buffer)]
                buffer[: len(piece)] = piece
                count += len(piece)
                if len(piece) < len(buffer):
                    break
            rest = rest[count:]
            self.target.happened(connection, connection.received(count, 0.0))

    def answers(self) -> list[bytes]:
        """What the connection sends, copied (not counted)."""
        self.volumes.queue.collect()
        pieces = [bytes(piece) for piece in self.connection.data_to_send()]
        if pieces:
            self.connection.sent(sum(map(len, pieces)))
        return pieces

    def batch(self, kind: str, count: int) -> bytes:
        """``count`` commands of 4 KiB, in order."""
        pieces = []
        for number in range(count):
            cdb = bytes((0x28 if kind == "read" else 0x2A, 0)) + (number * 8).to_bytes(4, "big") + b"\0\0\x08\0"
            header = pdu.ScsiCommand(
                opcode=pdu.ScsiCommand.OPCODE,
                flags=pdu.FINAL | (pdu.READ if kind == "read" else pdu.WRITE),
                data_segment_length=0 if kind == "read" else 4 * KIB,
                initiator_task_tag=number,
                expected_data_transfer_length=4 * KIB,
                cmd_sn=self._cmd_sn,
                exp_stat_sn=self.connection.stat_sn,
                cdb=cdb.ljust(16, b"\0"),
            )
            self._cmd_sn = (self._cmd_sn + 1) & 0xFFFFFFFF
            pieces.append(header.pack() + (b"" if kind == "read" else bytes(4 * KIB)))
        return b"".join(pieces)

    def run(self, kind: str, count: int, seconds: float) -> float:
        """Microseconds a command."""
        now = time.perf_counter
        spent, commands, deadline = 0.0, 0, now() + seconds
        while now() < deadline:
            data = self.batch(kind, count)
            started = now()
            self.feed(data)
            self.volumes.queue.flush()
            spent -= started - now()
            self.volumes.serve()
            started = now()
            collected = self.volumes.queue.collect()
            pieces = self.connection.data_to_send()
            self.connection.sent(sum(map(len, pieces)))
            spent += now() - started
            if collected != count:
                raise AssertionError(f"{collected} of {count} commands came back")
            commands += count
        return spent / commands * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32, help="commands that come together")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a round")
    parser.add_argument("--profile", choices=("read", "write"), help="where the time goes, by cProfile")
    options = parser.parse_args()
    gc.set_threshold(100_000, 50, 100)  # as the target does
    bench = Bench()
    if options.profile:
        bench.run(options.profile, options.batch, 0.3)
        profile = cProfile.Profile()
        profile.enable()
        bench.run(options.profile, options.batch, 3.0)
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(40)
        return 0
    rows = []
    for kind in ("read", "write"):
        bench.run(kind, options.batch, options.seconds)
        rounds = [bench.run(kind, options.batch, options.seconds) for _ in range(options.rounds)]
        low, median, high = report.spread(rounds)
        rows.append([f"4 KiB {kind} × {options.batch}", f"{low:.2f}", f"{median:.2f}", f"{high:.2f}"])
    print(report.machine())
    print(report.table(["the target's own code", "least µs", "median µs", "most µs"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
