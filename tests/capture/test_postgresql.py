"""PostgreSQL's messages: by bytes, and as tshark names them in what real clients say to a real server."""

from __future__ import annotations

import asyncio
import ssl
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
from dialogues import labels, read
from parts import from_packet
from terminator import tls_in_front
from work import check_work

from labkit import Captured, Lab
from labkit.services import PostgreSQL

# Not every type has the same words there.
TSHARK = {
    "SSL request": "SSLRequest", "Startup message": "StartupMessage", "Authentication request": "Authentication",
    "Parameter status": "ParameterStatus", "Backend key data": "BackendKeyData", "Ready for query": "ReadyForQuery",
    "Simple query": "Query", "Parse completion": "ParseComplete", "Parameter description": "ParameterDescription",
    "Row description": "RowDescription", "Bind completion": "BindComplete", "Data row": "DataRow",
    "Command completion": "CommandComplete", "Error": "ErrorResponse", "Notice": "NoticeResponse",
    "Termination": "Terminate", "CopyIn response": "CopyInResponse", "CopyOut response": "CopyOutResponse",
    "Copy data": "CopyData", "Copy completion": "CopyDone", "Close completion": "CloseComplete",
    "Cancel request": "CancelRequest", "No data": "NoData", "Portal suspended": "PortalSuspended",
    "Notification": "NotificationResponse",
}  # fmt: skip
PSYCOPG = """
import psycopg, sys
with psycopg.connect(sys.argv[1]) as connection, connection.cursor() as cursor:
    cursor.execute("create table lines (number int, words text)")
    with cursor.copy("copy lines from stdin") as copy:
        for number in range(300):
            copy.write_row((number, "word " * 20))
    with cursor.copy("copy lines to stdout") as copy:
        assert sum(1 for row in copy) == 300
    assert len(cursor.execute("select * from lines where number > %s", (1,)).fetchall()) == 298
    cursor.execute("do $$ begin raise notice 'look here'; end $$")
    try:
        cursor.execute("select nothing")
    except psycopg.errors.UndefinedColumn:
        connection.rollback()
"""


async def with_asyncpg(url: str, context: ssl.SSLContext | str) -> None:
    connection = await asyncpg.connect(url, ssl=context)
    rows = await connection.fetch("select n, 'x' || n as word from generate_series(1, 3) n where n > $1", 1)
    assert [row["word"] for row in rows] == ["x2", "x3"]
    with pytest.raises(asyncpg.UndefinedTableError):
        await connection.fetch("select * from nowhere")
    async with connection.transaction():
        await connection.execute("select 1; select 2")
        async for _ in connection.cursor("select generate_series(1, 120)"):
            pass
    await connection.close()


async def behind_tls(lab: Lab) -> None:
    """asyncpg asks for TLS: a terminator in front of the server, whose own build has none, says yes."""
    async with tls_in_front(lab, 5433, 5432, "postgresql", asked=8):
        with lab.client:
            url = "postgresql://postgres@server.lab:5433/postgres"
            await with_asyncpg(url, lab.authority.client_context(alpn=["postgresql"]))


@pytest.fixture(scope="module")
def captured() -> Iterator[dict[str, Captured]]:
    """What asyncpg, in the clear and by TLS, and psycopg say to PostgreSQL."""
    made: dict[str, Captured] = {}
    with Lab(rtt_ms=2) as lab, PostgreSQL(lab.server) as database:
        with lab.capture() as made["asyncpg"], lab.client:
            asyncio.run(with_asyncpg(database.url, "prefer"))
        with lab.capture() as made["asyncpg, TLS"]:
            asyncio.run(behind_tls(lab))
        with lab.capture() as made["psycopg"]:
            lab.client.run([sys.executable, "-c", PSYCOPG, f"{database.url}?sslmode=disable"]).check()
        yield made


def named(capture: Captured) -> list[tuple[int, str]]:
    """Each message once, with the number of the packet in which it ends: there Wireshark names it."""
    return [
        (packet.index + 1, message.name)
        for packet in capture.messages
        for message in packet.messages
        if message.protocol == "PostgreSQL" and message.last == packet.index
    ]


