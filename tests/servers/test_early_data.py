from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from labkit import Lab
from labkit.handshakes.clients import EarlyDataClient
from labkit.servers import EarlyDataServer, Request, Response

Ran = list[str]


@pytest.fixture
def ran() -> Ran:
    """Targets that the handler was called for."""
    return []


@pytest.fixture
def handler(ran: Ran) -> Callable[[Request], Response]:
    def handle(request: Request) -> Response:
        ran.append(request.target)
        return Response.text("early" if request.facts["early_data"] else "late")

    return handle


def test_the_second_request_is_answered_before_the_handshake_is_complete(
    lab: Lab, handler: Callable[[Request], Response]
) -> None:
    with EarlyDataServer(lab.server, handler, port=0) as server:
        client = EarlyDataClient(lab.client, server)
        assert [client.fetch().body for _ in range(4)] == [b"late", b"early", b"early", b"early"]
        assert (server.requests, server.early_requests) == (4, 3)
        assert "3 of 4 requests early" in repr(server)


def test_early_data_is_accepted_every_time(lab: Lab) -> None:
    with EarlyDataServer(lab.server, port=0) as server:
        client = EarlyDataClient(lab.client, server)
        client.fetch()
        accepted = [client.fetch().facts["early_data_accepted"] for _ in range(50)]
        assert accepted == [True] * 50
        assert server.early_requests == 50


def test_a_server_that_rejects_early_data_gets_the_request_again(
    lab: Lab, ran: Ran, handler: Callable[[Request], Response]
) -> None:
    with EarlyDataServer(lab.server, handler, port=0) as server:
        client = EarlyDataClient(lab.client, server)
        client.fetch("/ticket")
        server.accept_early_data = False
        fetched = client.fetch("/rejected")
        assert fetched.body == b"late"
        assert fetched.facts["early_data_offered"]
        assert not fetched.facts["early_data_accepted"]
        assert fetched.facts["resumed"]
        server.accept_early_data = True
        assert client.fetch("/accepted").body == b"early"
        assert ran == ["/ticket", "/rejected", "/accepted"]


def test_a_server_that_rejects_from_the_start(lab: Lab) -> None:
    with EarlyDataServer(lab.server, port=0, accept_early_data=False) as server:
        client = EarlyDataClient(lab.client, server)
        facts = [client.fetch().facts for _ in range(3)]
        assert [fact["early_data_offered"] for fact in facts] == [False, True, True]
        assert not any(fact["early_data_accepted"] for fact in facts)
        assert server.early_requests == 0


def test_replay_protection_executes_once(lab: Lab, ran: Ran, handler: Callable[[Request], Response]) -> None:
    with EarlyDataServer(lab.server, handler, port=0) as server:
        client = EarlyDataClient(lab.client, server)
        client.fetch("/")
        client.fetch("/pay", method="POST", body=b"10")
        answer = client.replay()
        assert answer[:1] == b"\x16"  # a ServerHello: the server starts a full handshake, which the attacker cannot end
        assert ran == ["/", "/pay"]
        assert client.fetch("/after").body == b"early"


def test_without_replay_protection_every_copy_executes(
    lab: Lab, ran: Ran, handler: Callable[[Request], Response]
) -> None:
    with EarlyDataServer(lab.server, handler, port=0, replay_protection=False) as server:
        client = EarlyDataClient(lab.client, server)
        client.fetch("/")
        client.fetch("/pay", method="POST", body=b"10")
        client.replay()
        client.replay()
        assert ran == ["/", "/pay", "/pay", "/pay"]
        assert server.early_requests == 3


def test_early_keys_go_to_the_key_log(lab: Lab) -> None:
    with EarlyDataServer(lab.server, port=0) as server:
        client = EarlyDataClient(lab.client, server)
        client.fetch()
        client.fetch()
    client_random = client.last_flight[11:43].hex()  # record header 5, handshake header 4, version 2
    lines = lab.keylog_path.read_text().splitlines()
    labels = {line.split()[0] for line in lines if client_random in line}
    assert {"CLIENT_EARLY_TRAFFIC_SECRET", "SERVER_TRAFFIC_SECRET_0"} <= labels


def test_a_request_longer_than_the_server_allows_waits_for_the_handshake(lab: Lab) -> None:
    with EarlyDataServer(lab.server, port=0) as server:
        client = EarlyDataClient(lab.client, server)
        client.fetch()
        facts = client.fetch(method="POST", body=b"x" * 20_000).facts
        assert not facts["early_data_offered"]
        assert client.fetch(method="POST", body=b"x" * 10_000).facts["early_data_accepted"]


def test_a_large_early_response(lab: Lab) -> None:
    with EarlyDataServer(lab.server, lambda _: Response(body=b"x" * 3_000_000), port=0) as server:
        client = EarlyDataClient(lab.client, server)
        assert [len(client.fetch().body) for _ in range(2)] == [3_000_000] * 2
        assert server.early_requests == 1


# Other people's clients.


def test_openssl_sends_early_data(lab: Lab, require_program: Callable[[str], str]) -> None:
    session, early = lab.directory / "early.pem", lab.directory / "request.txt"
    request = b"GET /openssl HTTP/1.1\r\nHost: server.lab\r\nConnection: close\r\n\r\n"
    early.write_bytes(request)
    with EarlyDataServer(lab.server, port=0) as server:
        base = [require_program("openssl"), "s_client", "-connect", f"{server.host.ip}:{server.port}", "-ign_eof"]
        base += ["-CAfile", str(lab.authority.ca_path), "-verify_return_error", "-verify_hostname", server.host.fqdn]
        first = lab.client.run([*base, "-sess_out", str(session)], stdin=request).check()
        assert "no early data" in first.stdout
        second = lab.client.run([*base, "-sess_in", str(session), "-early_data", str(early)]).check()
        assert "Early data was accepted" in second.stdout
        assert "session resumed, early data" in second.stdout
        # The same ticket once more, which its owner ought not to do.
        third = lab.client.run([*base, "-sess_in", str(session), "-early_data", str(early)], stdin=request).check()
        assert "Early data was rejected" in third.stdout
        assert server.early_requests == 1


def test_curl_and_httpx(lab: Lab, require_program: Callable[[str], str]) -> None:
    with EarlyDataServer(lab.server, port=0) as server:
        curl = [require_program("curl"), "-sS", "--cacert", str(lab.authority.ca_path), server.url, server.url]
        assert lab.client.run(curl).check().stdout.count("TLSv1.3, ALPN http/1.1, full handshake, no early data") == 2
        with lab.client, httpx.Client(verify=lab.authority.client_context()) as client:
            answers = [client.post(server.url, content=b"x" * 50_000).status_code for _ in range(2)]
        assert answers == [200, 200]
        assert len(server.log.of("connection")) == 2
