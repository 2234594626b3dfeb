"""The clients of the eleven variants against their servers: real sockets, real handshakes, no delay."""

from __future__ import annotations

import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from types import SimpleNamespace
from typing import Any

import pytest
from OpenSSL import SSL

from labkit import InvalidValue, Lab, NotReady
from labkit.handshakes.clients import (
    Client,
    EarlyDataClient,
    QuicClient,
    TcpClient,
    TlsClient,
    client_for,
    server_for,
)
from labkit.handshakes.variants import VARIANTS, Variant, variant
from labkit.servers import Authority, EarlyDataServer, HttpServer, Request, Response
from labkit.servers.authority import AppendedFile
from labkit.servers.loop import LoopLease

EACH = pytest.mark.parametrize("chosen", VARIANTS, ids=lambda chosen: chosen.name)
# One of each client class.
KINDS = pytest.mark.parametrize("chosen", [variant(n) for n in ("tcp", "tls1.2", "tls1.3", "tls1.3-0rtt", "quic")])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(rtt_ms=0) as lab:
        for host in lab.hosts.values():
            host.sysctl["net.ipv4.tcp_fastopen"] = 3
        yield lab


# Variants.


def test_theory_is_that_of_the_design() -> None:
    assert {v.name: v.theory_rtts for v in VARIANTS} == {
        "tcp": 2,
        "tfo": 1,
        "tls1.2": 4,
        "tls1.2-resumed": 3,
        "tls1.3": 3,
        "tls1.3-resumed": 3,
        "tfo+tls1.3": 2,
        "tls1.3-0rtt": 2,
        "tfo+tls1.3-0rtt": 1,
        "quic": 2,
        "quic-0rtt": 1,
    }


def test_flags_agree_with_names() -> None:
    for v in VARIANTS:
        assert v.fast_open == ("tfo" in v.name)
        assert v.early_data == ("0rtt" in v.name)
        assert v.resumed == ("resumed" in v.name or v.early_data)
        assert (v.transport == "quic") == ("quic" in v.name)
        assert v.tls == ("1.2" if "1.2" in v.name else "1.3" if "1.3" in v.name or v.transport == "quic" else None)
        assert v.needs_warm_up == (v.resumed or v.fast_open)
        assert all([v.title, v.why, v.rfc])
        assert variant(v.name) is v


def test_variants_are_constants() -> None:
    with pytest.raises(FrozenInstanceError):
        variant("tcp").theory_rtts = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", ["tls1.4", "", None, "TCP", []])
def test_an_unknown_variant(name: Any) -> None:
    with pytest.raises(InvalidValue, match=r"choose from tcp, tfo, .*quic-0rtt") as caught:
        variant(name)
    assert repr(name) in str(caught.value)


# All of them.


@EACH
def test_the_second_fetch_is_what_the_variant_says(lab: Lab, chosen: Variant) -> None:
    with server_for(chosen, lab.server) as server:
        client = client_for(chosen, lab.client, server)
        first = client.fetch()
        before = lab.client.counters
        second = client.fetch("/again?x=1")
        assert (first.status, second.status) == (200, 200)
        assert second.body.startswith(b"GET /again?x=1 over ")
        facts = second.facts
        assert facts["tls_version"] == (f"TLSv{chosen.tls}" if chosen.tls else None)
        assert facts["alpn"] == (None if not chosen.tls else "h3" if chosen.transport == "quic" else "http/1.1")
        assert facts["resumed"] == chosen.resumed
        assert not first.facts["resumed"]
        assert facts.get("early_data_accepted", False) == chosen.early_data
        assert getattr(server, "early_requests", 0) == (1 if chosen.early_data else 0)
        # The kernel counts connections whose SYN data was acknowledged.
        assert (lab.client.counters - before)["TcpExtTCPFastOpenActive"] == chosen.fast_open
        server.close()
        assert server.log.of("error") == []


@EACH
def test_post(lab: Lab, chosen: Variant) -> None:
    def handler(request: Request) -> Response:
        return Response(201, body=request.body[::-1])

    with server_for(chosen, lab.server, port=0, handler=handler) as server:
        client = client_for(chosen, lab.client, server)
        for _ in range(2):
            fetched = client.fetch("/orders", "POST", b"abc" * 1000)
            assert (fetched.status, fetched.body) == (201, b"cba" * 1000)


