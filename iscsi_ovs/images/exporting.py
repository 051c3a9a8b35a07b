"""A volume, a snapshot, or the difference between two snapshots becomes a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from iscsi_ovs import shm_client
from iscsi_ovs.errors import ConfigurationError
from iscsi_ovs.images import files, moments, origin, probing, qcow2, transfer
from iscsi_ovs.images.image import PAGE_BYTES, STEP_BYTES, ImageError, Writer, runs
from iscsi_ovs.images.qcow2_writer import CLUSTER_BYTES, Qcow2Writer, cluster_bytes_for
from iscsi_ovs.images.raw import RawWriter

DIFFERENCE_CLUSTER_BYTES = PAGE_BYTES  # what changes is pages

Progress = Callable[[int], object]  # so many bytes of the disk are behind us


def export(
    context: shm_client.Context,
    volume: shm_client.Volume,
    path: Path,
    image_format: str,
    progress: Progress,
    *,
    may_replace: bool = False,
) -> None:
    """All of an open volume or snapshot, as it is read while this runs. EEXIST; ENOSPC: nothing of the file is left."""
    with files.destination(path, may_replace=may_replace) as fd:
        writer: Writer
        if image_format == "raw":
            writer = RawWriter(fd, volume.size)
        else:
            of = moments.of(context, volume.name)
            extensions = [] if of is None else [origin.encode(origin.Origin(of))]
            cluster_bytes = cluster_bytes_for(volume.size, CLUSTER_BYTES)
            writer = Qcow2Writer(fd, volume.size, cluster_bytes=cluster_bytes, extensions=extensions)
        copy(context, volume, transfer.allocated(volume, writer.granule_bytes), writer, progress)


def export_difference(
    context: shm_client.Context,
    volume: shm_client.Volume,
    base: shm_client.Volume,
    path: Path,
    backing: qcow2.Backing,
    progress: Progress,
    *,
    may_replace: bool = False,
) -> None:
    """What an open snapshot has otherwise than one of its past: a qcow2 image that stands on the export of that."""
    of, since = moments.of(context, volume.name), moments.of(context, base.name)
    if of is None or since is None:
        raise ImageError("a difference is one of two snapshots: VOLUME@SNAPSHOT --since SNAPSHOT")
    if volume.size < base.size:
        raise ImageError(f"{base.name} is larger than {volume.name}: it is none of its past")
    with files.destination(path, may_replace=may_replace) as fd:
        writer = Qcow2Writer(
            fd,
            volume.size,
            cluster_bytes=cluster_bytes_for(volume.size, DIFFERENCE_CLUSTER_BYTES),
            backing=backing,
            extensions=[origin.encode(origin.Origin(of, since))],
        )
        copy(context, volume, transfer.changed(volume, base, writer.granule_bytes), writer, progress)


def backing_of(path: Path, name: str, image_format: str | None) -> qcow2.Backing:
    """``name``, as the image at ``path`` will name it: where that is relative, it is so to the image's directory."""
    if image_format is None:
        found = path.parent / name
        if not found.is_file():
            raise ImageError(f"{found} is not there: say --backing-format raw or --backing-format qcow2")
        with files.source(found) as (fd, size_bytes):
            image_format = probing.probe(os.pread(fd, probing.HEAD_BYTES, 0), name, size_bytes)
    if ":" in name.split("/")[0]:
        name = f"./{name}"  # or it would be taken for a protocol
    return qcow2.Backing(name, image_format)


def copy(
    context: shm_client.Context,
    volume: shm_client.Volume,
    pieces: Iterable[transfer.Piece],
    writer: Writer,
    progress: Progress,
) -> None:
    """The pieces into the image; what is zero in them becomes no data of it."""
    granule_bytes = writer.granule_bytes
    at = 0
    for offset, length, view in transfer.read(context, volume, pieces, max(STEP_BYTES, granule_bytes)):
        if view is None:
            writer.zero(offset, length)
        else:
            for start, stop, is_zero in runs(view, granule_bytes):
                if is_zero:
                    writer.zero(offset + start, stop - start)
                else:
                    writer.write(offset + start, view[start:stop])
        progress(offset + length - at)
        at = offset + length
    progress(volume.size - at)
    writer.finish()


def format_of(path: Path) -> str:
    """Of an image that is to be made, by its name."""
    suffix = path.suffix.lower()
    if suffix == ".qcow2":
        return "qcow2"
    if suffix in (".raw", ".img"):
        return "raw"
    raise ConfigurationError(f"{path.name} says by its name no format: --format raw or --format qcow2")
