"""A partly hidden packet trace: a live capture as a table with numbered blanks, for the learner to fill in."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from book.learn.exercise import folded
from book.learn.grading import Verdict
from book.learn.progress import progress
from labkit.capture.messages import Dissected
from labkit.errors import InvalidValue
from labkit.handshakes.phases import steps
from labkit.network.tiers import origin

Column = Literal["round trip", "from", "seq", "what"]
COLUMNS: tuple[Column, ...] = ("round trip", "from", "seq", "what")
HEADINGS = ("no.", *COLUMNS, "payload")


@dataclass(frozen=True)
class Blank:
    """One thing to hide.

    Attributes:
        carries: the message by which its packet is found, such as "ServerHello" or "SYN": the first packet whose
            text has it.
        column: what to hide of that packet: in which round trip it is sent (1 for the first), who sends it, its
            sequence number (relative to that side's first), or, in "what", the message `carries` itself.
        why: said to who fills it in wrong; it does not give the answer away.
    """

    carries: str
    column: Column
    why: str


class HiddenTrace:
    """A captured connection with blanks.

    Args:
        id: "https.tls12.trace": the section's id and a name.
        packets: of one connection, from ``capture.messages`` or a timeline. Bare acknowledgments are left out, but for
            the third step of TCP's handshake.
        blanks: what to hide, numbered from 1.
        hints: two or more.
        explanation: why the blanks are what they are.
        tier: of the capture, where it may be a recorded one; it is shown below the trace.

    Raises:
        InvalidValue: no packet carries what a blank names.
    """

    def __init__(
        self,
        id: str,
        packets: Sequence[Dissected],
        blanks: Sequence[Blank],
        *,
        hints: tuple[str, ...],
        explanation: str,
        tier: str = "",
    ) -> None:
        self.id = id
        self.origin = origin(tier) if tier else ""
        self.blanks = tuple(blanks)
        self.hints = hints
        self.explanation = explanation
        self.answers: dict[int, int | str] = {}
        shown = _worth_showing(packets)
        self._rows = [_row(number, packet, step) for number, (packet, step) in enumerate(shown, 1)]
        _make_relative(self._rows, [packet for packet, _ in shown])
        for number, blank in enumerate(self.blanks, 1):
            row = next(
                (row for row in self._rows if blank.carries in row["what"] or blank.carries in row["hidden"]), None
            )
            if row is None:
                raise InvalidValue(
                    f"blank {number} of {id!r}: no packet carries {blank.carries!r}, look at the capture"
                )
            if blank.column == "what":
                self.answers[number] = blank.carries
                row["what"] = row["what"].replace(blank.carries, f"({number}) ____", 1)
                row["hidden"].append(blank.carries)
            else:
                self.answers[number] = row[blank.column]
                row["blank"][blank.column] = f"({number}) ____"

    def check(self, answers: Any) -> Verdict:
        """Compare the blanks.

        Args:
            answers: number of the blank → what belongs there.
        """
        if not isinstance(answers, dict):
            return Verdict("wrong", f"{answers!r}: give a dictionary, number of the blank → what belongs there")
        given = {number: value for number, value in answers.items() if value not in (None, ..., "")}
        if not given:
            return Verdict("not attempted", f"fill in the blanks, for instance answers[1] = {_example(self.blanks[0])}")
        strange = sorted(set(given) - set(self.answers), key=str)
        if strange:
            return Verdict("wrong", f"blank {strange[0]!r}: the blanks are numbered from 1 to {len(self.blanks)}")
        for number, blank in enumerate(self.blanks, 1):
            if number in given and _plain(given[number]) != _plain(self.answers[number]):
                return Verdict("wrong", f"blank {number} is not {given[number]!r}: {blank.why}")
        open_blanks = [str(number) for number in self.answers if number not in given]
        if open_blanks:
            return Verdict("wrong", f"right so far; still open: {', '.join(open_blanks)}")
        progress().solve(self.id)
        return Verdict("right", self.explanation)

    def hint(self, number: int = 1) -> str:
        """A hint. Raises InvalidValue for one that is not there."""
        if not isinstance(number, int) or not 1 <= number <= len(self.hints):
            raise InvalidValue(f"hint({number!r}): there are {len(self.hints)}, counted from 1")
        return self.hints[number - 1]

    @property
    def solution(self) -> str:
        """The blanks filled in, as a cell."""
        return f"answers = {self.answers!r}"

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (str(row["no."]), *(str(row["blank"].get(column, row[column])) for column in COLUMNS), str(row["payload"]))
            for row in self._rows
        ]

    def __repr__(self) -> str:
        lines = [HEADINGS, *self._cells()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
        table = "\n".join(
            "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        )
        return f"{table}\n{self.origin}".rstrip()

    def _repr_html_(self) -> str:
        rows = [("th", HEADINGS), *(("td", cells) for cells in self._cells())]
        body = "".join(
            "<tr>" + "".join(f"<{tag} style='text-align:left'>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
            for tag, cells in rows
        )
        note = f"<p><small>{html.escape(self.origin)}</small></p>" if self.origin else ""
        return f"<table>{body}</table>{note}" + folded(self.hints, self.solution, self.explanation)


def _worth_showing(packets: Sequence[Dissected]) -> list[tuple[Dissected, int]]:
    """The packets with something to say, each with its step."""
    shown: list[tuple[Dissected, int]] = []
    for packet, step in zip(packets, steps(packets), strict=True):
        opens = bool(shown) and {"SYN", "ACK"} <= shown[-1][0].flags
        if packet.payload or not packet.bare_ack or (opens and packet.from_client):
            shown.append((packet, step))
    return shown


def _row(number: int, packet: Dissected, step: int) -> dict[str, Any]:
    header = packet.headers.tcp
    return {
        "no.": number,
        "round trip": (step + 1) // 2,
        "from": "client" if packet.from_client else "server",
        "seq": "" if header is None else header.seq,
        "what": packet.what,
        "payload": packet.payload,
        "hidden": [],
        "blank": {},
    }


def _make_relative(rows: list[dict[str, Any]], packets: Sequence[Dissected]) -> None:
    """Sequence numbers counted from each side's first, as Wireshark shows them."""
    first: dict[bool, int] = {}
    for row, packet in zip(rows, packets, strict=True):
        if row["seq"] != "":
            row["seq"] = (row["seq"] - first.setdefault(packet.from_client, row["seq"])) % 2**32


def _plain(value: Any) -> str:
    return str(value).strip().lower().replace("-", "").replace(" ", "")


def _example(blank: Blank) -> str:
    return {"round trip": "2", "from": '"client"', "seq": "1", "what": '"Finished"'}[blank.column]
