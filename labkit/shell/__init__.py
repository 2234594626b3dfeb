"""``labkit shell``: a lab and a prompt on its hosts.

``console`` reads lines, ``jobs`` runs them on hosts, ``words`` makes values of what was typed.
"""
