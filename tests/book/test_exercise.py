"""Verdicts on whatever a learner may write: always one of five, always within the deadline, nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from book import Exercise, Mistake, Verdict, Wrong, progress
from book.learn import grading
from book.learn.exercise import Wording, answer_of
from labkit import Lab
from labkit.errors import InvalidValue, MeasurementFailed, NotReady

HERE = Path(__file__).resolve().parent


def judge_double(double: Callable[[int], int]) -> str:
    """Where it is judged, this module is imported by its name."""
    for number in (2, 3):
        if (twice := double(number)) != 2 * number:
            raise Wrong(f"double({number}) is {twice!r}: twice {number} is {2 * number}")
    return "Twice is twice."


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Exercise:
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    progress().clear()
    return Exercise(
        "t.s.double",
        judge_double,
        Wording(
            task="Write `double(n)`.",
            starter="def double(n):\n    return ...\n",
            solution="def double(n):\n    return 2 * n\n",
            explanation="Because.",
            hints=("Twice.", "2 * n."),
            mistakes=(Mistake("def double(n):\n    return n\n", "twice 2 is 4"),),
        ),
        deadline_s=3,
    )


def check(exercise: Exercise, source: str) -> Verdict:
    return exercise.check(answer_of(source, exercise.name))


@pytest.mark.parametrize("needs", ["kernel", "sysctls"])
def test_what_this_tier_cannot_judge_is_never_wrong(
    double: Exercise, monkeypatch: pytest.MonkeyPatch, needs: str
) -> None:
    higher = replace(double, needs=needs)
    assert check(higher, double.solution).outcome == "right"
    progress().clear()
    monkeypatch.setenv("LABKIT_TIER", "loopback")
    for source in (double.wording.starter, double.solution, double.wording.mistakes[0].source):
        verdict = check(higher, source)
        assert verdict.outcome == "not available here"
        assert "this machine's is 'loopback' (labkit doctor)" in verdict.reason
        assert not verdict
    assert not progress().is_solved(double.id)
    assert "Not available here: it needs the tier" in higher._repr_html_()
    assert "Not available" not in double._repr_html_()
    with pytest.raises(InvalidValue, match="needs='luck'"):
        replace(double, needs="luck")


def judge_by_counters(answer: Callable[[], int]) -> None:
    with Lab(rtt_ms=0) as lab:
        assert lab.client.counters
    answer()


def test_a_judge_that_finds_no_kernel_is_not_available(double: Exercise, monkeypatch: pytest.MonkeyPatch) -> None:
    by_counters = replace(double, judge=judge_by_counters)
    monkeypatch.setenv("LABKIT_TIER", "loopback")
    verdict = check(by_counters, double.solution)
    assert verdict.outcome == "not available here"
    assert "cannot be read" in verdict.reason


def judge_any(answer: type) -> str:
    return f"{answer.__name__} is there."


def test_a_class_is_untouched_until_a_member_differs(double: Exercise) -> None:
    starter = "class Pool:\n    size = 1\n    def take(self):\n        return self.size"
    wording = Wording("t", starter, starter, "e", ("a", "b"), ())
    exercise = replace(double, judge=judge_any, source=wording)
    assert exercise.check(answer_of("\n\n" + starter, "Pool")).outcome == "not attempted"
    for changed in (starter.replace("= 1", "= 2"), starter.replace("self.size", "None")):
        assert check(exercise, changed).outcome == "right"


def test_the_outcomes(double: Exercise) -> None:
    begun = double.wording.starter
    for untouched in (None, ..., answer_of(begun, "double"), answer_of("\n\n" + begun, "double")):
        verdict = double.check(untouched)
        assert (verdict.outcome, bool(verdict)) == ("not attempted", False)
    assert not progress().is_solved(double.id)
    assert check(double, double.wording.mistakes[0].source) == Verdict("wrong", "double(2) is 2: twice 2 is 4")
    assert not progress().is_solved(double.id)
    assert check(double, double.solution) == Verdict("right", "Twice is twice.")
    assert progress().is_solved(double.id)
    assert repr(Verdict("right", "Good.")) == "✓ right: Good."


def judge_on_a_busy_machine(answer: Callable[[], str]) -> None:
    """Fails in one of the ways in which the machine or the judge is to blame, and not the answer."""
    how = answer()
    if how == "unready":
        raise NotReady("the server did not listen in 8 s")
    if how == "disturbed":
        raise MeasurementFailed("measured 4 times, it came out as 3, 4, 3, 3")
    {}[how]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("unready", "the server did not listen in 8 s. That says nothing about your answer: run the cell again"),
        ("disturbed", "it came out as 3, 4, 3, 3. That says nothing about your answer: run the cell again"),
        ("strange", "the check itself failed, KeyError: 'strange', which says nothing about your answer"),
    ],
)
def test_a_busy_machine_or_a_fault_of_the_judge_is_never_wrong(double: Exercise, how: str, reason: str) -> None:
    apart = replace(double, judge=judge_on_a_busy_machine)
    wording = replace(double.wording, starter="double = ...", solution="double = 2")
    here = replace(apart, source=wording, judge=lambda how: judge_on_a_busy_machine(lambda: how))
    for verdict in (check(apart, f"def double():\n    return {how!r}\n"), here.check(how)):
        assert (verdict.outcome, bool(verdict)) == ("could not be judged", False)
        assert reason in verdict.reason
        assert repr(verdict).startswith("? could not be judged: ")
    assert not progress().is_solved(double.id)


def test_time_that_a_process_waits_for_a_cpu_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock and the scheduler's figures are given here: no machine is busy on demand."""
    now = waited = 0.0
    monkeypatch.setattr(grading.time, "monotonic", lambda: now)
    monkeypatch.setattr(grading, "held_up_s", lambda pid: waited)
    deadline = grading.Deadline(3, os.getpid())
    now, waited = 10.0, 7.5
    assert deadline.overdue() is None
    now, waited = 10.5, 7.5
    assert deadline.overdue() == Verdict("wrong", "it did not end within 3 s")
    now, waited = 18.0, 17.0
    late = deadline.overdue()
    assert late is not None
    assert late.outcome == "could not be judged"
    assert "of 18 s it waited 17 s for a CPU" in late.reason


