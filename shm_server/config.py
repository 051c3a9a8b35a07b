"""vpool.json: the server's configuration: the keys that Open vStorage's volume driver knows, and a section of ours.

    {
      "filesystem": {"fs_enable_shm_interface": true, "fs_nullio": false},
      "shm_interface": {"shm_region_size": 268435456},
      "volume_manager": {"max_volume_size": "64TiB"},
      "backend_connection_manager": {"backend_type": "LOCAL", "local_connection_path": "/srv/pool"},
      "shm_server": {"store": "file", "allowed_uids": [1000],
                     "delay": [{"volume": "demo", "operations": ["write"], "offset": 0, "length": 4096,
                                "seconds": 5, "count": 1}],
                     "exports": [{"volume": "demo", "vhost_user": "/run/demo.sock"}]}
    }

Everything but local_connection_path has a default; that begins beside the file where it is not absolute. An unknown key
is refused with its path and the nearest known one.
"""

from __future__ import annotations

import difflib
import errno
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from shm_server.fullness import DEFAULT_SOFT_THRESHOLD_PERCENT
from shm_server.interfaces.exports import ExportRule
from shm_server.scrubbing import DEFAULT_BYTES_PER_S
from shm_server.server import Settings
from shm_server.stores import DEFAULT_MAP_CACHE_BYTES, DelayRule

SOCKET_NAME = "shm.sock"

