"""A verdict on what a learner wrote, within a deadline, whatever it does.

The learner's function is judged in a process of its own: an endless loop, a server that never answers or a crash ends
with that process, and not with the notebook. ``cloudpickle`` takes the function there, because it was defined in a
cell and no module could be imported to find it.

::

    notebook ──(judge, answer)──▶ python -m book.learn.judge ──verdict──▶ notebook

The process ends at the deadline by its own alarm, which knows the line the code was in; if that does not help, it
is killed. The kernel then ends the lab that it may have opened. The deadline's clock stands still while the process
waits for a CPU, so that a busy machine makes no answer wrong.
"""

from __future__ import annotations

import contextlib
import html
import json
import linecache
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from labkit.errors import InvalidValue, LabUnavailable, MeasurementFailed, NotAvailableHere, NotReady
from labkit.network.environment import COLOURED
from labkit.queues.run_queue import threads_of

Outcome = Literal["right", "wrong", "could not be judged", "not attempted", "not available here"]
SYMBOLS: dict[Outcome, str] = {
    "right": "✓",
    "wrong": "✗",
    "could not be judged": "?",
    "not attempted": "○",
    "not available here": "–",
}
COLOURS: dict[Outcome, str] = {"right": "#009e73", "wrong": "#d55e00"}
GRACE_S = 3.0  # for the process to start and to end by itself
PATIENCE = 6  # so many times its deadline a process gets at most, however long it waits for a CPU
LOOK_S = 0.25  # between two looks at whether it is overdue
MOST_PRINTED = 2000


class Wrong(Exception):
    """Raised by a judge: the answer is wrong, and why, in words for the learner."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a check.

    Attributes:
        outcome: "right", "wrong" or "not attempted"; "could not be judged": the machine was too busy, or the check
            has a fault, which says nothing about the answer; "not available here": this machine's tier cannot judge it.
        reason: for the learner: why it is wrong, what was seen, what to do next.
        printed: what the learner's code printed while it was judged.
    """

    outcome: Outcome
    reason: str
    printed: str = ""

    def __bool__(self) -> bool:
        return self.outcome == "right"

    def __repr__(self) -> str:
        text = f"{SYMBOLS[self.outcome]} {self.outcome}: {self.reason}"
        return text + (f"\nIt printed:\n{self.printed}" if self.printed else "")

    def _repr_html_(self) -> str:
        colour = COLOURS.get(self.outcome, "#6b6b6b")
        printed = f"<p>It printed:</p><pre>{html.escape(self.printed)}</pre>" if self.printed else ""
        return (
            f"<div style='border-left:4px solid {colour};padding:0.2em 0.8em'><b style='color:{colour}'>"
            f"{SYMBOLS[self.outcome]} {self.outcome}</b><br>{html.escape(self.reason)}{printed}</div>"
        )


def judge_here(judge: Callable[[Any], str | None], answer: Any) -> Verdict:
    """Judge an answer that is no code: a number, a capture, the blanks of a trace.

    Args:
        judge: raises Wrong; what it returns is said to who is right.
        answer: the learner's.
    """
    try:
        said = judge(answer)
    except Wrong as exc:
        return Verdict("wrong", str(exc))
    except Exception as exc:
        return Verdict(*not_judged(exc))
    return Verdict("right", said or "")


def not_judged(exc: BaseException) -> tuple[Outcome, str]:
    """Outcome and reason where a judge has ended with an exception that says nothing about the answer."""
    if isinstance(exc, (LabUnavailable, NotAvailableHere)):
        return "not available here", f"it cannot be judged here: {exc}"
    if isinstance(exc, (MeasurementFailed, NotReady)):
        return "could not be judged", f"{exc}. That says nothing about your answer: run the cell again"
    return (
        "could not be judged",
        f"the check itself failed, {describe(exc)}, which says nothing about your answer. Run the cell again; where it "
        "stays so, the check did not expect an answer of this kind",
    )


def describe(exc: BaseException) -> str:
    """An exception in one line."""
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


def held_up_s(pid: int) -> float:
    """How long the most delayed thread of a process has waited for a CPU, seconds; 0 where the system does not tell."""
    try:
        return max((times.waiting_s for times in threads_of([pid]).values()), default=0.0)
    except NotAvailableHere:
        return 0.0


