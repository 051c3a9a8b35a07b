"""A difference comes onto a volume that is what it stands on.

The volume must be known to be that moment: by a snapshot of its own, made here or by an earlier import, or by what it
is a clone of; and nothing may have been written since, which the server's maps tell. Afterwards it has a snapshot of
both moments, so the next difference fits, too; and what fails is rolled back.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from iscsi_ovs import shm_client
from iscsi_ovs.images import importing, moments
from iscsi_ovs.images.image import ImageError
from iscsi_ovs.images.origin import Moment
from shm_server.abi import names


def apply(
    context: shm_client.Context, image: importing.Image, name: str, progress: importing.Progress, *, force: bool = False
) -> None:
    """``force``: whatever the volume is, and then nothing is rolled back. ImageError, EBUSY, EEXIST (the snapshot that
    it becomes), ENOSPC."""
    if not image.stands_on:
        raise ImageError("it is a whole image, no difference: import it as a new volume")
    origin = image.origin
    if origin is None and not force:
        raise ImageError(f"it does not say which moment it stands on, only {image.stands_on}: --force applies it")
    if origin is not None:
        _check_free(context, name, origin.of.snapshot)
    newest = None
    try:
        with context.open(name, owner=f"import pid {os.getpid()}") as volume:
            if origin is not None and origin.since is not None and not force:
                newest = _find_base(context, volume, origin.since)
            if volume.size < image.reader.size_bytes:
                volume.truncate(image.reader.size_bytes)
            importing.fill(context, volume, image.reader, progress, is_blank=False)
            if origin is not None:
                keep(context, name, origin.of)
    except BaseException:
        if newest is not None:
            with contextlib.suppress(OSError):  # what went wrong first is what is told
                context.rollback_snapshot(name, newest)
        raise


def keep(context: shm_client.Context, volume: str, moment: Moment) -> None:
    """The volume is this moment now: a snapshot of it says so."""
    context.create_snapshot(volume, moment.snapshot)
    moments.remember(context, names.join(volume, moment.snapshot), moment.identity)


def _check_free(context: shm_client.Context, volume: str, snapshot: str) -> None:
    try:
        context.stat_snapshot(volume, snapshot)
    except FileNotFoundError:
        return
    raise OSError(errno.EEXIST, f"volume {volume} has a snapshot {snapshot} already")


def _find_base(context: shm_client.Context, volume: shm_client.Volume, since: Moment) -> str:
    """The volume's newest snapshot, which is what the volume is: and that is what the difference stands on."""
    own = [moment.snapshot for moment in moments.newest_first(context, volume.name)]
    known = False
    for candidate in _candidates(context, volume.name, since):
        known = True
        if _is_unchanged(context, volume, candidate):
            if not own:
                keep(context, volume.name, since)
                own.append(since.snapshot)
            return own[0]
    if known:
        raise ImageError(
            f"volume {volume.name} was written since it was {since}: roll it back to that first, "
            "or --force applies the difference all the same"
        )
    raise ImageError(
        f"volume {volume.name} is not known to be {since} ({since.identity}), which the difference stands on: "
        "--force applies it all the same"
    )


def _candidates(context: shm_client.Context, volume: str, since: Moment) -> Iterator[str]:
    """Snapshots of this pool that are the moment, by the names that they are opened by."""
    for moment in moments.newest_first(context, volume):
        if moment.identity == since.identity:
            yield str(moment)
    if since.volume != volume:
        with contextlib.suppress(OSError):  # a name that is none here, or nobody's
            found = moments.of(context, str(since))
            if found is not None and found.identity == since.identity:
                yield str(since)


def _is_unchanged(context: shm_client.Context, volume: shm_client.Volume, snapshot: str) -> bool:
    with context.open(snapshot, os.O_RDONLY) as base:
        if base.size != volume.size:
            return False
        try:
            return next(volume.changes(base), None) is None
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False  # they have no past in common
