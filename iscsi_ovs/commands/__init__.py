"""SCSI command sets, no I/O: what each opcode does, from a CDB to a block.Request or an Outcome.

``COMMAND_SET`` is what target.py hands to logical units; ``OPERATIONS`` is its table.
"""

from iscsi_ovs.commands.operations import COMMAND_SET, OPERATIONS

__all__ = ["COMMAND_SET", "OPERATIONS"]
