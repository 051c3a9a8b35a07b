"""What a target process is made of, one noun a room, below the door ``iscsi_ovs.target``.

    core            what all rooms share: the volume server's client, the clock, slots, the loop, settings
    disks           volumes as logical units, and what sessions hold of them
    nodes           iSCSI names and the LUN maps behind them
    members         sessions from admission to their last task: reinstatement, opening and closing of volumes
    commands        SCSI commands on their way to storage and back: the hot path
    records         what the volume server keeps of units: reservations, saved mode pages
    resets          task management over logical units
    sanitizing      SANITIZE between SCSI and the volume server
    volume_server   the volume server's coming, going and news

They open no socket: net.driver and storage.service are handed in.
"""
