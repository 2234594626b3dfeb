"""Traces with blanks, made from a live capture; quizzes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from book import Blank, HiddenTrace, Option, Question, Quiz, progress
from labkit import Lab
from labkit.capture.messages import Dissected
from labkit.errors import InvalidValue
from labkit.handshakes import measure


@pytest.fixture(scope="module")
def packets() -> tuple[Dissected, ...]:
    with Lab(rtt_ms=10) as lab:
        return measure(lab, "tls1.3", runs=1).runs[0].timeline.packets


@pytest.fixture
def trace(packets: tuple[Dissected, ...]) -> Iterator[HiddenTrace]:
    blanks = [
        Blank("SYN-ACK", "from", "who answers a SYN?"),
        Blank("ClientHello", "round trip", "after the handshake of TCP"),
        Blank("ClientHello", "seq", "the SYN took number 0"),
        Blank("CertificateVerify", "what", "a signature with the certificate's key"),
        Blank("GET /", "round trip", "it leaves with Finished"),
    ]
    yield HiddenTrace("t.s.trace", packets, blanks, hints=("Look.", "Look again."), explanation="So it is.")
    progress().clear()


ANSWERS = {1: "server", 2: 2, 3: 1, 4: "CertificateVerify", 5: 3}


def test_the_blanks_hide_what_they_name(trace: HiddenTrace) -> None:
    assert trace.answers == ANSWERS
    text = repr(trace)
    assert "CertificateVerify" not in text
    assert [f"({number}) ____" in text for number in ANSWERS] == [True] * 5
    page = trace._repr_html_()
    table = page.partition("</table>")[0]
    assert "CertificateVerify" not in table
    assert "Finished" in table
    assert trace.solution == f"answers = {ANSWERS!r}"
    assert trace.solution.split(" = ")[0] in page


def test_filling_in(trace: HiddenTrace) -> None:
    for nothing in ({}, {1: None, 2: ...}, {1: ""}):
        assert trace.check(nothing).outcome == "not attempted"
    assert repr(trace.check({1: "server"})) == "✗ wrong: right so far; still open: 2, 3, 4, 5"
    assert not progress().is_solved("t.s.trace")
    assert trace.check(ANSWERS).outcome == "right"
    assert progress().is_solved("t.s.trace")
    assert trace.check({**ANSWERS, 1: " Server", 2: "2", 4: "certificate verify"}).outcome == "right"


@pytest.mark.parametrize(
    ("number", "value", "why"),
    [(1, "client", "who answers a SYN"), (2, 1, "after the handshake"), (3, 0, "number 0"), (4, "Certificate", "key")],
)
def test_a_wrong_blank_tells_why_and_not_what(trace: HiddenTrace, number: int, value: Any, why: str) -> None:
    verdict = trace.check({**ANSWERS, number: value})
    assert verdict.outcome == "wrong"
    assert f"blank {number} is not {value!r}" in verdict.reason
    assert why in verdict.reason
    assert str(ANSWERS[number]) not in verdict.reason.replace(f"blank {number}", "")


def test_answers_that_are_none(trace: HiddenTrace) -> None:
    assert "give a dictionary" in trace.check(["server"]).reason
    assert "numbered from 1 to 5" in trace.check({7: "server"}).reason


def test_a_blank_in_no_packet(packets: tuple[Dissected, ...]) -> None:
    blank = Blank("ServerKeyExchange", "what", "")
    with pytest.raises(InvalidValue, match="no packet carries 'ServerKeyExchange'"):
        HiddenTrace("t.s.x", packets, [blank], hints=("a", "b"), explanation="")


@pytest.fixture
def quiz() -> Quiz:
    return Quiz(Question("Which?", (Option("<this>", "It is not."), Option("that", "It is.", right=True))))


def test_a_reply_to_every_option(quiz: Quiz) -> None:
    assert quiz.answer(1, "a") == "No. It is not."
    assert quiz.answer(1, "b") == "Right. It is."
    for number, letter in ((0, "a"), (2, "a"), (1, "c"), (1, ""), (1, "ab")):
        with pytest.raises(InvalidValue):
            quiz.answer(number, letter)
    page = quiz._repr_html_()
    assert page.count("<details") == 2
    assert "&lt;this&gt;" in page
    assert "a) <this>" in repr(quiz)


@pytest.mark.parametrize("rights", [(False, False), (True, True), (True,)])
def test_questions_without_one_right_option(rights: tuple[bool, ...]) -> None:
    with pytest.raises(InvalidValue, match="of them right: one must be"):
        Question("Which?", tuple(Option("o", "r", right=right) for right in rights))
