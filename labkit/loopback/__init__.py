"""The engine of the lowest tier: hosts that are names for sockets on 127.0.0.1, joined by a relay that delays them.

Here run the same servers and clients as on a kernel's network, on any system that has Python. The bytes and their
times are real. The TCP headers in a capture are the relay's own: it writes a SYN where it carries a connection's
opening and a FIN where it carries its end. What a kernel would do on a network between them (retransmit, open windows,
wait for acknowledgments, Fast Open) does not happen, and a lab of this tier refuses to show it; see labkit.recorded.
"""