@EACH
def test_a_deadline_ends_a_fetch_and_the_next_one_works(lab: Lab, chosen: Variant) -> None:
    go_on = threading.Event()

    def handler(request: Request) -> Response:
        if request.target == "/slow":
            go_on.wait(10)
        return Response.text("ok")

    with server_for(chosen, lab.server, port=0, handler=handler) as server:
        client = client_for(chosen, lab.client, server, timeout_s=0.3)
        with pytest.raises(NotReady, match=r"from client had no complete answer within 0\.3 s"):
            client.fetch("/slow")
        client.timeout_s = 10
        assert client.fetch().body == b"ok"
        go_on.set()


@KINDS
def test_an_interrupt_closes_the_socket(lab: Lab, chosen: Variant) -> None:
    go_on = threading.Event()

    def handler(request: Request) -> Response:
        if request.target == "/slow":
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            go_on.wait(10)
        return Response.text("ok")

    with server_for(chosen, lab.server, port=0, handler=handler) as server:
        client = client_for(chosen, lab.client, server)
        client.fetch()
        with pytest.raises(KeyboardInterrupt):
            client.fetch("/slow")
        go_on.set()
        assert client.fetch().body == b"ok"
        # ResourceWarnings are errors here: an unclosed socket would show.


def test_what_an_interrupt_loses_ends_by_itself(lab: Lab, until: Callable[..., None]) -> None:
    """An interrupt can fall between making something and giving it to whoever closes it."""
    LoopLease()
    until(lambda: "labkit-loop" not in {thread.name for thread in threading.enumerate()})
    AppendedFile(lab.keylog_path, "ab")  # a ResourceWarning would be an error


