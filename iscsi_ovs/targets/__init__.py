"""What a target process is made of, one noun a room, below the door ``iscsi_ovs.target``.

    core            what all rooms share: the volume server's client, the clock, slots, the loop, settings
    disks           volumes as logical units, and what sessions hold of them
    nodes           iSCSI names, who gets in where, and the LUN maps behind them
    maps            what initiators see of a node, and how that changes under them
    portals         where connections come in, and what initiators are told of it
    reception       what one connection may ask before it is let in
    members         sessions from admission to their last task: reinstatement, limits, ends
    holdings        the volumes that sessions have open
    commands        SCSI commands on their way to storage and back: the hot path
    records         what the volume server keeps of units: reservations, saved mode pages
    resets          task management over logical units
    ordering        ORDERED and HEAD OF QUEUE, over all sessions of a unit
    usage           how much of its store a volume takes
    snapshots       snapshots as disks: those that are wanted, and whether they are there
    shutdown        the end in good order
    reload          another configuration, applied or refused as a whole
    sanitizing      SANITIZE between SCSI and the volume server
    volume_server   the volume server's coming, going and news

They open no socket: net.driver and storage.service are handed in.
"""
