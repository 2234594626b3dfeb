"""The command line: the lab for people without a notebook."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import InvalidValue, LabError, NotAvailableHere

if TYPE_CHECKING:
    from labkit.lab import Lab


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after ``labkit``, those of the command line by default.

    Returns:
        exit status: 0; 1 where something is missing, failed or is not proven; 2 for a wrong command line.
    """
    return run("labkit", _parser().parse_args(arguments))


def run(program: str, options: argparse.Namespace) -> int:
    """Run a command that was parsed, and say in one line what went wrong.

    Args:
        program: its name, for the line.
        options: with ``name``, of the command, and ``command``, the function that takes them.

    Returns:
        exit status.
    """
    try:
        return int(options.command(options))
    except (LabError, OSError) as exc:
        print(f"{program} {options.name}: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program} {options.name}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="labkit", description="A small network on this machine's own kernel.")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    doctor = commands.add_parser("doctor", help="what this machine can do, what is missing, what mends it")
    doctor.set_defaults(command=_doctor)
    race = commands.add_parser("race", help="measure the ways of saying HTTPS, in round trips")
    race.add_argument("--rtt-ms", type=float, default=40.0, help="round-trip time of the lab, milliseconds (40)")
    race.add_argument("--runs", type=int, default=5, help="requests for each variant (5)")
    race.add_argument(
        "--variant", action="append", metavar="NAME", help="measure this one; again for more; all by default"
    )
    race.add_argument("--plot", type=_picture, metavar="FILE", help="write the picture: .png, .svg or .pdf")
    race.set_defaults(command=_race)
    queues = commands.add_parser("queues", help="fill a listener's queues, and see limits, depths and counters")
    queues.add_argument("--backlog", type=int, default=4, help="what the listener asks for (4)")
    queues.add_argument("--clients", type=int, default=12, help="how many connect at once (12)")
    queues.add_argument("--seconds", type=float, default=1.5, help="how long to watch (1.5)")
    queues.add_argument("--plot", type=_picture, metavar="FILE", help="write the picture: .png, .svg or .pdf")
    queues.set_defaults(command=_queues)
    shell = commands.add_parser("shell", help="a lab, and a prompt on its hosts; without a terminal it reads a script")
    _lab_options(shell)
    shell.add_argument("-c", action="append", dest="lines", metavar="LINE", help="do this and end; again for more")
    shell.set_defaults(command=_shell)
    attach = commands.add_parser("attach", help="a shell, or a program, on a host of a running lab")
    attach.add_argument("host", help="name of the host, server")
    attach.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="WORD", help="a program and its arguments; a shell by default"
    )
    attach.set_defaults(command=_attach)
    capture = commands.add_parser("capture", help="stream what crosses the wire: capture -w - | wireshark -k -i -")
    capture.add_argument("-w", dest="target", required=True, metavar="FILE", help="pcapng; - is standard output")
    capture.add_argument(
        "lines",
        nargs="*",
        metavar="LINE",
        help="of labkit shell, in a lab of its own; none: a running lab's",
    )
    _lab_options(capture)
    capture.set_defaults(command=_capture)
    for command in (attach, capture):
        command.add_argument("--lab", metavar="NAME", help="name or directory of the lab, where several run")
    bench = commands.add_parser("bench", help="how fast the lab is on this machine")
    bench.set_defaults(command=_bench)
    for command in (doctor, race, queues, bench):
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _lab_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--rtt-ms", type=float, default=40.0, help="round-trip time of the client's link, ms (40)")
    command.add_argument("--loss", type=float, default=0.0, help="probability that it loses a frame, 0 to 1 (0)")
    command.add_argument("--rate-mbps", type=float, help="its rate in Mbit/s; none by default")
    command.add_argument("--jitter-ms", type=float, default=0.0, help="largest random delay that it adds, ms (0)")
    command.add_argument("--seed", type=int, default=0, help="of the wire's random decisions (0)")
    command.add_argument("--host", action="append", default=[], metavar="NAME", help="one more host; again for more")


