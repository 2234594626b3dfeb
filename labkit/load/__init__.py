"""Load for a server: many requests at once, or so many a second, and how long each of them took.

``load.py`` is what a notebook calls; ``generator.py`` is the program that it starts on a host.
"""
