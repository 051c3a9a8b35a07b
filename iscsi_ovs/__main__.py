"""``python -m iscsi_ovs``: the same as ``iscsi-ovs``."""

from iscsi_ovs.cli import main

if __name__ == "__main__":
    main()
