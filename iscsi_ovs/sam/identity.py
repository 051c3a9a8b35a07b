"""Who a logical unit is, what kind of disk it presents itself as, what it is set to, and what limits it states."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a logical unit is (CONTRACTS 4): the same on every path, kept with the volume."""

    volume_name: str
    uuid_hex: str


@dataclass(frozen=True, slots=True)
class Personality:
    """What kind of disk a logical unit presents itself as: an operator's choice, the same on every path.

    A volume of bytes is cut into whole ``logical_block_bytes``; what is left over is not shown. ``write_cache`` off
    makes every write durable before it is answered.
    """

    is_thin: bool = True
    logical_block_bytes: int = 512
    physical_block_bytes: int = 4096
    is_read_only: bool = False
    is_removable: bool = False
    vendor: str = "OVS"
    product: str = "SHM VOLUME"
    revision: str = "0001"
    serial: str | None = None  # None: the volume's UUID
    naa: int | None = None  # 64 or 128 bits; None: locally assigned, from the volume's UUID
    write_cache: bool = True
    rotation_rate: int = 1  # as VPD page B1 has it: 1 does not rotate, else revolutions a minute

    def __post_init__(self) -> None:
        if self.logical_block_bytes not in (512, 4096):
            raise ValueError(f"logical_block_bytes: {self.logical_block_bytes}, not 512 or 4096")
        if self.physical_block_bytes < self.logical_block_bytes or self.physical_block_bytes not in (512, 4096):
            raise ValueError(f"physical_block_bytes: {self.physical_block_bytes}, not 4096 or a logical block")
        if not 0 <= self.rotation_rate <= 0xFFFE:
            raise ValueError(f"rotation_rate: {self.rotation_rate} does not fit")
        naa = self.naa
        if naa is not None and naa >> 60 not in (2, 3, 5) and naa >> 124 != 6:
            raise ValueError(f"naa: {naa:x} is no NAA 2, 3 or 5 identifier of 64 bits, nor NAA 6 of 128")


@dataclass(frozen=True, slots=True)
class Modes:
    """The mode parameters that can be changed; all others are what they are (commands.mode_pages)."""

    descriptor_sense: bool = False  # D_SENSE: sense data in descriptor format
    write_protect: bool = False  # SWP
    write_cache: bool = True  # WCE


@dataclass(frozen=True, slots=True)
class Limits:
    """What VPD page B0 states (CONTRACTS 3 and 7)."""

    max_transfer_bytes: int = 8 << 20
    optimal_transfer_bytes: int = 1 << 20
    # Stated in B0 and obeyed for data; zeroing and unmapping is served at any length, stated or not.
    max_write_same_bytes: int = 32 << 20
    max_unmap_blocks: int = 1 << 20  # of one command, all its descriptors together
    max_unmap_descriptors: int = 256
    max_compare_and_write_blocks: int = 255  # what its one-byte NUMBER OF LOGICAL BLOCKS can say