@KINDS
def test_the_next_close_finishes_what_an_interrupt_cut_short(
    lab: Lab, chosen: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    server = server_for(chosen, lab.server, port=4434)
    with monkeypatch.context() as patch:
        patch.setattr(server, "_shut", interrupt)
        with pytest.raises(KeyboardInterrupt):
            server.close()
    with server_for(chosen, lab.server, port=4434) as successor:
        assert server.closed
        assert client_for(chosen, lab.client, successor).fetch().status == 200


@KINDS
def test_nobody_listens(lab: Lab, chosen: Variant) -> None:
    server = server_for(chosen, lab.server, port=0)
    server.close()
    # UDP has no handshake that could be refused: the deadline tells.
    client = client_for(chosen, lab.client, server, timeout_s=0.2 if chosen.transport == "quic" else 10)
    with pytest.raises((ConnectionRefusedError, NotReady)) as caught:
        client.fetch()
    assert (caught.type is NotReady) == (chosen.transport == "quic")


@KINDS
@pytest.mark.parametrize(("method", "target"), [("GET", "/a b"), ("GET", ""), ("G T", "/"), ("GET", "/ü"), ("", "/")])
def test_requests_that_cannot_be(lab: Lab, chosen: Variant, method: str, target: str) -> None:
    with server_for(chosen, lab.server, port=0) as server:
        client = client_for(chosen, lab.client, server)
        with pytest.raises(InvalidValue, match=r"request "):
            client.fetch(target, method)
        assert server.log.of("connection") == []


@KINDS
@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan")])
def test_deadlines_that_cannot_be(lab: Lab, chosen: Variant, timeout_s: float) -> None:
    with server_for(chosen, lab.server, port=0) as server, pytest.raises(InvalidValue, match="timeout_s"):
        client_for(chosen, lab.client, server, timeout_s=timeout_s)


def test_an_unknown_version(lab: Lab) -> None:
    with HttpServer(lab.server, port=0) as server, pytest.raises(InvalidValue, match=r"1\.1"):
        TlsClient(lab.client, server, version="1.1")  # type: ignore[arg-type]


def test_clients_tell_where_they_go(lab: Lab) -> None:
    with HttpServer(lab.server, port=0) as server:
        assert repr(TcpClient(lab.client, server)) == f"<TcpClient client → {server.url}>"


# Trust.

SECURE = pytest.mark.parametrize(
    ("chosen", "make"),
    [
        (variant("tls1.2"), lambda *args: TlsClient(*args, version="1.2")),
        (variant("tls1.3"), TlsClient),
        (variant("tls1.3-0rtt"), EarlyDataClient),
        (variant("quic"), QuicClient),
    ],
    ids=["tls1.2", "tls1.3", "tls1.3-0rtt", "quic"],
)
NOT_TRUSTED = (ssl.SSLCertVerificationError, SSL.Error, ConnectionError)


@SECURE
def test_a_server_of_another_name_is_not_trusted(lab: Lab, chosen: Variant, make: Callable[..., Client]) -> None:
    with server_for(chosen, lab.server, port=0) as server:
        bank = SimpleNamespace(fqdn="bank.lab", ip=lab.server.ip, lab=lab)
        impostor = SimpleNamespace(host=bank, port=server.port, url="https://bank.lab/")
        with pytest.raises(NOT_TRUSTED, match=r"(?i)certificate|bank\.lab"):
            make(lab.client, impostor).fetch()
        assert server.log.of("request") == []


@SECURE
def test_a_server_of_another_authority_is_not_trusted(
    lab: Lab, chosen: Variant, make: Callable[..., Client], tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = SimpleNamespace(authority=Authority(tmp_path_factory.mktemp("other")))
    with server_for(chosen, lab.server, port=0) as server:
        elsewhere = SimpleNamespace(fqdn=lab.server.fqdn, ip=lab.server.ip, lab=other)
        client = make(lab.client, SimpleNamespace(host=elsewhere, port=server.port, url=server.url))
        with pytest.raises(NOT_TRUSTED, match=r"(?i)certificate|issuer"):
            client.fetch()
        assert server.log.of("request") == []


# Sessions.


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_tls_sessions_are_kept_from_fetch_to_fetch(lab: Lab, version: Any) -> None:
    with HttpServer(lab.server, tls=version, port=0) as server:
        client = TlsClient(lab.client, server, version=version, resume=True)
        assert [client.fetch().facts["resumed"] for _ in range(5)] == [False, True, True, True, True]


@pytest.mark.parametrize("name", ["tls1.2-resumed", "tls1.3-resumed", "tls1.3-0rtt", "quic-0rtt"])
def test_a_server_that_was_restarted_knows_no_session(lab: Lab, name: str) -> None:
    chosen = variant(name)
    with server_for(chosen, lab.server, port=4433) as server:
        client = client_for(chosen, lab.client, server)
        client.fetch()
        with server_for(chosen, lab.server, port=4433):
            facts = [client.fetch().facts for _ in range(2)]
            assert [fact["resumed"] for fact in facts] == [False, True]


def test_a_first_flight_with_early_data_fits_one_segment(lab: Lab) -> None:
    with EarlyDataServer(lab.server, port=0) as server:
        client = EarlyDataClient(lab.client, server)
        assert not client.holds_ticket
        with pytest.raises(InvalidValue, match="fetch twice"):
            client.replay()
        client.fetch()
        assert client.holds_ticket
        assert client.last_flight == b""
        client.fetch()
        assert client.last_flight[0] == 22  # a handshake record: the ClientHello comes first
        assert 200 < len(client.last_flight) < 1300


def test_a_server_that_ends_the_connection_without_an_answer(lab: Lab) -> None:
    with lab.server:
        listener = socket.create_server((lab.server.ip, 0))

    def hang_up() -> None:
        connection, _ = listener.accept()
        connection.recv(100)
        connection.close()

    with listener:
        server = SimpleNamespace(host=lab.server, port=listener.getsockname()[1], url="http://server.lab/")
        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(ConnectionError, match=r"no complete HTTP/1.1 response|reset"):
            TcpClient(lab.client, server).fetch()  # type: ignore[arg-type]
        thread.join()


def test_the_key_share_that_early_data_begins_with(lab: Lab) -> None:
    """A post-quantum share, which OpenSSL likes best, does not fit into one segment; the book's own choice does."""
    sizes = {}
    with EarlyDataServer(lab.server, port=0) as server:
        for group in ("prime256v1", None):
            client = EarlyDataClient(lab.client, server, group=group)
            client.fetch()
            assert client.fetch().facts["early_data_accepted"]
            sizes[group] = len(client.last_flight)
        with pytest.raises(InvalidValue, match="'P-999'"):
            EarlyDataClient(lab.client, server, group="P-999")
    assert sizes["prime256v1"] < 1000 < 1500 < sizes[None]