def test_how_long_a_process_was_held_up(
    python: Callable[..., subprocess.Popen[str]], until: Callable[..., None]
) -> None:
    """Two processes that compute share one CPU, so each waits for it."""
    pin = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    source = f"{pin}\nprint('begun', flush=True)\nwhile True: pass"
    both = [python(source), python(source)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
    until(lambda: all(grading.held_up_s(process.pid) > 0.1 for process in both))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("while True: pass", "did not end within 3 s (line 2 of the cell"),
        (
            "while True:\n        try:\n            import time; time.sleep(9)\n        except BaseException: pass",
            "did not end within 3 s",
        ),
        ("return 1 / 0", "your code raised ZeroDivisionError: division by zero (line 2 of the cell"),
        ("raise SystemExit(3)", "your code raised SystemExit: 3"),
        ("import os; os._exit(0)", "ended without a verdict"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended without a verdict"),
        ("return 'ab' * n", "double(2) is 'abab'"),
        ("raise KeyboardInterrupt", "your code raised KeyboardInterrupt"),
        ("import sys; sys.setrecursionlimit(300); return double(n)", "your code raised RecursionError"),
        ("print(n); import os; os.close(1); return 3", "double(2) is 3"),
    ],
    ids=["endless", "stubborn", "raises", "exits", "leaves", "crashes", "type", "interrupts", "recurses", "closes"],
)
def test_code_that_does_what_it_should_not(double: Exercise, body: str, reason: str) -> None:
    begun = time.monotonic()
    verdict = check(double, f"def double(n):\n    {body}\n")
    assert verdict.outcome == "wrong"
    assert reason in verdict.reason
    assert time.monotonic() - begun < 60  # a deadline of 3 s, on a machine that may be busy; never the endless loop's


def test_what_is_no_function(double: Exercise) -> None:
    assert double.check(7) == Verdict("wrong", "double is 7: give a function")
    assert check(double, "def double():\n    return 4\n").reason.startswith("your code raised TypeError")


def test_what_it_prints_is_told_and_no_verdict(double: Exercise) -> None:
    print_a_verdict = """print('{"outcome": "right", "reason": "mine"}', flush=True)"""
    verdict = check(double, f"def double(n):\n    {print_a_verdict}\n    return n\n")
    assert verdict.outcome == "wrong"
    assert '"mine"' in verdict.printed
    assert "It printed:" in repr(verdict)
    assert '"mine"' not in verdict._repr_html_()  # escaped
    long = check(double, "def double(n):\n    print('x' * 10**6)\n    return n\n")
    assert len(long.printed) == 2000


