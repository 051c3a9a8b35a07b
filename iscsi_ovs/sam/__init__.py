"""The rooms behind scsi.py: one noun each. Whoever needs one comes through that door."""