def _picture(name: str) -> Path:
    """Refuse a file that cannot be written before anything is measured for it."""
    from labkit.plots.picture import FORMATS  # matplotlib is loaded for who wants a picture

    path = Path(name)
    if path.suffix.lower() not in FORMATS:
        raise argparse.ArgumentTypeError(f"{name!r}: end it in {', '.join(FORMATS)}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{name!r} cannot be written: name a file in a folder that is there")
    return path


def _doctor(options: argparse.Namespace) -> int:
    from labkit.doctor import doctor

    report = doctor()
    print(json.dumps(report.as_dict(), indent=2) if options.json else report)
    return 0 if report.healthy else 1


def _race(options: argparse.Namespace) -> int:
    from labkit.handshakes.race import race
    from labkit.lab import Lab

    with Lab(rtt_ms=options.rtt_ms) as lab:
        result = race(lab, options.variant, runs=options.runs)
    if options.plot:
        from labkit.plots import plot_race

        plot_race(result).save(options.plot)
    print(json.dumps(result.as_dict(), indent=2) if options.json else result)
    return 0 if all(measurement.proof["holds"] for measurement in result) else 1


def _queues(options: argparse.Namespace) -> int:
    from labkit.lab import Lab
    from labkit.queues.fill import fill

    with Lab(rtt_ms=20) as lab:
        filled = fill(lab.client, lab.server, backlog=options.backlog, clients=options.clients, seconds=options.seconds)
    if options.plot:
        from labkit.plots import plot_queues

        plot_queues(filled.history).save(options.plot)
    print(json.dumps(filled.as_dict(), indent=2) if options.json else filled)
    return 0


def _lab(options: argparse.Namespace) -> Lab:
    from labkit.lab import Lab

    names = "rtt_ms", "loss", "rate_mbps", "jitter_ms", "seed"
    return Lab(**{name: getattr(options, name) for name in names}, hosts=options.host)


def _shell(options: argparse.Namespace) -> int:
    from labkit.shell.console import Console

    _end_in_order()
    terminal = os.isatty(0) and os.isatty(1)
    with _lab(options) as lab, contextlib.closing(Console(lab, terminal=terminal)) as console:
        if options.lines:
            return console.follow(options.lines, "-c {}")
        if not terminal:
            return console.follow(sys.stdin)
        with contextlib.suppress(NotAvailableHere):  # nobody can attach where this is not Linux
            lab.open_door()
        return console.interact()


def _end_in_order() -> None:
    """SIGTERM closes what is open."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def _attach(options: argparse.Namespace) -> int:
    from labkit.network.attach import attach, find

    _end_in_order()
    return attach(find(options.lab), options.host, options.words)


def _capture(options: argparse.Namespace) -> int:
    if options.target == "-" and os.isatty(1):
        raise InvalidValue("-w -: standard output is a terminal, pipe it: | wireshark -k -i -")
    _end_in_order()
    with contextlib.ExitStack() as ending:
        target = 1
        if options.target != "-":
            target = ending.enter_context(open(options.target, "wb")).fileno()
        if not options.lines:
            from labkit.network.attach import find, stream

            stream(find(options.lab), target)
            return 0
        from labkit.shell.console import Console

        lab = ending.enter_context(_lab(options))
        live = ending.enter_context(contextlib.closing(lab.stream(target)))
        screens = (2, 2) if target == 1 else (1, 2)
        console = ending.enter_context(contextlib.closing(Console(lab, terminal=False, screens=screens)))
        try:
            return console.follow(options.lines)
        finally:
            lab.wire.settle()
            live.close()


def _bench(options: argparse.Namespace) -> int:
    from labkit.bench import as_table, bench

    figures = bench()
    print(json.dumps(figures, indent=2) if options.json else as_table(figures))
    return 0
