"""What a server saw. Kept in memory and never printed: a thread's print lands in whichever cell happens to run."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from labkit import checks

MAX_ENTRIES = 1000


@dataclass(frozen=True)
class LogEntry:
    """One event.

    Attributes:
        time_s: seconds since 1970, the clock that captures use, so that both can be laid side by side.
        event: "connection", "request", "response", "closed" or "error".
        peer: the client, "192.0.2.1:40000"; empty where it is not known.
        text: one line for a reader.
        facts: the same for a program, for instance {"early_data": True}.
    """

    time_s: float
    event: str
    peer: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<{self.event} {self.peer} {self.text}>"


class Log(Sequence[LogEntry]):
    """The last entries, oldest first. A long run forgets its beginning instead of filling the memory."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._entries: deque[LogEntry] = deque(maxlen=checks.whole("max_entries", max_entries, 1))
        self._lock = threading.Lock()

    def add(self, event: str, peer: str, text: str, facts: Mapping[str, Any] | None = None) -> None:
        """Append an entry, stamped now. Any thread may."""
        with self._lock:
            self._entries.append(LogEntry(time.time(), event, peer, text, facts or {}))

    def of(self, event: str) -> list[LogEntry]:
        """Entries of one kind: ``server.log.of("request")``."""
        return [entry for entry in self._snapshot() if entry.event == event]

    def _snapshot(self) -> list[LogEntry]:
        # Iterating over a deque that a server thread appends to raises RuntimeError.
        with self._lock:
            return list(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> LogEntry: ...

    @overload
    def __getitem__(self, index: slice) -> list[LogEntry]: ...

    def __getitem__(self, index: int | slice) -> LogEntry | list[LogEntry]:
        return self._snapshot()[index]

    def __repr__(self) -> str:
        entries = self._snapshot()
        if not entries:
            return "<Log, empty>"
        start = entries[0].time_s
        lines = [f"{(e.time_s - start) * 1000:10.1f} ms  {e.peer:<21} {e.event:<10} {e.text}" for e in entries]
        return "\n".join(lines)
