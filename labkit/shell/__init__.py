"""``labkit shell``: a lab and a prompt on its hosts.

``console`` reads lines, ``wire_commands`` is what it knows of the wire, ``jobs`` runs lines on hosts, ``words`` makes
values of what was typed, ``complete`` offers what may follow.
"""
