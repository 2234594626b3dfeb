from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from labkit import InvalidValue, Lab
from labkit.servers import Authority


def connect_in_memory(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """A handshake without a network. Raises what the client raises."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ours, theirs


def client_hello(context: ssl.SSLContext) -> bytes:
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="server.lab").do_handshake()
    return out.read()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_a_client_trusts_a_server_of_the_same_authority(authority: Authority) -> None:
    server = authority.server_context("server.lab", "192.0.2.2")
    for name in ("server.lab", "192.0.2.2"):
        ours, _ = connect_in_memory(authority.client_context(), server, name)
        assert ours.version() == "TLSv1.3"
        assert ours.selected_alpn_protocol() == "http/1.1"


def test_a_client_refuses_another_name(authority: Authority) -> None:
    server = authority.server_context("server.lab")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"bank\.lab"):
        connect_in_memory(authority.client_context(), server, "bank.lab")


def test_a_client_refuses_another_authority(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = Authority(tmp_path_factory.mktemp("other"))
    with pytest.raises(ssl.SSLCertVerificationError):
        connect_in_memory(authority.client_context(), other.server_context("server.lab"), "server.lab")


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_versions_are_chosen(authority: Authority, version: str) -> None:
    server = authority.server_context("server.lab", versions=[version])
    ours, _ = connect_in_memory(authority.client_context(), server, "server.lab")
    assert ours.version() == f"TLSv{version}"


def test_a_group_keeps_the_client_hello_small(authority: Authority) -> None:
    hello = client_hello(authority.client_context(versions=["1.3"], group="prime256v1"))
    assert len(hello) < 600  # some versions of OpenSSL pad it to 517 bytes (RFC 7685)
    # supported_groups (10) with one group, secp256r1 (0x0017): RFC 8446, section 4.2.7
    assert bytes.fromhex("000a 0004 0002 0017") in hello


def test_secrets_go_to_the_key_log(authority: Authority) -> None:
    connect_in_memory(authority.client_context(), authority.server_context("server.lab"), "server.lab")
    labels = {line.split()[0] for line in authority.keylog_path.read_text().splitlines() if line[0] != "#"}
    assert {"CLIENT_HANDSHAKE_TRAFFIC_SECRET", "SERVER_TRAFFIC_SECRET_0"} <= labels


def test_no_private_key_stays_on_disk(authority: Authority) -> None:
    authority.server_context("server.lab")
    files = {path.name: path.read_text() for path in authority.directory.iterdir()}
    assert files.keys() == {"authority.pem", "keylog.txt"}
    assert not any("PRIVATE" in text for text in files.values())


def test_certificates_are_small_and_kept(authority: Authority) -> None:
    leaf = authority.certificate_for("server.lab")
    assert authority.certificate_for("server.lab") is leaf
    certificate = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert sum(len(part.bytes()) for part in leaf.cert_chain_pems) < 1200


@pytest.mark.parametrize("names", [(), ("",), ("two words",), ("a" * 64 + ".lab",)])
def test_names_that_cannot_be(authority: Authority, names: tuple[str, ...]) -> None:
    with pytest.raises(InvalidValue):
        authority.certificate_for(*names)


@pytest.mark.parametrize("versions", [(), "1.3", ("1.1",), ("1.3", "1.4")])
def test_versions_that_cannot_be(authority: Authority, versions: tuple[str, ...]) -> None:
    with pytest.raises(InvalidValue, match="choose from"):
        authority.client_context(versions=versions)


def test_a_group_that_cannot_be(authority: Authority) -> None:
    with pytest.raises(InvalidValue, match="'x25520'"):
        authority.client_context(group="x25520")


def test_one_authority_a_lab(lab: Lab) -> None:
    assert lab.authority is lab.authority
    assert lab.authority.keylog_path == lab.keylog_path
    assert lab.authority.ca_path.parent == lab.directory
    assert lab.directory.stat().st_mode & 0o777 == 0o700
