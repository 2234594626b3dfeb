"""Experiments with the real RabbitMQ: live where it is installed, else as they were recorded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import aio_pika
from aio_pika.abc import AbstractConnection, AbstractQueue

from book.learn.live import key_of
from labkit.lab import Lab
from labkit.recorded import keep, recall, recording_to
from labkit.services import RabbitMQ

PATIENCE_S = 20
START_S = 120  # on a machine where others start brokers, too
# A broker that is killed is part of the lesson: the client's account of it is no news, and belongs into no cell.
logging.getLogger("aiormq").setLevel(logging.CRITICAL + 1)


def started(lab: Lab) -> RabbitMQ | None:
    """RabbitMQ on the lab's server, which gets ready in the background; None where it is not installed."""
    return RabbitMQ(lab.server, background=True, timeout_s=START_S) if RabbitMQ.available() else None


def where_it_is(rabbit: RabbitMQ | None) -> str:
    """What the reader has to know of it, as a line."""
    if rabbit is not None:
        return "RabbitMQ starts on server.lab while you read on"
    return f"RabbitMQ is not installed here. What needs it shows a recorded run. To bring it: {RabbitMQ.install}"


async def live_or_recorded(
    lab: Lab, rabbit: RabbitMQ | None, experiment: Callable[..., Awaitable[Any]], *args: Any
) -> Any:
    """Run an experiment of a notebook with RabbitMQ, or give the result that was recorded.

    Args:
        lab: with the name of its section.
        rabbit: None where it is not installed.
        experiment: an async function; what it returns can be recorded.
        args: for the experiment: numbers and texts.
    """
    key = key_of(experiment, lab, args)
    if rabbit is None:
        return recall(key, tier=lab.tier)
    value = await experiment(*args)
    if (folder := recording_to()) is not None:
        keep(key, value, folder)
    return value


async def bodies_of(queue: AbstractQueue) -> list[str]:
    """The messages that wait in a queue, taken out of it."""
    bodies = []
    while (message := await queue.get(no_ack=True, fail=False)) is not None:
        bodies.append(message.body.decode())
    return bodies


async def left_in(connection: AbstractConnection, name: str) -> list[str]:
    """The same by its name: nothing, where the queue itself is gone. By a consumer, which is quicker for many."""
    channel, bodies = await connection.channel(), list[str]()
    try:
        queue = await channel.get_queue(name, ensure=True)
    except aio_pika.exceptions.ChannelNotFoundEntity:
        return bodies
    waiting = queue.declaration_result.message_count or 0
    if waiting:
        async with asyncio.timeout(PATIENCE_S), queue.iterator(no_ack=True) as messages:
            async for message in messages:
                bodies.append(message.body.decode())
                if len(bodies) == waiting:
                    break
    return bodies
