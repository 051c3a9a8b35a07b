"""A file becomes a volume."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from iscsi_ovs import shm_client
from iscsi_ovs.images import files, origin, probing, transfer
from iscsi_ovs.images.image import ImageError, Kind, Reader
from iscsi_ovs.images.qcow2_reader import Qcow2Reader
from iscsi_ovs.images.raw import RawReader

RETURN_S = 10.0  # a server that died is waited for so long

Progress = Callable[[int], object]  # so many bytes of the disk are behind us


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is open, and what it says of itself beside its bytes."""

    path: Path
    reader: Reader
    stands_on: str  # the name of its backing file; "": on nothing
    origin: origin.Origin | None


@contextlib.contextmanager
def opened(path: Path, image_format: str | None) -> Iterator[Image]:
    """``image_format``: "raw", "qcow2", or None to find out. ImageError, with the file's name, also from the block."""
    with files.source(path) as (fd, size_bytes):
        try:
            head = os.pread(fd, probing.HEAD_BYTES, 0)
            if (image_format or probing.probe(head, path.name, size_bytes)) == "raw":
                yield Image(path, RawReader(fd, size_bytes), "", None)
                return
            reader = Qcow2Reader(fd, size_bytes)
            description = reader.description
            backing = description.backing
            found = Image(path, reader, "" if backing is None else backing.name, origin.decode(description.extensions))
            if found.origin is not None and found.origin.since is not None and backing is None:
                raise ImageError("it is a difference, and names nothing that it stands on")
            yield found
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None


def import_image(
    context: shm_client.Context,
    image: Image,
    name: str,
    progress: Progress,
    keep: Callable[[origin.Moment], object] | None = None,
) -> None:
    """A new volume that is what the image shows, durable. What fails or is interrupted, or killed, leaves none. EEXIST.

    ``keep`` is called with the moment that the volume is then, before anybody else can write it.
    """
    if keep is not None and image.origin is None:
        raise ImageError("it does not say which snapshot it is of")
    if image.stands_on:
        raise ImageError(_stands_on(image))
    if not image.reader.size_bytes:
        raise ImageError("it is the image of a disk of no bytes")
    context.create_volume(name, image.reader.size_bytes, is_whole=False)
    try:
        with context.open(name, owner=f"import pid {os.getpid()}") as volume:
            fill(context, volume, image.reader, progress, is_blank=True)
            if keep is not None and image.origin is not None:
                keep(image.origin.of)
        context.finish_volume(name)
    except BaseException as error:
        if not _is_removed(context, name):
            raise ImageError(f"{error or type(error).__name__}; half of volume {name} is there, remove it") from error
        raise


def _is_removed(context: shm_client.Context, name: str) -> bool:
    """It is gone when this returns True: also where the server died, and another one is there within RETURN_S."""
    deadline = time.monotonic() + RETURN_S
    while True:
        try:
            if not context.is_connected:
                context.reconnect()
            context.remove_volume(name, force=True)
            return True
        except OSError as error:
            if error.errno == errno.ENOENT and context.is_connected:
                return True
            if context.is_connected or time.monotonic() > deadline:
                return False
        time.sleep(0.05)


def fill(
    context: shm_client.Context, volume: shm_client.Volume, reader: Reader, progress: Progress, *, is_blank: bool
) -> None:
    """What the image has into the volume, durable at the end. ``is_blank``: that reads zeros everywhere."""
    with transfer.buffers(context, reader.step_bytes) as free:
        filler = transfer.Filler(context, volume, free, is_blank=is_blank)
        for extent in reader.extents():
            if extent.kind in (Kind.DATA, Kind.COMPRESSED):
                reader.fill(extent, filler.buffer().data[: extent.length])
                filler.write(extent.offset, extent.length)
            elif extent.kind is Kind.ZERO:
                filler.zero(extent.offset, extent.length)
            progress(extent.length)
        filler.flush()


def _stands_on(image: Image) -> str:
    if image.origin is not None and image.origin.since is not None:
        return f"it is the difference since {image.origin.since}: import it --onto a volume that is that"
    return f"it stands on another image, {image.stands_on}: qemu-img convert makes one image of both"
