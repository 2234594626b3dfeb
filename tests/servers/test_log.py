from __future__ import annotations

from labkit.servers import Log


def test_a_log_is_a_bounded_sequence() -> None:
    log = Log(max_entries=3)
    for number in range(5):
        log.add("request", "192.0.2.1:4000", f"GET /{number}", {"number": number})
    assert [entry.text for entry in log] == ["GET /2", "GET /3", "GET /4"]
    assert len(log) == 3
    assert log[-1].facts == {"number": 4}
    assert log[:2] == [log[0], log[1]]
    assert log.of("error") == []


def test_a_log_shows_itself_as_a_table() -> None:
    log = Log()
    assert repr(log) == "<Log, empty>"
    log.add("request", "192.0.2.1:4000", "GET /")
    log.add("response", "192.0.2.1:4000", "200, 5 bytes")
    first, second = repr(log).splitlines()
    assert first.split() == ["0.0", "ms", "192.0.2.1:4000", "request", "GET", "/"]
    assert second.endswith("200, 5 bytes")
