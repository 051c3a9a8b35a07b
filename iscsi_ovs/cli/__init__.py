"""``iscsi-ovs``: run the target, look after volumes. Words for an operator, and exit codes for a script.

    0 done · 1 failed · 2 usage · 3 not found · 4 exists, or busy · 5 no volume server · 6 serve gave up restarting

What a command prints goes to standard output; logs and errors go to standard error. What needs much to import is
imported by the command that needs it.
"""

from __future__ import annotations

import errno
import os
import sys

import click

from iscsi_ovs.cli import mount, serve, shared, snapshot, target, volume
from iscsi_ovs.errors import ConfigurationError, Error

_EXIT_OF_ERRNO = {
    errno.EINVAL: shared.EXIT_USAGE,  # a name, size or label that can't be
    errno.EFBIG: shared.EXIT_USAGE,
    errno.E2BIG: shared.EXIT_USAGE,
    errno.ENOENT: shared.EXIT_NOT_FOUND,
    errno.EEXIST: shared.EXIT_BUSY,
    errno.EBUSY: shared.EXIT_BUSY,
    errno.ENOTEMPTY: shared.EXIT_BUSY,  # clones stand on it
}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="iscsi-ovs")
def cli() -> None:
    """An iSCSI target in user space, on a volume server behind shared memory."""


def main() -> None:
    """The console script."""
    try:
        sys.exit(cli.main(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(shared.EXIT_FAILED)
    except ConfigurationError as error:
        shared.complain(str(error))
        sys.exit(shared.EXIT_USAGE)
    except Error as error:
        shared.complain(str(error))
        sys.exit(shared.EXIT_FAILED)
    except BrokenPipeError:  # whoever read our output has enough
        shared.drop_output()
        sys.exit(shared.EXIT_FAILED)
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        shared.complain(f"{where}{error.strerror or error}")
        sys.exit(_EXIT_OF_ERRNO.get(error.errno or 0, shared.EXIT_FAILED))


for _command in (
    serve.serve,
    target.target,
    target.reload,
    volume.volume,
    snapshot.snapshot,
    mount.mount,
    mount.unmount,
):
    cli.add_command(_command)
