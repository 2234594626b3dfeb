"""Hosts made of namespaces, joined by a wire: how a notebook gets a network of its own without privilege.

Import the modules by name: the helper process imports this package without site-packages and must stay light.
"""
