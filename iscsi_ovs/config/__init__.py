"""Knobs from files and options. It fills, it obeys nothing.

sizes           10G, 512 MiB, 1048576
volumes         NAME=SIZE, VOLUME@SNAPSHOT
pool            the first vpool.json, directories of our own
sections        the grammar of config.toml, table by table
reading         a file → sections; an error names file, path of the key and the nearest known key
secrets         where secrets come from, and what is wrong with them
configuration   sections → what a target process is to serve, cross-checked
"""

from iscsi_ovs.config.pool import make_private_directory, write_first_pool
from iscsi_ovs.config.sizes import format_size, parse_size
from iscsi_ovs.config.volumes import parse_snapshot_option, parse_volume_option

__all__ = [
    "format_size",
    "make_private_directory",
    "parse_size",
    "parse_snapshot_option",
    "parse_volume_option",
    "write_first_pool",
]
