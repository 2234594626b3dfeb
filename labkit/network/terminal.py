"""A program on a host with a terminal of its own (a pty), and the learner's terminal in front of it.

The kernel lets one session have a terminal, and what runs on a host is in another session, in another PID namespace.
So a program gets a pseudo-terminal, as with ssh(1): what is typed goes in as it is, and the line discipline in there
makes signals of it. Sources: pty(7), termios(3), tty_ioctl(4).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct
import termios
import threading
import tty
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from labkit.errors import LabClosed

if TYPE_CHECKING:
    from labkit.network.host import Host

READ_BYTES = 1 << 16
LAST_BYTES = 1 << 18  # more than a pty holds: what a program's children say after its end is not waited for


class Terminal:
    """A program on a host with a terminal of its own.

    Args:
        host: where it runs.
        args, env, cwd: see ``Host.run``.
        size: rows and columns.

    Attributes:
        program: the program.
        master: the other side of its terminal, a descriptor.
        slave: its terminal. While it is open, what nobody has read can be had by ``unread``.

    Raises:
        ProgramNotFound, NotAvailableHere, LabClosed; OSError where there is no pseudo-terminal left.
    """

    def __init__(
        self,
        host: Host,
        args: Sequence[str],
        *,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        size: tuple[int, int] = (24, 80),
    ) -> None:
        self.master, self.slave = os.openpty()
        try:
            set_size(self.slave, size)
            self.program = host.program(args, env=env, cwd=cwd, files=[self.slave] * 3)
        except BaseException:
            self.let_go()
            raise

    def let_go(self) -> None:
        """Close both sides here. Twice is fine."""
        for descriptor in (self.master, self.slave):
            if descriptor >= 0:
                os.close(descriptor)
        self.master = self.slave = -1

    def close(self) -> None:
        """End the program as the end of its terminal does, and let go. Closing twice is fine."""
        with contextlib.suppress(LabClosed):
            self.program.send_signal(signal.SIGHUP)  # which ends a shell; it ignores SIGTERM
        self.program.close()
        self.let_go()


def size_of(terminal: int) -> tuple[int, int]:
    """Its rows and columns; 24 and 80 where it is no terminal, or has none."""
    try:
        rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        rows = columns = 0
    return (rows, columns) if rows and columns else (24, 80)


def set_size(terminal: int, size: tuple[int, int]) -> None:
    """Tell it, and what runs in it (SIGWINCH), how large it is."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", *size, 0, 0))


def unread(slave: int) -> bytes:
    """What was typed and nobody has read, whole lines and the beginning of one."""
    modes = termios.tcgetattr(slave)
    modes[3] &= ~(termios.ICANON | termios.ECHO)
    modes[6][termios.VMIN] = modes[6][termios.VTIME] = 0
    termios.tcsetattr(slave, termios.TCSANOW, modes)
    found = b""
    while data := os.read(slave, READ_BYTES):
        found += data
    return found


def show(master: int, ended: int, screen: int) -> None:
    """Copy what a program writes to a screen, until it has ended and all of it is there.

    Args:
        master: its terminal's other side.
        ended: a descriptor that can be read once it has ended.
        screen: where to. One that takes nothing more stops the copying, not the program.
    """
    poll = select.poll()
    poll.register(master, select.POLLIN)
    poll.register(ended, select.POLLIN)
    last = LAST_BYTES
    while last > 0:
        told = [descriptor for descriptor, _ in poll.poll()]
        if master in told:
            try:
                data = os.read(master, READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:  # EIO: nobody has it open any more
                data = b""
            if not data:
                poll.unregister(master)
            with contextlib.suppress(OSError):
                _write(screen, data)
            if ended in told:
                last -= len(data)
        elif ended in told:
            return


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def type_into(master: int, ended: int, keyboard: int, *, ahead: bytes = b"", may_leave: bool = False) -> bool:
    """Copy what comes from a keyboard into a program's terminal until it has ended.

    A terminal as keyboard hands all keys on meanwhile, Ctrl-C as well, and its size with its changes.

    Args:
        master: the other side of the program's terminal.
        ended: a descriptor that can be read once it has ended.
        keyboard: where from. At the end of a file the program gets an end of file, too.
        ahead: what was typed before.
        may_leave: Ctrl-Z leaves it where the program would have no use for it. (The kernel stops no program that has
            no shell to continue it: it is in an orphaned process group, see setpgid(2).)

    Returns:
        whether it was left, and runs on.
    """
    os.set_blocking(master, False)  # a program that does not read must not keep us from seeing its end
    first = os.tcgetpgrp(master) if may_leave else 0
    with _all_keys(keyboard), _same_size(keyboard, master):
        unsent, reading = ahead, True
        while True:
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            if reading and not unsent:
                poll.register(keyboard, select.POLLIN)
            if unsent:
                poll.register(master, select.POLLOUT)
            told = [descriptor for descriptor, _ in poll.poll()]
            if ended in told:
                with contextlib.suppress(OSError):
                    os.write(master, unsent)  # for `unread`
                return False
            if keyboard in told:
                try:
                    unsent = os.read(keyboard, READ_BYTES)
                except OSError:  # its window was closed
                    unsent = b""
                if not unsent:
                    reading, unsent = False, b"\4"
                if may_leave and b"\x1a" in unsent and _has_no_use_for_stop(master, first):
                    return True
            if master in told:
                try:
                    unsent = unsent[os.write(master, unsent) :]
                except BlockingIOError:
                    continue
                except OSError:  # nobody has it open any more
                    unsent = b""


def _has_no_use_for_stop(master: int, first: int) -> bool:
    """Whether the program is a plain one: no editor, which wants every key, and no shell with jobs of its own."""
    modes = termios.tcgetattr(master)[3]
    return bool(modes & termios.ISIG and modes & termios.ICANON) and os.tcgetpgrp(master) == first


@contextlib.contextmanager
def _all_keys(keyboard: int) -> Iterator[None]:
    if not os.isatty(keyboard):
        yield
        return
    before = termios.tcgetattr(keyboard)
    try:
        tty.setraw(keyboard, termios.TCSADRAIN)  # what was typed ahead stays
        yield
    finally:
        with contextlib.suppress(termios.error):  # its window was closed
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _same_size(keyboard: int, master: int) -> Iterator[None]:
    if not os.isatty(keyboard) or threading.current_thread() is not threading.main_thread():
        yield
        return
    set_size(master, size_of(keyboard))
    before = signal.signal(signal.SIGWINCH, lambda *_: set_size(master, size_of(keyboard)))
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
