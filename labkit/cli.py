"""The command line: the lab for people without a notebook, and what those who write the book need."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from labkit.errors import LabError

PICTURES = (".png", ".svg", ".pdf")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after ``labkit``, those of the command line by default.

    Returns:
        exit status: 0; 1 where something is missing, failed or is not proven; 2 for a wrong command line.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except (LabError, OSError) as exc:
        print(f"labkit {options.name}: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"labkit {options.name}: interrupted", file=sys.stderr)
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
    bench = commands.add_parser("bench", help="how fast the lab is on this machine")
    bench.set_defaults(command=_bench)
    book = commands.add_parser("contents", help="the book's contents, and how far you are")
    book.add_argument("--write", action="store_true", help="write navigation and tables into notebooks and README")
    book.set_defaults(command=_contents)
    section = commands.add_parser("new-section", help="begin a section that contents.toml has")
    section.add_argument("id", help="for instance patterns.polling")
    section.add_argument("--minutes", type=int, default=20, help="how long it takes a reader (20)")
    section.set_defaults(command=_new_section)
    recording = commands.add_parser("record", help="record what machines of a lower tier will show")
    recording.add_argument("id", nargs="*", help='sections, for instance https.tfo, or "race"; all by default')
    recording.set_defaults(command=_record)
    kept = commands.add_parser("progress", help="take your progress to another machine and back")
    way = kept.add_mutually_exclusive_group()
    way.add_argument("--export", type=Path, metavar="FILE", help="write a copy of it")
    way.add_argument("--bring", type=Path, metavar="FILE", help="add what a copy holds")
    kept.set_defaults(command=_progress)
    for command in (doctor, race, queues, bench, book):
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _picture(name: str) -> Path:
    """Refuse a file that cannot be written before anything is measured for it."""
    path = Path(name)
    if path.suffix.lower() not in PICTURES:
        raise argparse.ArgumentTypeError(f"{name!r}: end it in {', '.join(PICTURES)}")
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


def _bench(options: argparse.Namespace) -> int:
    from labkit.bench import as_table, bench

    figures = bench()
    print(json.dumps(figures, indent=2) if options.json else as_table(figures))
    return 0


def _contents(options: argparse.Namespace) -> int:
    from labkit.learn.navigation import write
    from labkit.learn.new_section import CHECKOUT
    from labkit.learn.overview import overview

    if options.write:
        for path in write(overview().book, CHECKOUT):
            print(f"wrote {path}", file=sys.stderr)
    print(json.dumps(overview().as_dict(), indent=2) if options.json else overview())
    return 0


def _new_section(options: argparse.Namespace) -> int:
    from labkit.learn.new_section import new_section

    for path in new_section(options.id, minutes=options.minutes):
        print(path)
    return 0


def _record(options: argparse.Namespace) -> int:
    from labkit.learn.new_section import CHECKOUT
    from labkit.learn.overview import overview
    from labkit.learn.recording import record

    for path in record(overview().book, CHECKOUT, options.id):
        print(path)
    return 0


def _progress(options: argparse.Namespace) -> int:
    from labkit.learn.progress import progress

    kept = progress()
    if options.export:
        kept.export(options.export)
    if options.bring:
        kept.bring(options.bring)
    print(kept)
    if kept.notice:
        print(kept.notice, file=sys.stderr)
    return 0
