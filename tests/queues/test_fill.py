"""``labkit queues``: a listener that accepts nothing, and what the kernel says meanwhile."""

from __future__ import annotations

import json

import pytest

from labkit import InvalidValue, Lab, NotAvailableHere, cli
from labkit.queues.fill import fill


def test_the_command_tells_limits_depths_and_counters(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["queues", "--backlog", "2", "--clients", "8", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["backlog"], told["limit"], told["accept_queue_peak"], told["clients"]) == (2, 2, 3, 8)
    assert told["history"]["counters"]["TcpExtListenOverflows"] >= 5
    assert told["history"]["syn_queue"]
    assert cli.main(["queues", "--seconds", "0.3"]) == 0
    assert "limit 4" in capsys.readouterr().out


def test_nothing_is_refused_where_there_is_room(lab: Lab) -> None:
    filled = fill(lab.client, lab.server, backlog=20, clients=5, seconds=2)
    assert (filled.accepted, filled.established) == (5, 5)
    assert "TcpExtListenOverflows" not in filled.history.counters
    with lab.server:
        assert fill(lab.client, lab.server, backlog=0, clients=1, seconds=0.1).history.limit.last == 0


@pytest.mark.parametrize(
    "wrong", [{"backlog": -1}, {"backlog": 1.5}, {"clients": 0}, {"clients": 9999}, {"seconds": -1}]
)
def test_values_that_cannot_be(lab: Lab, wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidValue, match=next(iter(wrong))):
        fill(lab.client, lab.server, **wrong)  # type: ignore[arg-type]


def test_loopback_has_no_such_queues(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LABKIT_TIER", "loopback")
    assert cli.main(["queues"]) == 1
    assert "labkit doctor" in capsys.readouterr().err
    with Lab(rtt_ms=0) as lab, pytest.raises(NotAvailableHere):
        fill(lab.client, lab.server)
