"""RabbitMQ, PostgreSQL and Envoy end with the notebook's process, however it ends."""

from __future__ import annotations

import contextlib
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from processes import ORDINARY

Start = Callable[..., "subprocess.Popen[str]"]
Until = Callable[..., None]

ALL_OF_THEM = """
import asyncio, sys
import aio_pika, asyncpg
from labkit import Lab
from labkit.services import Envoy, PostgreSQL, RabbitMQ

async def ask(url):
    connection = await asyncpg.connect(url, timeout=20)
    assert await connection.fetchval("select 6 * 7") == 42
    await connection.close()

async def post(url):
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("post")
        await channel.default_exchange.publish(aio_pika.Message(b"hello"), routing_key="post")
        assert (await queue.get(timeout=20)).body == b"hello"

lab = Lab(rtt_ms=0)
broker, database = RabbitMQ(lab.server, background=True), PostgreSQL(lab.server, background=True)
services = [Envoy(lab.server), database.ready(), broker.ready() if sys.argv[1] == "running" else broker]
with lab.client:
    asyncio.run(ask(database.url))
    if sys.argv[1] == "running":
        asyncio.run(post(broker.url))
print(lab.tier, lab.directory, flush=True)
sys.stdin.read()
"""
LANES = {
    "this user": ((), "starting"),
    "an ordinary user": (ORDINARY, "running"),
    "loopback": ((*ORDINARY, "env", "LABKIT_TIER=loopback"), "running"),
}


@pytest.mark.parametrize("lane", LANES)
def test_a_killed_notebook_leaves_nothing_of_its_services(
    python: Start, until: Until, require_program: Callable[[str], str], lane: str
) -> None:
    require_program("rabbitmq-server")
    prefix, broker = LANES[lane]
    process = python(ALL_OF_THEM, broker, prefix=prefix)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()
    *tier, directory = line.split()
    assert (tier == ["loopback"]) == (lane == "loopback")

    def names() -> Counter[str]:
        found: Counter[str] = Counter()
        for each in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found[each.name()] += 1
        return found

    until(lambda: names()["beam.smp"])
    assert names()["epmd"] == names()["envoy"] == 1
    assert names()["postgres"] > 5
    running = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    _, left = psutil.wait_procs(running, timeout=10)
    assert left == []
    until(lambda: not Path(directory).exists())
