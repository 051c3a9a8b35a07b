"""Connections and sessions in full feature phase, without I/O: bytes in, events out; outcomes in, bytes out.

connection  one TCP connection: which PDU is allowed when, and what it leads to
framing     bytes → headers and payload; payload goes straight to where the connection wants it
window      CmdSN, MaxCmdSN: a command window paid for in slots
space       what all windows and transfers of a target share: the slots
tasks       one SCSI command from its PDU to its status; the table of them
transfer    R2T and Data-Out in, Data-In and status out
session     an I_T nexus that outlives a connection's errors no longer than ErrorRecoveryLevel 0 says
events      what the owner of a connection is told
"""