_UNITS_SHIFT = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_SIZE = re.compile(r"(\d+)\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)


class ConfigError(OSError):
    """The configuration is wrong; the message names the file and the key."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EINVAL, message)


class Filesystem(msgspec.Struct, forbid_unknown_fields=True):
    fs_enable_shm_interface: bool = False
    fs_nullio: bool = False


class ShmInterface(msgspec.Struct, forbid_unknown_fields=True):
    shm_region_size: int | str = 268435456


class VolumeManager(msgspec.Struct, forbid_unknown_fields=True):
    max_volume_size: int | str = "64TiB"


class BackendConnectionManager(msgspec.Struct, forbid_unknown_fields=True):
    local_connection_path: str
    backend_type: Literal["LOCAL"] = "LOCAL"


class Delay(msgspec.Struct, forbid_unknown_fields=True):
    """stores.delay.DelayRule, for tests."""

    volume: str = ""
    operations: list[Literal["read", "write", "discard", "flush"]] = msgspec.field(default_factory=lambda: ["write"])
    offset: int = 0
    length: int = 0
    seconds: float = 0.0
    error: int = 0
    count: int = 0


class Export(msgspec.Struct, forbid_unknown_fields=True):
    """A volume that is served to virtual machines from the start on (interfaces.exports)."""

    volume: str
    vhost_user: str  # the socket's path
    read_only: bool = False


class ShmServer(msgspec.Struct, forbid_unknown_fields=True):
    store: Literal["file", "memory", "null"] = "file"
    allowed_uids: list[int] = []
    delay: list[Delay] = []
    exports: list[Export] = []
    map_cache_size: int | str = DEFAULT_MAP_CACHE_BYTES  # of the maps of volumes with snapshots, all together
    soft_threshold_percent: int = DEFAULT_SOFT_THRESHOLD_PERCENT  # of the pool's file system, used; 0: none
    checksum_bytes_per_s: int | str = DEFAULT_BYTES_PER_S  # read for the checksums of snapshots, in the background
    spin_us: int | None = None  # None: the server's own default
    sanitize_bytes_per_s: int | str | None = None  # of one overwrite; None: as fast as it goes


class VPool(msgspec.Struct, forbid_unknown_fields=True):
    backend_connection_manager: BackendConnectionManager
    filesystem: Filesystem = msgspec.field(default_factory=Filesystem)
    shm_interface: ShmInterface = msgspec.field(default_factory=ShmInterface)
    volume_manager: VolumeManager = msgspec.field(default_factory=VolumeManager)
    shm_server: ShmServer = msgspec.field(default_factory=ShmServer)


_LISTS = {"delay": Delay, "exports": Export}  # keys whose values are lists of these


def load(path: str | Path, socket_path: str | Path | None = None) -> Settings:
    """Read ``path``. The socket is ``shm.sock`` in the pool directory unless given. Raises ConfigError."""
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error.strerror if isinstance(error, OSError) else error}") from None
    return parse(text, path, socket_path)


def parse(text: str, path: Path, socket_path: str | Path | None = None) -> Settings:
    """As load(), of what stands in the file."""
    try:
        data = json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    _check_keys(data, VPool, path, "")
    try:
        vpool = msgspec.convert(data, VPool)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_key_path(str(error))}") from None
    return _settings(vpool, path, socket_path)


def _settings(vpool: VPool, path: Path, socket_path: str | Path | None) -> Settings:
    own = vpool.shm_server
    directory = vpool.backend_connection_manager.local_connection_path
    if not directory:
        raise ConfigError(f"{path}: backend_connection_manager.local_connection_path is empty")
    pool = path.absolute().parent / directory
    region_bytes = _size(vpool.shm_interface.shm_region_size, path, "shm_interface.shm_region_size")
    if region_bytes < 1 << 20:
        raise ConfigError(f"{path}: shm_interface.shm_region_size is {region_bytes}: at least 1 MiB")
    return Settings(
        pool=pool,
        socket_path=Path(socket_path).absolute() if socket_path is not None else pool / SOCKET_NAME,
        store="null" if vpool.filesystem.fs_nullio else own.store,
        region_bytes=region_bytes,
        max_volume_size=_size(vpool.volume_manager.max_volume_size, path, "volume_manager.max_volume_size"),
        is_shm_enabled=vpool.filesystem.fs_enable_shm_interface,
        config_path=str(path),
        allowed_uids=tuple(own.allowed_uids),
        map_cache_bytes=_size(own.map_cache_size, path, "shm_server.map_cache_size"),
        soft_threshold_percent=_percent(own.soft_threshold_percent, path, "shm_server.soft_threshold_percent"),
        checksum_bytes_per_s=_size(own.checksum_bytes_per_s, path, "shm_server.checksum_bytes_per_s"),
        delays=tuple(
            DelayRule(
                rule.volume,
                tuple(rule.operations),
                rule.offset,
                rule.length,
                rule.seconds,
                rule.error,
                rule.count,
            )
            for rule in own.delay
        ),
        exports=tuple(_export(rule, path) for rule in own.exports),
        spin_s=Settings.spin_s if own.spin_us is None else own.spin_us / 1e6,
        sanitize_bytes_per_s=(
            None
            if own.sanitize_bytes_per_s is None
            else _size(own.sanitize_bytes_per_s, path, "shm_server.sanitize_bytes_per_s")
        ),
    )


def _export(rule: Export, path: Path) -> ExportRule:
    socket_path = Path(rule.vhost_user)
    if not socket_path.is_absolute():
        raise ConfigError(f"{path}: shm_server.exports: vhost_user is {rule.vhost_user!r}: an absolute path is needed")
    return ExportRule(rule.volume, socket_path, rule.read_only)


def _object(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"{path}: the key {twice!r} stands there twice")
    return data


def _check_keys(data: object, struct: Any, path: Path, prefix: str) -> None:
    """Refuse what we don't know, with what may have been meant."""
    if not isinstance(data, Mapping):
        return  # its type is msgspec's to refuse
    fields = {field.name: field.type for field in msgspec.structs.fields(struct)}
    for key, value in data.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{path}: unknown key {prefix}{key}; the nearest known one is {prefix}{near}")
        if isinstance(fields[key], type) and issubclass(fields[key], msgspec.Struct):
            _check_keys(value, fields[key], path, f"{prefix}{key}.")
        elif key in _LISTS and isinstance(value, list):
            for number, rule in enumerate(value):
                _check_keys(rule, _LISTS[key], path, f"{prefix}{key}[{number}].")


def _key_path(message: str) -> str:
    """msgspec's "… - at `$.a.b`" with the key in front."""
    match = re.fullmatch(r"(.*) - at `\$\.?(.*)`", message, re.DOTALL)
    return f"{match[2]}: {match[1]}" if match and match[2] else message


def _percent(value: int, path: Path, key: str) -> int:
    if not 0 <= value <= 99:
        raise ConfigError(f"{path}: {key} is {value}: 1 to 99, or 0 for none")
    return value


def _size(value: int | str, path: Path, key: str) -> int:
    """Bytes, as a number or as "64TiB"."""
    if isinstance(value, int):
        size = value
    else:
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ConfigError(f"{path}: {key}: {value!r} is no size: a number of bytes, or one such as 64TiB")
        size = int(match[1]) << _UNITS_SHIFT[match[2].lower()]
    if size <= 0:
        raise ConfigError(f"{path}: {key} is {size}: it must be more than 0")
    return size
