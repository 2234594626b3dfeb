"""The command line of the book: how far a learner is, and what those who write it need."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from labkit.cli import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after ``book``, those of the command line by default.

    Returns:
        exit status: 0; 1 where something is missing or failed; 2 for a wrong command line.
    """
    return run("book", _parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="book", description='The textbook "Backend Engineering, Live".')
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    contents = commands.add_parser("contents", help="the book's contents, and how far you are")
    contents.add_argument(
        "--write", action="store_true", help="write navigation, tasks and tables into notebooks and README"
    )
    contents.add_argument("--json", action="store_true", help="print JSON")
    contents.set_defaults(command=_contents)
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
    return parser


def _contents(options: argparse.Namespace) -> int:
    from book.learn.navigation import write
    from book.learn.new_section import CHECKOUT
    from book.learn.overview import overview

    if options.write:
        for path in write(overview().book, CHECKOUT):
            print(f"wrote {path}", file=sys.stderr)
    print(json.dumps(overview().as_dict(), indent=2) if options.json else overview())
    return 0


def _new_section(options: argparse.Namespace) -> int:
    from book.learn.new_section import new_section

    for path in new_section(options.id, minutes=options.minutes):
        print(path)
    return 0


def _record(options: argparse.Namespace) -> int:
    from book.learn.new_section import CHECKOUT
    from book.learn.overview import overview
    from book.learn.recording import record

    for path in record(overview().book, CHECKOUT, options.id):
        print(path)
    return 0


def _progress(options: argparse.Namespace) -> int:
    from book.learn.progress import ProgressWarning, progress

    warnings.simplefilter("ignore", ProgressWarning)  # it is said below
    kept = progress()
    if options.export:
        kept.export(options.export)
    if options.bring:
        kept.bring(options.bring)
    print(kept)
    if kept.notice:
        print(kept.notice, file=sys.stderr)
    return 0
