"""vpool.json: what it may say, and the words when it says something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shm_server import config
from shm_server.interfaces.exports import ExportRule
from shm_server.stores import DelayRule

PATH = Path("/etc/pool/vpool.json")
LEAST = {"backend_connection_manager": {"local_connection_path": "/srv/pool"}}


def parse(**sections: object) -> config.Settings:
    return config.parse(json.dumps({**LEAST, **sections}), PATH)


def refusal(text: str) -> str:
    with pytest.raises(config.ConfigError) as caught:
        config.parse(text, PATH)
    return caught.value.strerror


def test_defaults_are_those_of_open_vstorage() -> None:
    """The shared-memory interface is off, the region 256 MiB, a volume at most 64 TiB; the socket is in the pool."""
    settings = parse()
    assert not settings.is_shm_enabled
    assert settings.region_bytes == 268435456
    assert settings.max_volume_size == 64 << 40
    assert settings.store == "file"
    assert settings.socket_path == Path("/srv/pool/shm.sock")
    assert settings.config_path == str(PATH)


def test_a_pool_beside_the_file() -> None:
    """A path that is not absolute begins where the file is, whoever starts the server, and wherever."""
    assert parse(backend_connection_manager={"local_connection_path": "pool"}).pool == Path("/etc/pool/pool")


def test_every_key_reaches_the_settings() -> None:
    """What the file says is what the server is told."""
    settings = parse(
        filesystem={"fs_enable_shm_interface": True, "fs_nullio": True},
        shm_interface={"shm_region_size": "64MiB"},
        volume_manager={"max_volume_size": 1 << 30},
        shm_server={
            "allowed_uids": [7],
            "delay": [{"volume": "a", "operations": ["flush"], "seconds": 0.5, "error": 5, "count": 2}],
            "exports": [{"volume": "a", "vhost_user": "/run/a.sock", "read_only": True}],
        },
    )
    assert settings.is_shm_enabled
    assert settings.store == "null"
    assert settings.region_bytes == 64 << 20
    assert settings.max_volume_size == 1 << 30
    assert settings.allowed_uids == (7,)
    assert settings.spin_s == config.Settings.spin_s
    assert parse(shm_server={"spin_us": 20}).spin_s == 20e-6
    assert parse(shm_server={"sanitize_bytes_per_s": "3MiB"}).sanitize_bytes_per_s == 3 << 20
    assert parse().sanitize_bytes_per_s is None
    assert settings.delays == (DelayRule("a", ("flush",), 0, 0, 0.5, 5, 2),)
    assert settings.exports == (ExportRule("a", Path("/run/a.sock"), True),)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"filesystem": {"fs_enable_shm_interfaces": True}}, "filesystem.fs_enable_shm_interfaces"),
        ({"filesystems": {}}, "unknown key filesystems; the nearest known one is filesystem"),
        ({"shm_server": {"delay": [{"second": 1}]}}, "shm_server.delay[0].second; the nearest known one is"),
        ({"shm_interface": {"shm_region_size": 1.5}}, "shm_interface.shm_region_size: Expected"),
        ({"shm_interface": {"shm_region_size": "lots"}}, "shm_interface.shm_region_size: 'lots' is no size"),
        ({"shm_interface": {"shm_region_size": 4096}}, "at least 1 MiB"),
        ({"volume_manager": {"max_volume_size": 0}}, "volume_manager.max_volume_size is 0"),
        ({"filesystem": 3}, "filesystem: Expected `object`"),
        ({"backend_connection_manager": {"backend_type": "S3", "local_connection_path": "/x"}}, "backend_type"),
        ({"backend_connection_manager": {}}, "local_connection_path"),
        ({"backend_connection_manager": {"local_connection_path": ""}}, "local_connection_path is empty"),
    ],
)
def test_wrong_keys_and_values_are_named(sections: dict[str, object], words: str) -> None:
    """An error names the file, the path of the key and what is wrong; an unknown key the nearest known one."""
    message = refusal(json.dumps({**LEAST, **sections}))
    assert message.startswith(str(PATH))
    assert words in message


def test_broken_json_is_located() -> None:
    """A syntax error names the line and the column; a key that stands there twice is named."""
    assert "line 2, column" in refusal('{\n "filesystem": }')
    assert "'a' stands there twice" in refusal('{"a": 1, "a": 2}')
    assert "Expected `object`" in refusal("[]")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The error says which file."""
    with pytest.raises(config.ConfigError, match=r"nowhere\.json"):
        config.load(tmp_path / "nowhere.json")
