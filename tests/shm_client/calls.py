"""What these tests do over and over with a volume."""

from __future__ import annotations

import pytest

from iscsi_ovs.shm_client import Context, Volume

SIZE = 1 << 20


def raises(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.RaisesExc(OSError, check=lambda error: error.errno == number)


def put(volume: Volume, data: bytes, offset: int) -> None:
    context: Context = volume._context  # type: ignore[assignment]
    buffer = context.allocate(len(data))
    buffer.data[:] = data
    assert volume.write(buffer, len(data), offset) == len(data)
    context.deallocate(buffer)


def get(volume: Volume, length: int, offset: int) -> bytes:
    context: Context = volume._context  # type: ignore[assignment]
    buffer = context.allocate(length)
    data = bytes(buffer.data[: volume.read(buffer, length, offset)])
    context.deallocate(buffer)
    return data
