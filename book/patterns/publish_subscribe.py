"""Judges the exercises of the section "Publish–subscribe", and makes its hidden trace."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from book import Blank, HiddenTrace, Text, Wrong
from book.learn.grading import describe
from book.learn.judging import Enough, in_time
from book.patterns.brokers import PREFETCH, Client, ConfirmServer, QueueServer, connector
from labkit.capture.captured import Captured
from labkit.errors import MeasurementFailed
from labkit.lab import Lab
from labkit.recorded import recall

TEXT = Text(__file__)

RTT_MS = 4
MOST_CONNECTIONS = 20


# Exercise 1


def _judge_queue(kind: Callable[[], Any]) -> str:
    random_ = random.Random()
    bodies = [random_.choice(["home", "away", "häuser", ""]) for _ in range(random_.randrange(9, 14))]
    with Lab(rtt_ms=RTT_MS) as lab, QueueServer(lab.server, kind()) as server, lab.client:
        try:
            return _judge_deliveries(server, bodies)
        except Wrong:
            raise
        except Exception as exc:
            if server.failed is None:
                raise
            raise Wrong(f"your Queue raised {describe(server.failed)}") from exc


def _judge_deliveries(server: QueueServer, bodies: list[str]) -> str:
    publisher, slow, killed = (Client(server, name) for name in ("publisher", "slow", "killed"))
    killed.ask("subscribe")
    for body in bodies:
        publisher.ask("publish", body=body)
    killed.ask("ping")
    slow.ask("subscribe")
    slow.ask("ping")
    given = [body for each in (killed, slow) for _, body, _ in each.deliveries]
    if given != bodies[: 2 * PREFETCH]:
        raise Wrong(f"published were {bodies}; two subscribers, {PREFETCH} each, were given {given}: oldest first")
    if any(flag is not False for each in (killed, slow) for _, _, flag in each.deliveries):
        raise Wrong("a message that nobody was given before was delivered as redelivered")
    first, *held = killed.deliveries
    if slow.ask("ack", tag=held[0][0]):
        raise Wrong("a subscriber acknowledged a message that another one holds, and your queue counted it")
    if not killed.ask("ack", tag=first[0]):
        raise Wrong("a subscriber acknowledged what it held, and ack returned nothing true")
    killed.ask("ping")
    held = killed.deliveries[1:]
    killed.die()
    if not in_time(lambda: "killed" in server.left, 10):
        raise MeasurementFailed("the broker did not see the end of a connection")
    # The slow one holds as many as it may, so what was returned waits for the next who comes.
    other = Client(server, "other")
    other.ask("subscribe")
    acked = [first[1]]
    place = 0
    while other.ask("ping") is None and place < len(other.deliveries):
        tag, body, _ = other.deliveries[place]
        place += 1
        if not other.ask("ack", tag=tag):
            raise Wrong("a subscriber acknowledged what it held, and ack returned nothing true")
        if other.ask("ack", tag=tag):
            raise Wrong("a message was acknowledged twice, and your queue counted both")
        acked.append(body)
        if place > 3 * len(bodies):
            raise Wrong(f"{len(bodies)} messages were published, and one subscriber was given {place}")
    _judge_redelivered(other, held)
    for tag, body, _ in slow.deliveries[:PREFETCH]:
        if not slow.ask("ack", tag=tag):
            raise Wrong("a slow subscriber, alive all the time, acknowledged what it held, and it did not count")
        acked.append(body)
    if sorted(acked) != sorted(bodies):
        raise Wrong(
            f"{len(bodies)} messages were published and {len(acked)} acknowledged, when nobody had one any more: "
            "some were lost, or came twice"
        )
    publisher.ask("publish", body="last")
    for each in (slow, other):
        each.ask("ping")
    after = [body for _, body, _ in [*slow.deliveries[PREFETCH:], *other.deliveries[place:]]]
    if after != ["last"]:
        raise Wrong(f"all was acknowledged, then one more was published, and {len(after)} came: {after}")
    return f"{len(bodies)} messages, {len(held)} of them redelivered: none lost, none acknowledged twice."


def _judge_redelivered(other: Client, held: list[tuple[Any, str, Any]]) -> None:
    flags = [flag for _, _, flag in other.deliveries]
    bodies = [body for _, body, _ in other.deliveries]
    if len(other.deliveries) < len(held):
        raise Wrong(
            f"a subscriber died with {len(held)} messages that it had not acknowledged, and the next one was given "
            f"{len(other.deliveries)} of them"
        )
    if bodies[: len(held)] != [body for _, body, _ in held]:
        raise Wrong("what a dead subscriber held is the oldest that there is, in its old order: deliver it first")
    if flags != [True] * len(held) + [False] * (len(flags) - len(held)):
        raise Wrong(
            f"redelivered were {len(held)} messages, and {sum(flag is True for flag in flags)} had the flag: who gets "
            "one has to know that somebody may have done the work"
        )


QUEUE = TEXT.exercise("queue", _judge_queue)


# Exercise 2


def _judge_confirms(publish: Callable[..., Any]) -> str:
    random_ = random.Random()
    window = random_.randrange(6, 10)
    bodies = [random_.choice(["goal", "", "corner ⚑"]) for _ in range(random_.randrange(50, 70))]
    cuts = [random_.randrange(20, 25), random_.randrange(42, 48)]
    refusals = {random_.randrange(3, 12), len(bodies) - 1}
    with Lab(rtt_ms=RTT_MS) as lab:
        with ConfirmServer(lab.server, window, cuts, refusals) as server:
            gave_up = ""
            try:
                publish(connector(lab.client, server, MOST_CONNECTIONS), bodies, window)
            except OSError as exc:
                gave_up = describe(exc)
            except Enough:
                pass
            confirmed = len(server.confirmed)
        if server.wrong:
            raise Wrong(server.wrong)
        if server.connections >= MOST_CONNECTIONS and confirmed < len(bodies):
            raise Wrong(f"{MOST_CONNECTIONS} connections, and {confirmed} of {len(bodies)} messages are confirmed")
        if gave_up:
            raise Wrong(f"a connection ended, and your publisher gave up ({gave_up}): connect again")
        if confirmed < len(bodies):
            raise Wrong(f"your publisher returned when {confirmed} of {len(bodies)} messages were confirmed")
        if [server.stored.get(number) for number in range(len(bodies))] != bodies:
            raise Wrong("the ids are the places of the bodies in the list, from 0: the broker has others")
        again = sum(server.sent.values()) - len(bodies)
        if again > len(cuts) * window + len(refusals):
            raise Wrong(
                f"{again} messages were sent again after {len(cuts)} cuts and {len(refusals)} refusals: at most "
                f"{window} were unconfirmed at each cut"
            )
        if server.most < 3:
            raise Wrong(f"at most {server.most} waited for a confirm: yours waits a round trip for each message")
    return f"{len(bodies)} messages, {again} of them sent again after {len(cuts)} cuts: all confirmed."


CONFIRMS = TEXT.exercise("confirms", _judge_confirms)

EXERCISES = (QUEUE, CONFIRMS)

QUIZ = TEXT.quiz


def hidden_trace(lab: Lab, capture: Captured | None = None) -> HiddenTrace:
    """One message from its publisher to its subscriber through RabbitMQ, with three blanks.

    Args:
        lab: of the notebook.
        capture: of that message; by default the recorded one, because a broker takes seconds to start.
    """
    if capture is None:
        capture = recall("patterns.publish_subscribe/one_message", tier=lab.tier)
    return TEXT.trace(
        capture.messages,
        [
            Blank("Confirm.Select", "from", "who asks for confirms?"),
            Blank("Basic.Publish", "what", "how does AMQP name the method that hands a message to an exchange?"),
            Blank("Basic.Deliver", "from", "a subscriber has asked once, with Basic.Consume. Who speaks now?"),
        ],
        tier=capture.tier,
    )
