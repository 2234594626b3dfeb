"""The lab's own certificate authority, so that certificates are verified in the book as they are outside of it.

No cell ever turns verification off. Other people's programs get the authority as a file::

    curl --cacert {authority.ca_path} https://server.lab/

Keys are ECDSA over P-256: a chain of RSA-4096 certificates would not fit into the three times 1200 bytes that
a QUIC server may send before it knows the client's address (RFC 9000, section 8.1), which costs a round trip.
"""

from __future__ import annotations

import io
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path

import trustme

from labkit import checks
from labkit.errors import InvalidValue

# P-256, which every TLS 1.3 has to know (RFC 8446, section 9.1). Debian's Python 3.11 cannot be told X25519.
SMALL_GROUP = "prime256v1"
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Authority:
    """A certificate authority that lives as long as its lab.

    Args:
        directory: where the authority's certificate is written as ``authority.pem``. Private keys stay in
            memory, except while ``ssl`` reads one from a file in this directory; give it mode 0700.
        keylog_path: file that the contexts made here append TLS secrets to; by default ``keylog.txt`` in it.
    """

    def __init__(self, directory: Path, keylog_path: Path | None = None) -> None:
        self.directory = Path(directory)
        self.keylog_path = self.directory / "keylog.txt" if keylog_path is None else keylog_path
        self.ca_path = self.directory / "authority.pem"
        self._ca = trustme.CA(organization_name="labkit", organization_unit_name="authority of this lab")
        self._ca.cert_pem.write_to_path(str(self.ca_path))
        self._certificates: dict[tuple[str, ...], trustme.LeafCert] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Authority {self.ca_path}>"

    @property
    def ca_pem(self) -> bytes:
        """The authority's certificate."""
        return self._ca.cert_pem.bytes()

    @property
    def root(self) -> trustme.CA:
        """The authority itself, for chains that certificate_for does not make: ``root.create_child_ca()``."""
        return self._ca

    def certificate_for(self, *names: str) -> trustme.LeafCert:
        """A certificate and its key for these DNS names and IP addresses; the same one for the same names.

        Raises:
            InvalidValue: no name, or one that no certificate can carry.
        """
        if not names:
            raise InvalidValue("a certificate needs a name, for instance 'server.lab'")
        checks.texts("names", names, ["server.lab"])
        with self._lock:
            if names not in self._certificates:
                try:
                    self._certificates[names] = self._ca.issue_cert(*names, organization_name="labkit")
                except (ValueError, UnicodeError) as exc:
                    raise InvalidValue(f"no certificate for {names!r}: {exc}") from exc
            return self._certificates[names]

    def server_context(
        self, *names: str, versions: Sequence[str] = ("1.2", "1.3"), alpn: Sequence[str] = ("http/1.1",)
    ) -> ssl.SSLContext:
        """A context for a server of these names, with session tickets (RFC 5077; RFC 8446, section 4.6.1).

        Args:
            names: DNS names and IP addresses of the server.
            versions: TLS versions to speak, of "1.2" and "1.3".
            alpn: protocols to choose from, the preferred first (RFC 7301).

        Raises:
            InvalidValue: an unknown version, or a name that no certificate can carry.
        """
        checks.texts("alpn", alpn, ["http/1.1"])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version, context.maximum_version = version_range(versions)
        context.set_alpn_protocols(list(alpn))
        chain = self.certificate_for(*names).private_key_and_cert_chain_pem
        # ssl reads keys from files only; trustme's default place, /tmp, is not ours alone.
        with chain.tempfile(dir=str(self.directory)) as path:
            context.load_cert_chain(path)
        context.keylog_filename = str(self.keylog_path)
        return context

    def client_context(
        self,
        *,
        versions: Sequence[str] = ("1.2", "1.3"),
        alpn: Sequence[str] = ("http/1.1",),
        group: str | None = None,
    ) -> ssl.SSLContext:
        """A context for clients that verifies server and name against this authority, and no other.

        Args:
            versions: TLS versions to offer, of "1.2" and "1.3".
            alpn: protocols to offer (RFC 7301).
            group: the only key exchange group to offer, for instance "prime256v1" (the ssl module of some Pythons
                takes only names of elliptic curves of NIST). By default what OpenSSL likes, which may be a
                post-quantum hybrid: its key share alone is over a kilobyte.

        Raises:
            InvalidValue: an unknown version or group.
        """
        checks.texts("alpn", alpn, ["http/1.1"])
        checks.optional(checks.text, "group", group, "prime256v1")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version, context.maximum_version = version_range(versions)
        context.set_alpn_protocols(list(alpn))
        context.load_verify_locations(cadata=self.ca_pem.decode("ascii"))
        if group is not None:
            try:
                context.set_ecdh_curve(group)
            except (ValueError, ssl.SSLError) as exc:
                raise InvalidValue(f"key exchange group {group!r}: {exc}; try 'prime256v1'") from exc
        context.keylog_filename = str(self.keylog_path)
        return context


def version_range(versions: Sequence[str]) -> tuple[ssl.TLSVersion, ssl.TLSVersion]:
    """Lowest and highest of the versions named. Raises InvalidValue for none, or for an unknown one."""
    for each in checks.texts("versions", [] if isinstance(versions, str) else versions, ["1.2", "1.3"]):
        checks.one_of("versions", each, VERSIONS)
    if isinstance(versions, str) or not versions:
        raise checks.wrong("versions", versions, "choose from ('1.2', '1.3')")
    chosen = [VERSIONS[version] for version in versions]
    return min(chosen), max(chosen)


class AppendedFile(io.FileIO):
    """A file for appending that closes itself: an interrupt can fall between opening it and the ``with`` block."""

    __del__ = io.FileIO.close  # in C, so that an interrupt cannot fall into it, too


class KeyLogWriter:
    """Appends to a key log, for libraries that hand out secrets by a callback or write them into a text file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, text: str) -> None:
        """Append whole lines. They are in the file when this returns."""
        # One write to a file opened for appending: lines of several threads don't mix.
        with AppendedFile(self._path, "ab") as file:
            file.write(text.encode("ascii"))

    def flush(self) -> None:
        """Nothing is left to do."""
