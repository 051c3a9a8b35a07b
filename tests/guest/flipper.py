"""A TCP proxy that flips bits of PDUs: what a broken network adapter does where no checksum of TCP sees it.

    python -m tests.guest.flipper HOST:PORT HOST:PORT        listen there, carry to there

It lets logins and discovery pass, and of sessions with both digests flips one bit in the data of every 23rd PDU that
brings data, up to eight times, in one header, and in the data of one Data-In; so many in all, however often the
initiator reconnects. Each flip is a line of its output, which begins with `ready`.
"""

from __future__ import annotations

import contextlib
import random
import socket
import sys
import threading
from dataclasses import dataclass, field

LOGIN_REQUEST, SCSI_COMMAND, DATA_OUT, LOGIN_RESPONSE, DATA_IN = 0x03, 0x01, 0x05, 0x23, 0x25
DATA_FLIPS, HEADER_FLIPS, ANSWER_FLIPS = 8, 1, 1


@dataclass
class Plan:
    """What is still to be flipped, by all connections together."""

    left: dict[str, int] = field(
        default_factory=lambda: {"data": DATA_FLIPS, "header": HEADER_FLIPS, "answer": ANSWER_FLIPS}
    )
    seen: dict[str, int] = field(default_factory=lambda: {"data": 0, "header": 0, "answer": 0})
    chance: random.Random = field(default_factory=lambda: random.Random(7143))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def is_due(self, kind: str, every: int) -> bool:
        with self.lock:
            self.seen[kind] += 1
            if self.left[kind] and self.seen[kind] % every == 0:
                self.left[kind] -= 1
                return True
            return False


class Carrier:
    """One connection: PDUs are passed on whole, and with a bit flipped where the plan says so."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._has_digests = False

    def carry(self, source: socket.socket, sink: socket.socket) -> None:
        got = bytearray()
        in_login = True
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                got += data
                while len(got) >= 48:
                    in_login = in_login and got[0] & 0x3F in (LOGIN_REQUEST, LOGIN_RESPONSE)
                    digest_bytes = 4 if self._has_digests and not in_login else 0
                    header_end = 48 + got[4] * 4
                    length = int.from_bytes(got[5:8], "big")
                    data_start = header_end + digest_bytes
                    total = data_start + length + (-length & 3) + (digest_bytes if length else 0)
                    if len(got) < total:
                        break
                    whole = got[:total]
                    del got[:total]
                    if in_login and b"HeaderDigest=CRC32C\0" in whole and b"DataDigest=CRC32C\0" in whole:
                        self._has_digests = True
                    if digest_bytes:
                        self._flip(whole, header_end, data_start)
                    sink.sendall(whole)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _flip(self, whole: bytearray, header_end: int, data_start: int) -> None:
        opcode = whole[0] & 0x3F
        has_data = len(whole) > data_start
        plan = self._plan
        if opcode == DATA_IN and has_data and plan.is_due("answer", 60):
            self._flip_within(whole, data_start, len(whole), "answer")
        elif opcode in (SCSI_COMMAND, DATA_OUT) and has_data and plan.is_due("data", 23):
            self._flip_within(whole, data_start, len(whole), "data")
        elif opcode == SCSI_COMMAND and plan.is_due("header", 150):
            self._flip_within(whole, 8, header_end, "header")  # not its lengths: both sides would wait for ever

    def _flip_within(self, whole: bytearray, start: int, end: int, kind: str) -> None:
        bit = self._plan.chance.randrange(start * 8, end * 8)
        whole[bit // 8] ^= 1 << bit % 8
        print(f"flipped {kind} of opcode {whole[0] & 0x3F:#04x} at {bit // 8}", flush=True)


def address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    listener = socket.create_server(address(sys.argv[1]))
    plan = Plan()
    print("ready", flush=True)
    while True:
        initiator, _ = listener.accept()
        target = socket.create_connection(address(sys.argv[2]))
        carrier = Carrier(plan)
        for source, sink in ((initiator, target), (target, initiator)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=carrier.carry, args=(source, sink), daemon=True).start()


if __name__ == "__main__":
    main()
