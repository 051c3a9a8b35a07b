"""A load through the shared-memory client: so many requests outstanding, at places that are given, for so long.

The client takes every completion that is there and shows what it submits meanwhile as one batch, as the iSCSI target
does. Several benchmarks use it: for the rings alone, for volumes with a past, and beside other interfaces.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

from benchmarks.report import KIB, MIB
from iscsi_ovs import shm_client


@dataclass(frozen=True, slots=True)
class Shape:
    """What is done, how large, how deep."""

    kind: str  # read or write
    block_bytes: int
    depth: int

    @property
    def name(self) -> str:
        return f"{size_name(self.block_bytes)} {self.kind} × {self.depth}"


@dataclass(frozen=True, slots=True)
class Moved:
    requests: int
    seconds: float


class Load:
    """One shape on one volume, with buffers of its own; ``close`` gives them back."""

    def __init__(self, context: shm_client.Context, volume: shm_client.Volume, shape: Shape) -> None:
        self._context = context
        self._shape = shape
        self._submit = volume.aio_read if shape.kind == "read" else volume.aio_write
        self._buffers = [context.allocate(shape.block_bytes) for _ in range(shape.depth)]
        self._finished: list[int] = []  # buffers whose request is done

    def run(self, offsets: Sequence[int], seconds: float) -> Moved:
        """Over and over, until the time is up."""
        started = time.perf_counter()
        return self._run(cycle(offsets), started, started + seconds)

    def run_once(self, offsets: Sequence[int]) -> Moved:
        """Each of them once."""
        return self._run(iter(offsets), time.perf_counter(), float("inf"))

    def _run(self, offsets: Iterator[int], started: float, deadline: float) -> Moved:
        outstanding: dict[int, shm_client.AioCompletion] = {}
        requests = 0
        self._finished = list(range(len(self._buffers)))
        while True:
            with self._context.batch():
                finished, self._finished = self._finished, []
                for number in finished:
                    if number in outstanding:
                        outstanding.pop(number).result()
                        requests += 1
                    if (offset := next(offsets, None)) is not None:
                        outstanding[number] = self._start(number, offset)
            if not outstanding:
                return Moved(requests, time.perf_counter() - started)
            self._context.suspend(list(outstanding.values()))
            if time.perf_counter() > deadline:
                offsets, deadline = iter(()), float("inf")

    def _start(self, number: int, offset: int) -> shm_client.AioCompletion:
        def finished(_: shm_client.AioCompletion) -> None:
            self._finished.append(number)

        return self._submit(self._buffers[number], self._shape.block_bytes, offset, finished)

    def close(self) -> None:
        for buffer in self._buffers:
            self._context.deallocate(buffer)


def in_order(size_bytes: int, block_bytes: int) -> list[int]:
    return list(range(0, size_bytes // block_bytes * block_bytes, block_bytes))


def at_random(size_bytes: int, block_bytes: int, seed: int = 1) -> list[int]:
    """Every block once, in an order of chance that is the same each time."""
    offsets = in_order(size_bytes, block_bytes)
    random.Random(seed).shuffle(offsets)
    return offsets


def fill(context: shm_client.Context, volume: shm_client.Volume, size_bytes: int | None = None) -> None:
    """Random data in every block, or in those of the first ``size_bytes``."""
    size_bytes = volume.size if size_bytes is None else size_bytes
    buffer = context.allocate(MIB)
    for offset in range(0, size_bytes, MIB):
        length = min(MIB, size_bytes - offset)
        buffer.data[:length] = random.Random(offset).randbytes(length)
        volume.write(buffer, length, offset)
    context.deallocate(buffer)


def size_name(size_bytes: int) -> str:
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (MIB, "MiB")):
        if size_bytes >= unit:
            return f"{size_bytes // unit} {name}"
    return f"{size_bytes // KIB} KiB"
