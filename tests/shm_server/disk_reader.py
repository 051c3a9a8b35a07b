"""Reads a pool as docs/ON-DISK.md describes it, and knows nothing else: what it can't find, the document does not say.

Only to be read while nobody changes the pool. Nothing of shm_server is imported, and nothing must be.
"""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path
from typing import NamedTuple

from crc32c import crc32c

PAGE = 4096
DATA, ZERO, BARRIER, BOOT = 1, 2, 3, 4
NOBODY = 0xFFFFFFFF


class Layer(NamedTuple):
    number: int
    uuid: str
    parent: int | None
    file: str
    state: str


def number(raw: bytes, offset: int, length: int) -> int:
    return int.from_bytes(raw[offset : offset + length], "little")


def section(path: Path, offset: int, length: int) -> bytes:
    """What a file ends before is zeros."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length).ljust(length, b"\0")


class DiskReader:
    def __init__(self, pool: Path, boot_id: bytes) -> None:
        """``boot_id``: of the running kernel."""
        self._volumes = pool / "volumes"
        self._boot_id = boot_id
        database = sqlite3.connect(f"file:{pool}/catalogue.sqlite?mode=ro", uri=True)
        assert database.execute("PRAGMA application_id").fetchone() == (0x4F565343,)
        assert database.execute("PRAGMA user_version").fetchone() == (5,)
        rows = database.execute("SELECT number, uuid, parent, file, state FROM layers")
        self._layers = {row[0]: Layer(*row) for row in rows}
        self._tops = dict(database.execute("SELECT uuid, layer FROM tops").fetchall())
        rows = database.execute(
            "SELECT name, uuid, size_bytes, coalesce(stem, name) FROM volumes WHERE state = 'ready'"
        )
        self.volumes = {name: (uuid, size, stem) for name, uuid, size, stem in rows}
        rows = database.execute(
            "SELECT volumes.name || '@' || snapshots.name, snapshots.layer, snapshots.size_bytes "
            "FROM snapshots JOIN volumes USING (uuid)"
        )
        self.snapshots = {name: (layer, size) for name, layer, size in rows}
        database.close()

    def read(self, name: str, first: int, count: int) -> bytes:
        """So many pages of a volume or VOLUME@SNAPSHOT, from ``first`` on, and none beyond its end."""
        if name in self.snapshots:
            layer, size = self.snapshots[name]
            return self._read_chain(self._chain(layer), first, min(count, size // PAGE - first))
        uuid, size, stem = self.volumes[name]
        count = min(count, size // PAGE - first)
        if uuid in self._tops:
            content = bytearray(self._read_chain(self.chain_of(uuid), first, count))
        else:
            content = bytearray(section(self._volumes / f"{stem}.raw", first * PAGE, count * PAGE))
        self._redo(stem, uuid, content, first * PAGE)
        return bytes(content)

    def chain_of(self, uuid: str) -> list[Layer]:
        return self._chain(self._tops[uuid])

    def _chain(self, top: int) -> list[Layer]:
        """From the top down to the base."""
        chain = [self._layers[top]]
        while (parent := chain[-1].parent) is not None:
            chain.append(self._layers[parent])
        return chain

    def _read_chain(self, chain: list[Layer], first: int, count: int) -> bytes:
        owners = self.owners(chain, first, count)
        return b"".join(
            self._page(self._layers[owner], page) if owner != NOBODY else bytes(PAGE)
            for page, owner in enumerate(owners, first)
        )

    def owners(self, chain: list[Layer], first: int, count: int) -> list[int]:
        """The layer of each page, or NOBODY."""
        owners = [chain[-1].number] * count
        for layer in reversed(chain[:-1]):
            for kind, begin, pages in self._map(layer):
                for page in range(max(begin, first), min(begin + pages, first + count)):
                    owners[page - first] = layer.number if kind == DATA else NOBODY
        return owners

    def table(self, name: str) -> list[int] | None:
        """What the cache of a volume says of its pages, if that was made durable, and is still."""
        uuid, size, stem = self.volumes[name]
        path = self._volumes / f"{stem}.owners"
        header = section(path, 0, 100) if path.exists() else bytes(100)
        if number(header, 96, 4) != crc32c(header[:96]) or number(header, 84, 4) == 0:
            return None
        assert (header[:8], number(header, 8, 4), number(header, 12, 4)) == (b"OVSOWNER", 2, PAGE)
        assert header[16:32].hex() == uuid
        chain = [layer.number for layer in self.chain_of(uuid)[:-1]]
        owners: list[int] = []
        for each in range(-(-size // PAGE // 16384)):
            chunk = section(path, 4096 + 69632 * each, 65544)
            if each < number(header, 88, 8) and number(chunk, 65540, 4):
                beginning = crc32c(each.to_bytes(8, "little"), crc32c(header[16:32]))
                assert number(chunk, 65536, 4) == crc32c(chunk[:65536], beginning), f"chunk {each} of {path}"
            owners += memoryview(chunk[:65536]).cast("I")
        return [
            owner if owner in (0, NOBODY) else max((n for n in chain if n <= owner), default=0)
            for owner in owners[: size // PAGE]
        ]

    def _map(self, layer: Layer) -> list[tuple[int, int, int]]:
        """The runs that are believed, oldest first: kind, first page, count of pages."""
        raw = (self._volumes / f"{layer.number}.map").read_bytes()
        assert (raw[:8], number(raw, 8, 4), number(raw, 12, 4)) == (b"OVSLAYER", 1, PAGE)
        assert (number(raw, 16, 8), raw[24:40].hex()) == (layer.number, layer.uuid)
        seed = number(raw, 56, 4)
        assert seed == crc32c(raw[:56])
        boot, durable = raw[40:56], 0
        runs: list[tuple[int, tuple[int, int, int]]] = []  # with their offsets
        for at in range(512, len(raw) - 31, 32):
            kind, begin, pages = number(raw, at + 4, 4), number(raw, at + 8, 8), number(raw, at + 16, 8)
            if number(raw, at, 4) != crc32c(raw[at + 4 : at + 32], seed) or number(raw, at + 24, 8) != at:
                break
            if kind == BARRIER:
                durable = begin
            elif kind == BOOT:
                boot = raw[at + 8 : at + 24]
                runs = [run for run in runs if run[0] < durable]
            else:
                runs.append((at, (kind, begin, pages)))
        is_believed = boot == self._boot_id and layer.state != "sealed"
        return [run for at, run in runs if is_believed or at < durable]

    def _page(self, layer: Layer, page: int) -> bytes:
        content = section(self._volumes / layer.file, page * PAGE, PAGE)
        sums = self._volumes / f"{layer.number}.sums"
        if layer.state == "sealed" and sums.exists() and (wanted := self._checksum(sums, page)):
            assert wanted == (crc32c(content) or NOBODY), f"page {page} of {layer.file}"
        return content

    def _checksum(self, sums: Path, page: int) -> int:
        """0: there is none."""
        header = section(sums, 0, 512)
        assert (header[:8], number(header, 8, 4), number(header, 12, 4)) == (b"OVSCRC32", 1, PAGE)
        assert number(header, 48, 4) == crc32c(header[:48])
        which, place = divmod(page, 127)
        block = section(sums, 512 * (1 + which), 512)
        if any(block):
            assert number(block, 0, 4) == crc32c(block[4:], crc32c(which.to_bytes(8, "little"), crc32c(header[:40])))
        return number(block, 4 + 4 * place, 4)

    def _redo(self, stem: str, uuid: str, content: bytearray, begin: int) -> None:
        """What a write that was under way is to make of it. ``begin``: the offset of ``content`` in the volume."""
        path = self._volumes / f"{stem}.redo"
        header = section(path, 0, 56) if path.exists() else bytes(56)
        offset, length = number(header, 24, 8), number(header, 32, 8)
        data = section(path, 4096, length) if header[:8] == b"OVSREDO1" else b""
        if hashlib.blake2b(header[:40] + bytes(16) + data, digest_size=16).digest() != header[40:]:
            return
        assert header[8:24].hex() == uuid
        for at in range(max(offset, begin), min(offset + length, begin + len(content))):
            content[at - begin] = data[at - offset]
