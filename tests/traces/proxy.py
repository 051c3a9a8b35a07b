"""A TCP proxy between an initiator and a target that writes both directions down as a .pcapng file.

    python -m tests.traces.proxy --listen 127.0.0.1:3999 --to 127.0.0.1:3998 --output trace.pcapng

It needs no capture rights and sees the bytes as the peers do. It prints `ready` once it listens, and ends on SIGTERM or
SIGINT with the file complete. The target must advertise the proxy's address, or the initiator is led past it.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from tests.traces.pcapng import SEGMENT_BYTES, Writer


class Proxy:
    """Listens, and for each connection makes one to the target; two threads carry the bytes of each."""

    def __init__(self, listen: tuple[str, int], target: tuple[str, int], writer: Writer) -> None:
        self._target = target
        self._writer = writer
        self._listener = socket.create_server(listen)
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []

    def run(self) -> None:
        """Accepts until the listener is closed."""
        while True:
            try:
                initiator, _ = self._listener.accept()
            except OSError:
                break
            target = socket.create_connection(self._target)
            self._sockets += (initiator, target)
            flow = self._writer.connect()
            for source, sink, from_initiator in ((initiator, target, True), (target, initiator, False)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                thread = threading.Thread(target=self._carry, args=(source, sink, flow, from_initiator), daemon=True)
                thread.start()
                self._threads.append(thread)
        for thread in self._threads:
            thread.join(2)
        for each in self._sockets:
            each.close()

    def _carry(self, source: socket.socket, sink: socket.socket, flow: Any, from_initiator: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(SEGMENT_BYTES):
                self._writer.data(flow, from_initiator, data)
                sink.sendall(data)
        self._writer.end(flow, from_initiator)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def stop(self) -> None:
        # closing alone does not wake a thread that is in accept()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def address(text: str) -> tuple[str, int]:
    host, port = text.rsplit(":", 1)
    return host, int(port)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listen", type=address, required=True)
    parser.add_argument("--to", type=address, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--comment", default="")
    options = parser.parse_args()
    writer = Writer(options.output, options.comment)
    proxy = Proxy(options.listen, options.to, writer)

    def stop(_: int, __: FrameType | None) -> None:
        proxy.stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print("ready", flush=True)
    proxy.run()
    writer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