class Deadline:
    """How long a process may take; the time that it waits for a CPU is not counted.

    Args:
        seconds: from now on.
        pid: of the process, as this one sees it.
    """

    def __init__(self, seconds: float, pid: int) -> None:
        self.seconds, self.pid = seconds, pid
        self._began_s, self._held_up_s = time.monotonic(), held_up_s(pid)

    def overdue(self) -> Verdict | None:
        """What to say of a process that has not ended yet; None while it has time."""
        passed_s = time.monotonic() - self._began_s
        waited_s = held_up_s(self.pid) - self._held_up_s
        if passed_s - waited_s >= self.seconds:
            return Verdict("wrong", f"it did not end within {self.seconds:g} s")
        if passed_s >= PATIENCE * self.seconds:
            return Verdict(
                "could not be judged",
                f"of {passed_s:.0f} s it waited {waited_s:.0f} s for a CPU, because something else keeps this machine "
                "busy. That says nothing about your answer: end the other work and run the cell again",
            )
        return None


def judge_apart(judge: Callable[[Any], str | None], answer: Any, deadline_s: float) -> Verdict:
    """Judge a function in a process of its own.

    Args:
        judge: a function of a module, as in ``judge_here``; it opens the labs that it needs.
        answer: the learner's function.
        deadline_s: seconds that it may take, labs included.
    """
    import cloudpickle

    try:
        parcel = cloudpickle.dumps((judge, answer, deadline_s))
    except Exception as exc:
        return Verdict("wrong", _cannot_travel(answer, exc))
    read, write = os.pipe()
    # Standard output is a pipe of its own: a print of the learner must not be taken for the verdict.
    command = [sys.executable, "-m", "book.learn.judge", str(write)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={name: value for name, value in os.environ.items() if name not in COLOURED},
        pass_fds=[write],
        start_new_session=True,
    )
    os.close(write)
    assert process.stdin is not None
    assert process.stdout is not None
    printed = bytearray()
    collector = threading.Thread(target=_collect, args=(process.stdout.fileno(), printed), daemon=True)
    collector.start()
    try:
        with open(read, "rb") as verdicts:
            with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(parcel)
            told, late = _read_until(verdicts.fileno(), Deadline(deadline_s + GRACE_S, process.pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        collector.join()
        process.stdout.close()
    text = printed[:MOST_PRINTED].decode("utf-8", "replace").rstrip()
    if late is not None and late.outcome == "wrong":
        return Verdict("wrong", f"it did not end within {deadline_s:g} s: is there a loop without an end?", text)
    if late is not None:
        return replace(late, printed=text)
    if not told:
        return Verdict("wrong", "its process ended without a verdict: does it call exit?", text)
    verdict = json.loads(told)
    return Verdict(verdict["outcome"], verdict["reason"] + _line(verdict), text)


def _collect(descriptor: int, into: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(descriptor, 65536):
            if len(into) < MOST_PRINTED:
                into += data


def _read_until(descriptor: int, deadline: Deadline) -> tuple[bytes, Verdict | None]:
    """What a process tells before it ends, or that it is overdue."""
    told = b""
    while not told.endswith(b"\n"):
        if select.select([descriptor], [], [], LOOK_S)[0]:
            data = os.read(descriptor, 65536)
            if not data:
                break
            told += data
        elif (late := deadline.overdue()) is not None:
            return b"", late
    return told, None


def _line(verdict: dict[str, Any]) -> str:
    """The line of the learner's code that a verdict is about; the cell's text is known here only."""
    if "line" not in verdict:
        return ""
    source = linecache.getline(verdict["file"], verdict["line"]).strip()
    return f" (line {verdict['line']} of the cell{': ' + source if source else ''})"


def _cannot_travel(answer: Any, exc: Exception) -> str:
    """Name the variable of the notebook that a function cannot take along."""
    import cloudpickle

    known = getattr(answer, "__globals__", {})
    names = [name for name in getattr(getattr(answer, "__code__", None), "co_names", ()) if name in known]
    for name in names:
        try:
            cloudpickle.dumps(known[name])
        except Exception:
            return (
                f"your code uses {name!r} of this notebook, which cannot go where it is judged, a process of its own: "
                "use the arguments, and what the function makes itself"
            )
    return f"your code cannot be taken to where it is judged ({exc}): use only the arguments and imports"


def check_deadline(deadline_s: float) -> float:
    """Raises InvalidValue for what is no deadline."""
    if isinstance(deadline_s, bool) or not isinstance(deadline_s, (int, float)) or not 0 < deadline_s <= 60:
        raise InvalidValue(f"deadline_s={deadline_s!r}: a number of seconds above 0, 60 at most")
    return float(deadline_s)
