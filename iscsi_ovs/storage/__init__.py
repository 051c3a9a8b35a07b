"""What shm_client is made of: slots, the ring queue, the control link. Its door is iscsi_ovs.shm_client."""
