"""What cannot be is refused by every public call in the same way: InvalidValue with the argument's name and the value.

One table: a call, the argument, values that it cannot take. After each, nothing more is there than before.
"""

from __future__ import annotations

import gc
import math
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from labkit import Captured, InvalidValue, Lab, Link, NotAvailableHere, Rule, checks
from labkit.handshakes import measure, race, server_for, variant
from labkit.handshakes.clients import EarlyDataClient, QuicClient, TcpClient, TlsClient
from labkit.load.load import load
from labkit.load.server_process import ServerProcess
from labkit.plots import Picture, live, plot_queues, plot_tcp
from labkit.queues.fill import fill
from labkit.queues.history import Steps
from labkit.queues.run_queue import threads_of, tree
from labkit.queues.watch import Watch
from labkit.servers import AsgiServer, EarlyDataServer, Http3Server, HttpServer, Log, Page, Response
from labkit.services import Envoy, HAProxy, Nginx, PostgreSQL, RabbitMQ, Service, Unbound

NO_NUMBER = [math.nan, math.inf, -1, True, "5", None, [5]]
NO_TIME = [math.nan, math.inf, -0.5, True, "5", [5]]  # where None stands for something
NO_WHOLE = [1.5, -1, True, "5", [5]]
NO_PORT = [80.5, 65536, -1, True, "80", [80]]
NO_FLAG = [0, "yes", [True]]
NO_TEXT = [5, b"x", ["x"], "a\0b"]
NO_BYTES = ["text", 5, ["x"]]
NO_TEXTS = ["text", 5, [5], ["a\0b"]]
NO_PATH = [5, "", "a\0b", ["x"]]
NO_HOST = ["server", 5, [5]]
NO_FUNCTION = ["f", 5]
HTTP = b"GET / HTTP/1.1\r\n\r\n"


class Call(NamedTuple):
    """A public call that takes one bad value. `argument` is named in the message."""

    name: str
    argument: str
    call: Callable[[Lab, Any], object]
    values: list[Any]


def loaded(lab: Lab, **options: Any) -> object:
    return load(lab.client, lab.server, 80, **options)


def rows(function: Callable[..., object], called: str, /, **bad: list[Any]) -> list[Call]:
    """Calls with one keyword each."""
    return [
        Call(called, argument, lambda lab, value, argument=argument: function(lab, **{argument: value}), values)
        for argument, values in bad.items()
    ]


LINK = {"rtt_ms": NO_NUMBER, "jitter_ms": NO_NUMBER, "queue_ms": NO_NUMBER, "loss": [*NO_NUMBER, 2]}
LINK |= {"reorder": NO_NUMBER, "duplicate": NO_NUMBER, "rate_mbps": [0, *NO_TIME]}
CONDITIONS = {
    "source": NO_TEXT, "destination": NO_TEXT, "protocol": ["icmpx", 5, ["tcp"]], "tcp_flags": ["", "X", 5, ["S"]],
    "port": [0, *NO_PORT], "payload": NO_FLAG, "contains": NO_BYTES, "skip": [None, *NO_WHOLE], "count": [0, *NO_WHOLE],
}  # fmt: skip
PROGRAM = {"stdin": NO_BYTES, "cwd": [5, "a\0b", ["x"]], "env": ["A=1", 5, ["A"], {"A": 1}, {1: "A"}, {"A=B": "1"}]}
PROGRAM |= {"args": ["true", 5, [], [5], ["a\0b"]]}


def ran(lab: Lab, *, args: Any = ("true",), how: str = "run", **options: Any) -> object:
    return getattr(lab.client, how)(args, **options)


