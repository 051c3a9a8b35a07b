"""A volume, a snapshot, or the difference between two snapshots becomes a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from iscsi_ovs import shm_client
from iscsi_ovs.images import files, moments, origin, transfer
from iscsi_ovs.images.image import STEP_BYTES, ImageError, Writer, runs
from iscsi_ovs.images.qcow2_writer import CLUSTER_BYTES, Qcow2Writer, cluster_bytes_for
from iscsi_ovs.images.raw import RawWriter

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
    raise ImageError(f"{path.name} says by its name no format: --format raw or --format qcow2")
