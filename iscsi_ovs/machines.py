"""What to tell a virtual machine monitor so that a machine has an exported volume as a disk: words, and nothing else.

The guest's memory must be shared with the volume server (share=on): without that QEMU starts all the same, and fails
only when the guest's driver does.
"""

from __future__ import annotations

import shlex
from xml.sax.saxutils import quoteattr

VIRTIO_BLOCK = 2  # "5 Device Types" of Virtual I/O Device 1.2


def qemu_arguments(volume: str, path: str, memory: str = "1G") -> list[str]:
    """For a machine of ``memory``; "," is doubled in QEMU's values.

    With ``reconnect`` it waits for the next volume server when one dies, and goes on there.
    """
    name = "disk-" + "".join(letter if letter.isalnum() else "-" for letter in volume)
    return [
        *("-object", f"memory-backend-memfd,id=guest-memory,size={memory},share=on"),
        *("-m", memory, "-machine", "memory-backend=guest-memory"),
        *("-chardev", f"socket,id={name},path={path.replace(',', ',,')},reconnect=1"),
        *("-device", f"vhost-user-blk-pci,chardev={name}"),
    ]


def libvirt_elements(path: str) -> str:
    """What belongs into a <domain>, and into its <devices>."""
    return "\n".join(
        (
            "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>",
            "<disk type='vhostuser' device='disk'>",
            "  <driver name='qemu' type='raw'/>",
            f"  <source type='unix' path={quoteattr(path)}>",
            "    <reconnect enabled='yes' timeout='1'/>",
            "  </source>",
            "  <target dev='vda' bus='virtio'/>",
            "</disk>",
        )
    )


def explain(volume: str, path: str) -> str:
    """How to use the export, for people and their clipboards."""
    arguments = qemu_arguments(volume, path)
    pairs = [shlex.join(arguments[at : at + 2]) for at in range(0, len(arguments), 2)]
    return "\n".join(
        (
            f"volume {volume} listens at {path}, until: iscsi-ovs volume unexport {volume}",
            "QEMU (size= and -m: the machine's memory):",
            "  " + " \\\n  ".join(pairs),
            "libvirt (memoryBacking into <domain>, disk into <devices>):",
            *("  " + line for line in libvirt_elements(path).splitlines()),
            "User Mode Linux:",
            f"  virtio_uml.device={path}:{VIRTIO_BLOCK}",
        )
    )
