"""The process in which a learner's function is judged. Started by ``grading.judge_apart``, never by hand.

Standard input brings the judge, the function and the deadline; the verdict goes to the descriptor named as argument.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import traceback
from types import FrameType
from typing import Any, NoReturn

from book.learn.grading import LOOK_S, Deadline, Verdict, Wrong, describe, not_judged
from labkit.errors import LabUnavailable, MeasurementFailed, NotAvailableHere, NotReady


class _Late(BaseException):
    """The deadline has passed. No Exception, so that the learner's own ``except Exception`` lets it through."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict


def main() -> NoReturn:
    """Judge, tell, end: whatever threads are left end with the process."""
    verdicts = int(sys.argv[1])
    # What it would ignore by inheritance, in the background of a script.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "linux":
        from labkit.network.namespaces import end_with_parent

        end_with_parent()  # a kernel that is killed cannot end it
    judge, answer, deadline_s = pickle.load(sys.stdin.buffer)
    os.write(verdicts, json.dumps(_verdict(judge, answer, deadline_s)).encode() + b"\n")
    sys.stdout.flush()
    os._exit(0)


def _verdict(judge: Any, answer: Any, deadline_s: float) -> dict[str, Any]:
    deadline = Deadline(deadline_s, os.getpid())

    def look(number: int, frame: FrameType | None) -> None:
        if (late := deadline.overdue()) is not None:
            raise _Late(late)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, deadline_s, LOOK_S)
    try:
        try:
            said = judge(answer)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Wrong as exc:
        # What the learner's own code raised in a server's thread is the cause that a judge passes on.
        return {"outcome": "wrong", "reason": str(exc), **(_place(exc.__cause__, answer) if exc.__cause__ else {})}
    except _Late as exc:
        return {"outcome": exc.verdict.outcome, "reason": exc.verdict.reason, **_place(exc, answer)}
    except BaseException as exc:
        where = _place(exc, answer)
        machine = isinstance(exc, (LabUnavailable, NotAvailableHere, MeasurementFailed, NotReady))
        if not machine and (where or isinstance(exc, SystemExit) or _is_call(exc, answer)):
            return {"outcome": "wrong", "reason": f"your code raised {describe(exc)}", **where}
        if not machine:
            traceback.print_exc()
        outcome, reason = not_judged(exc)
        return {"outcome": outcome, "reason": reason}
    return {"outcome": "right", "reason": said or ""}


def _is_call(exc: BaseException, answer: Any) -> bool:
    """Whether the answer was called with other arguments than it takes."""
    name = getattr(answer, "__qualname__", "")
    return isinstance(exc, TypeError) and str(exc).startswith((f"{name}()", f"{name}.__init__()"))


def _place(exc: BaseException, answer: Any) -> dict[str, Any]:
    """The innermost line of the learner's own cell, {} where there is none."""
    code = getattr(answer, "__code__", None) or getattr(getattr(answer, "__init__", None), "__code__", None)
    if code is None:
        return {}
    lines = [
        line for frame, line in traceback.walk_tb(exc.__traceback__) if frame.f_code.co_filename == code.co_filename
    ]
    return {"file": code.co_filename, "line": lines[-1]} if lines else {}


if __name__ == "__main__":
    main()
