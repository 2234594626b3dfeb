"""TLS as the chapter's clients and servers speak it."""

from __future__ import annotations

import ssl

from labkit.lab import Lab


def contexts(lab: Lab, version: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a server and of a client that speak one version only, "1.2" or "1.3"."""
    server = lab.authority.server_context("server.lab", versions=[version])
    return server, lab.authority.client_context(versions=[version])
