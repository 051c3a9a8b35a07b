"""The login phase and text negotiation of RFC 7143 (sections 6, 11.10 to 11.13, 13): texts in, texts out.

``Login`` runs one connection's login phase, ``TextExchange`` the text requests of its full feature phase. Both are
handed whole PDUs by the session layer and give back flags and text; numbering, task tags of responses and sending are
the session's. Nothing here opens a socket, reads a clock or draws a random number.
"""

from iscsi_ovs.login.fullfeature import TextExchange, TextStep
from iscsi_ovs.login.keys import Offer, Parameters
from iscsi_ovs.login.stages import Login, Step
from iscsi_ovs.login.text import TextLimits

__all__ = ["Login", "Offer", "Parameters", "Step", "TextExchange", "TextLimits", "TextStep"]
