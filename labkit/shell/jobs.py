"""Lines that run on hosts, each in a shell there: in front, with the learner's terminal, or behind."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Sequence

from labkit.errors import NotReady
from labkit.network.host import Host
from labkit.network.process import Program
from labkit.network.terminal import Terminal, show, size_of, type_into, unread

A_DAY_S = 86_400.0


def shell_words(line: str) -> list[str]:
    """What runs a line: bash where it is installed."""
    return ["bash" if shutil.which("bash") else "sh", "-c", line]


class Job:
    """A line that runs on a host.

    Attributes:
        number: by which it is called, "%1".
        host, line: what runs where.
        program: the shell that runs it.
    """

    program: Program

    def __init__(self, number: int, host: Host, line: str) -> None:
        self.number, self.host, self.line = number, host, line

    def __str__(self) -> str:
        return f"[{self.number}] {self.host.name}$ {self.line}"

    @property
    def ended(self) -> bool:
        """Whether it has ended, and all that it said is on the screen."""
        raise NotImplementedError

    def attend(self, ahead: bytes) -> bool:
        """Stand in front of it until it ends.

        Args:
            ahead: what was typed before it was in front.

        Returns:
            whether it was left before its end, and runs on.
        """
        raise NotImplementedError

    def typed_ahead(self) -> bytes:
        """What was typed while it was in front, and not for it, since it has ended."""
        return b""

    def interrupt(self) -> None:
        """Ctrl-C for one that is behind."""
        self.program.send_signal(signal.SIGINT)

    def close(self) -> None:
        """End it. Closing twice is fine."""
        self.program.close()

    def hang_up(self) -> None:
        """End it because the shell ends."""
        self.close()


class TerminalJob(Job):
    """One with a terminal of its own, whose screen is the learner's."""

    def __init__(self, number: int, host: Host, line: str, *, cwd: str, keyboard: int, screen: int) -> None:
        super().__init__(number, host, line)
        self._keyboard = keyboard
        self._terminal = Terminal(host, shell_words(line), cwd=cwd, size=size_of(keyboard))
        self.program = self._terminal.program
        self._end, told = os.pipe()
        ended = os.dup(self.program.fileno())  # close() takes the other away, and its number is given to something else
        self._thread = threading.Thread(
            target=self._show, args=(screen, ended, told), name=f"labkit-screen-{number}", daemon=True
        )
        self._thread.start()

    def _show(self, screen: int, ended: int, told: int) -> None:
        try:
            show(self._terminal.master, ended, screen)
        finally:
            os.close(ended)
            os.close(told)  # read as an end of file

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def attend(self, ahead: bytes) -> bool:
        while True:
            try:
                return type_into(self._terminal.master, self._end, self._keyboard, ahead=ahead, may_leave=True)
            except KeyboardInterrupt:  # Ctrl-C a moment before the keys went to it
                self.interrupt()
                ahead = b""

    def typed_ahead(self) -> bytes:
        return unread(self._terminal.slave)

    def close(self) -> None:
        self.program.close()
        self._thread.join()
        self._terminal.close()
        if self._end >= 0:
            os.close(self._end)
            self._end = -1

    def hang_up(self) -> None:
        self.program.send_signal(signal.SIGHUP)
        self.close()


class PlainJob(Job):
    """One without a terminal, in a script: its output is the script's, and it has no input."""

    def __init__(self, number: int, host: Host, line: str, *, cwd: str, screens: Sequence[int]) -> None:
        super().__init__(number, host, line)
        with open(os.devnull, "rb") as nothing:
            self.program = host.start(shell_words(line), cwd=cwd, files=[nothing.fileno(), *screens])

    @property
    def ended(self) -> bool:
        try:
            self.program.wait(0)
        except NotReady:
            return False
        return True

    def attend(self, ahead: bytes) -> bool:
        try:
            self.program.wait(A_DAY_S)
        except KeyboardInterrupt:  # it got none: it is in a session of its own
            self.interrupt()
            raise
        return False