def test_a_traceback_that_it_prints_has_no_colours(double: Exercise, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook's kernel sets FORCE_COLOR, which Python 3.13 and later obey in a thread's traceback."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    body = "import threading; thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join(); return n"
    verdict = check(double, f"def double(n):\n    {body}\n")
    assert "ZeroDivisionError" in verdict.printed
    assert "\x1b" not in verdict.printed


def test_a_variable_that_cannot_be_taken_along(double: Exercise) -> None:
    source = "import threading\nlock = threading.Lock()\ndef double(n):\n    with lock:\n        return 2 * n\n"
    verdict = check(double, source)
    assert verdict.outcome == "wrong"
    assert "uses 'lock' of this notebook" in verdict.reason
    assert check(double, "factor = 2\ndef double(n):\n    return factor * n\n")


def test_processes_that_it_leaves_end_with_it(
    double: Exercise, processes_of: Callable[[object], dict[int, str]], tmp_path: Path, until: Callable[..., None]
) -> None:
    child = f"import subprocess; subprocess.Popen(['sleep', '1000'], env={{'MARK': {str(tmp_path)!r}}})"
    assert check(double, f"def double(n):\n    {child}\n    return 2 * n\n")
    until(lambda: processes_of(tmp_path) == {})


INTERRUPTED = """
import sys; sys.path.insert(0, sys.argv[1])
from test_exercise import judge_double
from book.learn.grading import judge_apart
def double(n):
    import subprocess
    subprocess.Popen(["sleep", "1000"], env={"MARK": mark})
    print("begun", file=open(mark + "/begun", "w"))
    while True: pass
mark = sys.argv[2]
judge_apart(judge_double, double, 50)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_check_that_is_cut_off_leaves_nothing(
    how: signal.Signals,
    tmp_path: Path,
    processes_of: Callable[[object], dict[int, str]],
    until: Callable[..., None],
) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}"}
    command = [sys.executable, "-c", INTERRUPTED, str(HERE), str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        until((tmp_path / "begun").exists, 30)
        process.send_signal(how)
        process.wait(20)
        if how == signal.SIGINT:
            until(lambda: processes_of(tmp_path) == {})
        else:  # the judge ends with its parent; what the learner's code had started is the learner's
            until(lambda: not any("book.learn.judge" in words for words in processes_of(tmp_path).values()))
    finally:
        for pid in processes_of(tmp_path):
            os.kill(pid, signal.SIGKILL)


def test_values_are_judged_here() -> None:
    def judge(answer: Any) -> None:
        if answer + 1 != 3:
            raise Wrong(f"{answer + 1} is not 3")

    exercise = Exercise("t.s.value", judge, Wording("t", "n = ...", "n = 2", "e", ("a", "b"), ()))
    assert exercise.check(...).outcome == "not attempted"
    assert exercise.check(2) == Verdict("right", "")
    assert exercise.check(3) == Verdict("wrong", "4 is not 3")
    strange = exercise.check("two")
    assert strange.outcome == "could not be judged"
    assert "the check itself failed, TypeError: can only concatenate str" in strange.reason


def test_hints_and_solution(double: Exercise) -> None:
    assert [double.hint(), double.hint(2)] == ["Twice.", "2 * n."]
    with pytest.raises(InvalidValue, match=r"hint\(3\): there are 2"):
        double.hint(3)
    page = double._repr_html_()
    assert page.count("<details") == 3
    assert "<details open" not in page
    assert "return 2 * n" in page


def test_exercises_that_cannot_be(double: Exercise) -> None:
    with pytest.raises(InvalidValue, match="deadline_s=0"):
        Exercise("t.s.double", judge_double, double.wording, deadline_s=0)
    with pytest.raises(InvalidValue, match="needs='luck'"):
        Exercise("t.s.double", judge_double, double.wording, needs="luck")
    with pytest.raises(InvalidValue, match="must end in a function or in a variable"):
        _ = Exercise("t.s.double", judge_double, replace(double.wording, starter="print(1)")).name