@pytest.mark.parametrize("name", ["asyncpg", "asyncpg, TLS", "psycopg"])
def test_tshark_sees_the_same_messages(
    captured: dict[str, Captured], require_program: Callable[[str], str], tmp_path: Path, name: str
) -> None:
    file = captured[name].save(tmp_path / "x.pcapng")
    words = [
        require_program("tshark"),
        "-r",
        str(file),
        "-d",
        "tcp.port==5433,pgsql",
        "-Y",
        "pgsql",
        "-T",
        "fields",
        "-E",
        "aggregator=~",
    ]
    words += ["-e", "frame.number", "-e", "pgsql.type", "-e", "pgsql.query", "-e", "pgsql.tag", "-e", "pgsql.code"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    theirs = [line.split("\t") for line in done.stdout.splitlines()]
    seen = [(int(number), TSHARK.get(kind, kind)) for number, kinds, *_ in theirs for kind in kinds.split("~") if kind]
    # tshark gives all authentication requests one name, and the server's answer about TLS none.
    ours = [
        (number, "Authentication" if each.startswith("Authentication") else each)
        for number, each in named(captured[name])
        if each != "SSLResponse"
    ]
    assert ours == seen
    assert len(ours) > 30
    found = [m for p in captured[name].messages for m in p.messages if m.last == p.index]
    asked = [m.start_line for m in found if m.name in ("Query", "Parse")]
    assert asked == [query for _, _, queries, *_ in theirs for query in queries.split("~") if query]
    done_ = [m.detail for m in found if m.name == "CommandComplete"]
    assert done_ == [tag for *_, tags, _ in theirs for tag in tags.split("~") if tag]
    codes = [m.detail.split()[1] for m in found if m.name in ("ErrorResponse", "NoticeResponse")]
    assert codes == [code for *_, codes in theirs for code in codes.split("~") if code]


def test_under_tls_it_is_the_same_conversation(captured: dict[str, Captured]) -> None:
    clear, hidden = ([name for _, name in named(captured[name])] for name in ("asyncpg", "asyncpg, TLS"))
    assert hidden[:2] == ["SSLRequest", "SSLResponse"]
    assert hidden == clear
    levels = {m.level for p in captured["asyncpg, TLS"].messages for m in p.messages if m.name == "Parse"}
    assert levels == {"application"}


@pytest.mark.parametrize("name", ["asyncpg", "psycopg"])
def test_from_the_middle_on(captured: dict[str, Captured], name: str) -> None:
    """A capture that begins with any request names it, and all that follows, as the whole one does."""
    whole = captured[name]
    asking = [p for p in whole.messages if any(m.name in ("Query", "Parse") and m.first == p.index for m in p.messages)]
    assert len(asking) > 4
    for begin in asking:
        part = from_packet(whole, begin.index)
        assert [each for _, each in named(part)] == [each for number, each in named(whole) if number > begin.index]


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!I", 4 + len(body)) + body


def test_what_is_said_of_a_message() -> None:
    startup = b"user\0alice\0database\0shop\0\0"
    client = struct.pack("!II", 8 + len(startup), 3 << 16) + startup + message(b"Q", b"select\n  1\0")
    server = message(b"R", struct.pack("!I", 10) + b"SCRAM-SHA-256\0\0") + message(b"Z", b"E")
    server += message(b"E", b"SERROR\0C42P01\0Mno\x1b[1m such table\0\0") + message(b"D", b"\0\0") * 3
    named_ = read((">", client), ("<", server), (">", message(b"p", b"x") + message(b"X")))
    assert labels(named_) == [
        "> StartupMessage: user alice, database shop",
        "> Query: select 1",
        "> SASLInitialResponse",
        "> Terminate",
        "< AuthenticationSASL",
        "< ReadyForQuery: in a failed transaction",
        "< ErrorResponse: ERROR 42P01 no?[1m such table",
        *["< DataRow"] * 3,
    ]
    assert [found.role for _, found in named_][:3] == ["control", "request", "control"]


def test_a_long_statement_is_shortened_and_kept() -> None:
    sql = "select " + ", ".join(f"column_{n}" for n in range(200))
    ((_, found),) = read((">", message(b"Q", sql.encode() + b"\0")), port=5432)
    assert found.start_line == sql
    assert len(found.label) < 80 and found.label.endswith("…")


def test_other_requests_that_have_no_type() -> None:
    for code, name in ((80877104, "GSSENCRequest"), (80877102, "CancelRequest")):
        body = struct.pack("!II", 16, code) + bytes(8) if name == "CancelRequest" else struct.pack("!II", 8, code)
        named_ = read((">", body), ("<", b"N"))
        assert labels(named_)[0] == f"> {name}"
    assert labels(named_) == ["> CancelRequest", "< data"]


def test_messages_over_many_segments_and_cut_ones() -> None:
    row = message(b"D", bytes(5000))
    parts = [row[at : at + 1000] for at in range(0, len(row), 1000)]
    assert labels(read(*(("<", part) for part in parts), port=5432)) == ["< DataRow"]
    ready, again = message(b"Z", b"I"), message(b"Z", b"T")
    found = read(("<", ready + parts[0]), ("<", None), ("<", parts[2]), ("<", again), port=5432)
    assert [(f.name, f.detail) for _, f in found] == [
        ("ReadyForQuery", "idle"),
        ("DataRow", f"1000 of {len(row)} bytes"),
        ("data", "1000 bytes"),
        ("ReadyForQuery", "in a transaction"),
    ]


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"Q\0\0\0\3", b"Z\0\0\0\6II", b"Sync", b"\0\0\0\x08\x04\xd2\x16\x31", bytes(40)]
)
def test_what_is_something_else(data: bytes) -> None:
    assert {found.protocol for _, found in read((">", data), port=5432)} <= {"DATA", "HTTP"}


READY = message(b"Z", b"I")
ENDLESS: dict[str, Callable[[int], list[tuple[str, bytes | None]]]] = {
    "rows": lambda n: [("<", READY), *(("<", message(b"D", bytes(10)) * 20) for _ in range(n))],
    "a row without an end": lambda n: [("<", READY), ("<", b"D\0\x0f\xff\xff"), *(("<", b"x") for _ in range(n))],
    "no message in any segment": lambda n: [
        ("<", READY), ("<", None), *(("<", b"n\0\0\0\4" * 205 + b"\xff" * 9) for _ in range(n)),
    ],
    "statements": lambda n: [(">", message(b"Q", b"select 1, " * 100 + b"\0") * n)],
}  # fmt: skip


@pytest.mark.alone
@pytest.mark.parametrize("kind", ENDLESS)
def test_the_work_for_a_byte_stays_the_same(kind: str) -> None:
    few, many = ENDLESS[kind](15), ENDLESS[kind](120)
    check_work(lambda: read(*few), lambda: read(*many))