CALLS = [
    *rows(lambda _, **o: Lab(**o), "Lab", rtt_ms=NO_NUMBER, loss=NO_NUMBER, jitter_ms=NO_NUMBER,
          rate_mbps=[0, *NO_TIME], hosts=["proxy", 5], seed=[1.5, True, "x", None], name=NO_TEXT),
    *rows(lambda lab, link: lab.add_host("late", link), "Lab.add_host", link=[5, "x", {}]),
    *rows(lambda lab, **o: lab.set_link(**o), "Lab.set_link", seed=[1.5, True, "x"], latency=[5], **LINK),
    *rows(lambda lab, at: lab.capture(at), "Lab.capture", at=[5, None, [5]]),
    *rows(lambda lab, needs: lab.can(needs), "Lab.can", needs=["all", 5, None, [5]]),
    *rows(lambda lab, **o: lab.live_or_recorded(**{"key": "a.b/c", "function": int, **o}), "Lab.live_or_recorded",
          key=NO_TEXT, function=NO_FUNCTION),
    *rows(lambda lab, **o: lab.watch(**{"port": 80, **o}), "Lab.watch", port=[0, None, *NO_PORT], at=[5, None, [5]],
          every_us=[99, *NO_NUMBER], connections=NO_FLAG, tcp=NO_FLAG),
    *rows(lambda _, **o: Watch(**{"port": 80, **o}), "Watch", host=NO_HOST),
    *rows(lambda _, **o: Link(**o), "Link", **LINK),
    *rows(lambda _, **o: Link().changed(**o), "Link.changed", latency=[5], **LINK),
    *rows(lambda _, **o: Rule(**{"action": "drop", **o}), "Rule", action=["lose", 5, None, ["drop"]],
          delay_ms=NO_NUMBER, **CONDITIONS),
    *rows(lambda lab, **o: lab.wire.drop(**o), "wire.drop", foo=[1], action=["delay"], **CONDITIONS),
    *rows(lambda lab, **o: lab.wire.duplicate(**o), "wire.duplicate", foo=[1], **CONDITIONS),
    *rows(lambda lab, **o: lab.wire.delay(**{"delay_ms": 5, **o}), "wire.delay", foo=[1], delay_ms=NO_NUMBER,
          **CONDITIONS),
    *rows(lambda lab, rule: lab.wire.add(rule), "wire.add", rule=["drop", 5, None]),
    *rows(lambda lab, timeout_s: lab.wire.settle(timeout_s), "wire.settle", timeout_s=NO_TIME),
    *rows(lambda lab, **o: ran(lab, **o), "Host.run", timeout_s=NO_NUMBER, **PROGRAM),
    *rows(lambda lab, **o: ran(lab, how="start", **o), "Host.start", **PROGRAM),
    *rows(lambda lab, **o: lab.client.socket(**o), "Host.socket", family=["inet", 1.5, None], kind=["stream", 1.5],
          protocol=["tcp", 1.5]),
    Call("Host.sysctl", "net.ipv4.tcp_sack", lambda lab, v: lab.client.sysctl.update({"net.ipv4.tcp_sack": v}),
         [None, True, [1], 1.5]),
    Call("Host.sysctl name", "sysctl", lambda lab, v: lab.client.sysctl[v], ["kernel.x", "net/../x", 5, "net.a\0b"]),
    *rows(lambda lab, **o: loaded(lab, **o), "load", clients=[0, *NO_WHOLE], seconds=[0, *NO_NUMBER],
          rate=[0, *NO_TIME], new_connections=NO_FLAG,
          warmup_s=NO_NUMBER, timeout_s=NO_NUMBER, seed=[1.5, "x"], requests=["GET", 5, []]),
    *rows(lambda lab, **o: load(**{"host": lab.client, "target": lab.server, "port": 80, **o}), "load", host=NO_HOST,
          target=["server.lab", 5], port=[0, None, *NO_PORT]),
    *rows(lambda lab, **o: ServerProcess(**{"host": lab.server, "port": 80, "function": print, **o}), "ServerProcess",
          host=NO_HOST, port=[0, None, *NO_PORT], function=NO_FUNCTION, listeners=[0, *NO_WHOLE]),
    *rows(lambda lab, **o: fill(**{"client": lab.client, "server": lab.server, **o}), "fill", client=NO_HOST,
          server=NO_HOST, backlog=NO_WHOLE, clients=[0, 4001, *NO_WHOLE], seconds=[601, *NO_NUMBER]),
    *rows(lambda _, moment_s: Steps().at(moment_s), "Steps.at", moment_s=["5", None, math.nan]),
    *rows(lambda _, pid: tree(pid), "tree", pid=[None, *NO_WHOLE]),
    *rows(lambda _, pids: threads_of([pids]), "threads_of", pids=NO_WHOLE),
    *rows(lambda lab, **o: HttpServer(lab.server, **o), "HttpServer", port=NO_PORT, backlog=NO_WHOLE, fast_open=NO_FLAG,
          handler=NO_FUNCTION, name=NO_TEXT, tls=[5, [5]]),
    *rows(lambda _, host: HttpServer(host), "HttpServer", host=NO_HOST),
    *rows(lambda lab, **o: EarlyDataServer(lab.server, **o), "EarlyDataServer", port=NO_PORT, backlog=NO_WHOLE,
          fast_open=NO_FLAG, replay_protection=NO_FLAG, accept_early_data=NO_FLAG, handler=NO_FUNCTION),
    *rows(lambda lab, **o: AsgiServer(lab.server, **{"app": print, **o}), "AsgiServer", app=NO_FUNCTION,
          port=NO_PORT, tls=NO_FLAG, backlog=NO_WHOLE, name=NO_TEXT),
    *rows(lambda lab, **o: Http3Server(lab.server, **o), "Http3Server", port=NO_PORT, accept_early_data=NO_FLAG,
          single_use_tickets=NO_FLAG, handler=NO_FUNCTION, name=NO_TEXT),
    *rows(lambda lab, **o: server_for(variant("tcp"), lab.server, **o), "server_for", port=NO_PORT,
          handler=NO_FUNCTION),
    *rows(lambda lab, **o: Page(lab.server, **{"port": 80, **o}), "Page", port=[0, None, *NO_PORT], tls=NO_FLAG,
          path=["x", "/a#b", 5, "/a\0b"], client=NO_HOST, name=NO_TEXT),
    *rows(lambda _, **o: Response(**o), "Response", status=[99, 600, "200", None], body=["text", None]),
    *rows(lambda _, max_entries: Log(max_entries), "Log", max_entries=[0, None, *NO_WHOLE]),
    *rows(lambda lab, **o: lab.authority.client_context(**o), "client_context", versions=["1.3", 5, [5], [[]]],
          alpn=NO_TEXTS, group=NO_TEXT),
    *rows(lambda lab, **o: lab.authority.server_context("server.lab", **o), "server_context", versions=["1.3", 5, [5]],
          alpn=NO_TEXTS),
    *rows(lambda lab, names: lab.authority.certificate_for(names), "certificate_for", names=NO_TEXT),
    *rows(lambda lab, **o: race(lab, ["tcp"], **o), "race", runs=[0, None, *NO_WHOLE], progress=NO_FUNCTION),
    *rows(lambda lab, runs: measure(lab, "tcp", runs=runs), "measure", runs=[0, None, *NO_WHOLE]),
    *rows(lambda _, **o: live(None, **o), "live", every_s=[0, *NO_NUMBER], draw=NO_FUNCTION),  # type: ignore[arg-type]
    *rows(lambda _, **o: plot_queues(None, **o), "plot_queues", title=NO_TEXT, prediction=NO_TIME),  # type: ignore[arg-type]
    *rows(lambda _, **o: plot_tcp(None, **o), "plot_tcp", title=NO_TEXT),  # type: ignore[arg-type]
    *rows(lambda lab, way: lab.client.cut(way), "Host.cut", way=["sideways", 5, None, ["up"]]),
    *rows(lambda lab, way: lab.client.interfaces["lab"].cut(way), "Interface.cut", way=["sideways", 5, None]),
    *rows(lambda lab, **o: lab.client.interfaces["lab"].set_link(**o), "Interface.set_link", seed=[1.5, True, "x"],
          latency=[5], mtu=[1279, 1501, 1400.5, "x"], **LINK),
    *rows(lambda lab, **o: lab.client.routes.add(**{"destination": "default", "via": "192.0.2.2", **o}), "routes.add",
          destination=NO_TEXT, via=[5, ["x"]], kind=["black", 5], metric=NO_WHOLE, mtu=[67, *NO_WHOLE],
          ttl=[0, 256, *NO_WHOLE]),
    *rows(lambda lab, **o: lab.client.routes.remove(**{"destination": "198.51.100.0/24", **o}), "routes.remove",
          destination=[5, "x"], metric=NO_WHOLE),
    *rows(lambda lab, address: lab.client.routes.to(address), "routes.to", address=[5, "x", None]),
    *rows(lambda lab, networks: lab.add_router("r", networks), "add_router", networks=["lab", 5, ["lab"], [5]]),
    *rows(lambda lab, **o: lab.add_host("late", **o), "Lab.add_host", network=["x", 5, ["lab"]]),
    *rows(lambda lab, **o: lab.add_interface(**{"host": lab.client, "network": "lab", **o}), "add_interface",
          host=[5, None], network=["x", 5]),
    *rows(lambda lab, **o: lab.client.nat(**o), "nat", kind=["x", 5], timeout_s=[0, *NO_NUMBER]),
    *rows(lambda lab, port: lab.client.bound(port), "bound", port=[0, None, *NO_PORT]),
    *rows(lambda lab, **o: lab.client.door(**{"server": lab.server, "port": 80, **o}), "door", server=NO_HOST,
          port=[0, None, *NO_PORT]),
    *rows(lambda lab, **o: Service(**{"host": lab.server, "args": ["sleep", "60"], "ready": 8080, **o}), "Service",
          host=NO_HOST, args=["x", [], [5], 5], ready=[0, 1.5, True, "(", None, []], ports=[[0], ["x"], [80.5], 5],
          files=[5, {"a": 1}, {1: "a"}], env=[5, {"A": 1}, {"A=": "b"}], name=NO_TEXT, timeout_s=[0, *NO_NUMBER],
          patience_s=[0, *NO_NUMBER], stop=[0, "TERM", 65, 1.5], background=NO_FLAG),
    *(row for each in (Envoy, HAProxy, Nginx, PostgreSQL, RabbitMQ, Unbound)
      for row in rows(lambda lab, each=each, **o: each(**{"host": lab.server, **o}), each.__name__, host=NO_HOST,
                      foo=[1])),
    *rows(lambda _, path: Captured.open(path), "Captured.open", path=[5, None, ["x"]]),
    *rows(lambda _, path: Picture(None, "").save(path), "Picture.save", path=[*NO_PATH, "x.jpg"]),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(rtt_ms=0) as lab:
        _ = lab.authority
        yield lab


def there(lab: Lab) -> tuple[object, ...]:
    """All that a call could leave behind."""
    tasks = Path("/proc/self/task").iterdir()
    children = {child for task in tasks for child in (task / "children").read_text().split()}
    programs = Path(f"/proc/{lab.engine.helper_pid}/task/{lab.engine.helper_pid}/children").read_text()  # type: ignore[attr-defined]
    open_files = len(os.listdir("/proc/self/fd"))
    return (
        list(lab.hosts),
        lab.client.link,
        sum(not getattr(each, "closed", False) for each in lab._owned),
        open_files,
        threading.active_count(),
        children,
        programs,
    )


@pytest.mark.parametrize("case", CALLS, ids=lambda case: f"{case.name}({case.argument})")
def test_it_is_refused_with_its_name_and_value(lab: Lab, case: Call) -> None:
    gc.collect(0)
    before = there(lab)
    for value in case.values:
        with pytest.raises(InvalidValue) as caught:
            case.call(lab, value)
        said = str(caught.value)
        assert case.argument in said
        assert repr(value)[:60].strip("[]()") in said, (value, said)
    assert there(lab) == before
    assert lab.engine._ask_wire({"op": "rules"})["rules"] == {}


@pytest.mark.parametrize("value", NO_NUMBER[2:])
def test_a_clients_deadline_and_flags(lab: Lab, value: object) -> None:
    with HttpServer(lab.server) as server:
        for client in (TcpClient, TlsClient, QuicClient, EarlyDataClient):
            with pytest.raises(InvalidValue, match="timeout_s="):
                client(lab.client, server, timeout_s=value)  # type: ignore[arg-type]
            with pytest.raises(InvalidValue, match="server="):
                client(lab.client, value)  # type: ignore[arg-type]
        for wrong in (
            lambda: TcpClient(lab.client, server, fast_open="yes"),  # type: ignore[arg-type]
            lambda: TlsClient(lab.client, server, resume=1),  # type: ignore[arg-type]
            lambda: QuicClient(lab.client, server, early_data=None),  # type: ignore[arg-type]
            lambda: TcpClient(lab.client, server).fetch(5),  # type: ignore[arg-type]
            lambda: TcpClient(lab.client, server).fetch(body="text"),  # type: ignore[arg-type]
            lambda: QuicClient(lab.client, server).fetch(body="text"),  # type: ignore[arg-type]
        ):
            with pytest.raises(InvalidValue):
                wrong()


def test_programs_that_run(lab: Lab) -> None:
    with lab.client.start(["sleep", "60"]) as program:
        for timeout_s in NO_NUMBER:
            with pytest.raises(InvalidValue, match="timeout_s="):
                program.wait(timeout_s)
            with pytest.raises(InvalidValue, match="timeout_s="):
                program.close(timeout_s)
        for number in (None, "TERM", -1, 65, 1.5):
            with pytest.raises(InvalidValue, match="number="):
                program.send_signal(number)  # type: ignore[arg-type]


def test_captures(lab: Lab) -> None:
    with lab.capture() as capture, lab.client.socket() as sock:
        assert sock.connect_ex((lab.server.ip, 9))
    for hosts in NO_TEXTS:
        with pytest.raises(InvalidValue, match="hosts="):
            capture.ladder(hosts)
    for acks in NO_FLAG:
        with pytest.raises(InvalidValue, match="acks="):
            capture.ladder(acks=acks)  # type: ignore[arg-type]
    for path in NO_PATH:
        with pytest.raises(InvalidValue, match="path="):
            capture.save(path)


def test_an_unknown_option_is_told_with_those_that_there_are(lab: Lab) -> None:
    with pytest.raises(InvalidValue, match=r"foo=1: lab\.wire\.drop has source, .*, count"):
        lab.wire.drop(foo=1)
    with pytest.raises(InvalidValue, match=r"latency=5: a link has rtt_ms, .*queue_ms"):
        lab.set_link(latency=5)
    made = measure(lab_with_delay := Lab(rtt_ms=2), "tcp", runs=1)
    lab_with_delay.close()
    with pytest.raises(InvalidValue, match=r"foo=1: a ladder of one run has acks"):
        made.ladder(foo=1)


def test_a_host_of_another_lab(lab: Lab) -> None:
    with Lab(rtt_ms=0) as other:
        for call in (lambda: lab.capture(other.client), lambda: lab.watch(80, other.client)):
            with pytest.raises(InvalidValue, match=r"at=<Host client.lab.*a host of this lab, which has client"):
                call()


def test_a_long_value_is_cut() -> None:
    with pytest.raises(InvalidValue) as caught:
        checks.octets("stdin", "x" * 100_000)
    assert len(str(caught.value)) < 300


def test_numbers_that_no_float_holds() -> None:
    with pytest.raises(InvalidValue, match="rtt_ms=1000"):
        Link(rtt_ms=10**400)
    with pytest.raises(InvalidValue, match="x=1000"):
        checks.number("x", 10**400, 0)
    assert checks.number("x", 1.7e308, 0) == 1.7e308


def test_loopback_checks_before_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_TIER", "loopback")
    with Lab(rtt_ms=0) as low:
        with pytest.raises(InvalidValue, match="stdin='text'"):
            low.client.run(["true"], stdin="text")  # type: ignore[arg-type]
        with pytest.raises(NotAvailableHere):
            low.client.run(["true"])
        with pytest.raises(InvalidValue, match="foo=1"):
            low.wire.drop(foo=1)
        with pytest.raises(InvalidValue, match="family='x'"):
            low.client.socket("x")  # type: ignore[arg-type]
        low.client.socket(socket.AF_INET).close()
