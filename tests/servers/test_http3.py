from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest
import trustme

from labkit import Lab
from labkit.handshakes.clients import QuicClient
from labkit.handshakes.phases import begins, timeline
from labkit.servers import Http3Server, Request, Response


def test_requests_with_tickets_come_before_the_handshake_is_complete(lab: Lab) -> None:
    with Http3Server(lab.server, port=0) as server:
        client = QuicClient(lab.client, server, early_data=True)
        facts = [client.fetch().facts for _ in range(5)]
        assert [fact["early_data_accepted"] for fact in facts] == [False, True, True, True, True]
        assert (server.requests, server.early_requests) == (5, 4)
        assert "4 of 5 requests early" in repr(server)


def test_without_early_data_every_handshake_is_full(lab: Lab) -> None:
    with Http3Server(lab.server, port=0) as server:
        client = QuicClient(lab.client, server)
        fetched = [client.fetch() for _ in range(2)]
        assert [fetch.facts["resumed"] for fetch in fetched] == [False, False]
        assert b"over h3, TLSv1.3, ALPN h3, full handshake" in fetched[0].body
        assert server.early_requests == 0


def test_a_server_that_rejects_0rtt_gets_the_request_again(lab: Lab) -> None:
    with Http3Server(lab.server, port=0) as server:
        client = QuicClient(lab.client, server, early_data=True)
        client.fetch()
        server.accept_early_data = False
        facts = client.fetch().facts
        assert facts["early_data_offered"]
        assert not facts["early_data_accepted"]
        assert (server.requests, server.early_requests) == (2, 0)


def test_the_handler_is_the_same_as_for_http_1(lab: Lab) -> None:
    def handler(request: Request) -> Response:
        text = f"{request.method} {request.target} {len(request.body)} {threading.current_thread().name}"
        return Response(201, (("X-Word", "hi"),), text.encode())

    with Http3Server(lab.server, handler, port=0) as server:
        client = QuicClient(lab.client, server, timeout_s=60)
        fetched = client.fetch("/orders?id=1", "POST", b"x" * 500_000)
        assert fetched.status == 201
        assert fetched.body.startswith(b"POST /orders?id=1 500000 ")
        assert b"labkit-loop" not in fetched.body
        assert client.fetch("/", "HEAD").body == b""


def test_a_handler_that_fails_gives_a_500(lab: Lab) -> None:
    def handler(request: Request) -> Response:
        raise KeyError("learner")

    with Http3Server(lab.server, handler, port=0) as server:
        client = QuicClient(lab.client, server)
        assert [client.fetch().status for _ in range(2)] == [500, 500]
        assert len(server.log.of("error")) == 2


def test_a_slow_handler_holds_up_nobody_else(lab: Lab) -> None:
    other_was_served = threading.Event()

    def handler(request: Request) -> Response:
        if request.target == "/slow":
            assert other_was_served.wait(10)
        return Response.text(request.target)

    with Http3Server(lab.server, handler, port=0) as server:
        slow: list[bytes] = []
        client = QuicClient(lab.client, server)
        thread = threading.Thread(target=lambda: slow.append(client.fetch("/slow").body))
        thread.start()
        assert QuicClient(lab.client, server).fetch("/quick").body == b"/quick"
        other_was_served.set()
        thread.join()
        assert slow == [b"/slow"]


def test_large_responses(lab: Lab) -> None:
    with Http3Server(lab.server, lambda _: Response(body=b"x" * 3_000_000), port=0) as server:
        client = QuicClient(lab.client, server, timeout_s=60)  # aioquic computes for 3 s, and not alone on its CPU
        assert len(client.fetch().body) == 3_000_000


def test_secrets_go_to_the_key_log(lab: Lab) -> None:
    before = lab.keylog_path.read_text().count("CLIENT_EARLY_TRAFFIC_SECRET")
    with Http3Server(lab.server, port=0) as server:
        client = QuicClient(lab.client, server, early_data=True)
        client.fetch()
        client.fetch()
    assert lab.keylog_path.read_text().count("CLIENT_EARLY_TRAFFIC_SECRET") > before


@pytest.mark.parametrize(("key_type", "whole_rtts"), [("RSA", 3), ("ECDSA", 2)])
def test_a_chain_too_long_for_the_first_flight_costs_a_round_trip(lab: Lab, key_type: str, whole_rtts: int) -> None:
    lab.set_link(rtt_ms=20)  # so that the whole first flight is on its way before anything comes back
    key = trustme.KeyType[key_type]
    authority = lab.authority.root
    for _ in range(3):
        authority = authority.create_child_ca(key_type=key)
    with Http3Server(lab.server, port=0, certificate=authority.issue_cert("server.lab", key_type=key)) as server:
        for _ in range(4):
            with lab.capture() as capture:
                assert QuicClient(lab.client, server).fetch().status == 200
            line = timeline(capture.messages)
            sent: dict[bool, list[int]] = {True: [], False: []}
            for packet in line.packets:
                if packet.from_client and sent[False]:
                    break
                sent[packet.from_client].append(packet.payload)
            # A machine that stalls before the server answers makes the client ask once more, and allow twice as much.
            if len(sent[True]) == 1:
                break
    assert len(sent[True]) == 1
    assert sum(line.whole_rtts().values()) == whole_rtts
    asked, answered = sum(sent[True]), sum(sent[False])
    # RFC 9000, section 8.1: three times what came, and no more, before the client's address is validated.
    assert (answered == 3 * asked) == (whole_rtts == 3)
    assert answered <= 3 * asked


@pytest.mark.parametrize(("single_use_tickets", "purchases"), [(True, 1), (False, 2)])
def test_a_recorded_first_datagram_sent_again(
    lab: Lab, until: Callable[..., None], single_use_tickets: bool, purchases: int
) -> None:
    sold = []

    def shop(request: Request) -> Response:
        sold.append(request.target)
        return Response.text("sold\n")

    with Http3Server(lab.server, shop, port=0, single_use_tickets=single_use_tickets) as server:
        client = QuicClient(lab.client, server, early_data=True)
        client.fetch("/ticket")
        with lab.capture() as capture:
            client.fetch("/buy", "POST")
        first = next(packet for packet in capture.messages if begins(packet))
        recorded = bytes(first.transit.data)[-first.payload :]
        # As long as the server remembers the connection, the copy is a duplicate of it and nothing else.
        until(lambda: not server.conversations)
        with lab.client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
            attacker.sendto(recorded, (lab.server.ip, server.port))
            attacker.settimeout(20)
            assert attacker.recv(65536)  # the server goes along: it opens a connection for whoever this is
            if not single_use_tickets:
                until(lambda: len(sold) == 3)
    assert sold.count("/buy") == purchases


def test_what_is_no_quic_is_ignored(lab: Lab) -> None:
    with Http3Server(lab.server, port=0) as server:
        with lab.client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for datagram in (b"", b"hello", b"\xff" * 1200, b"\xc0" + bytes(1199)):
                sock.sendto(datagram, (lab.server.ip, server.port))
        assert QuicClient(lab.client, server).fetch().status == 200


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_no_content(lab: Lab, method: str) -> None:
    with Http3Server(lab.server, lambda _: Response(204), port=0) as server:
        assert QuicClient(lab.client, server).fetch("/", method).status == 204
