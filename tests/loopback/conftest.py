"""Labs of the tier "loopback", whatever this machine could give."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from labkit import Lab


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_TIER", "loopback")


@pytest.fixture
def lab(loopback: None) -> Iterator[Lab]:
    """A lab whose two hosts are 10 ms apart."""
    with Lab(rtt_ms=10) as lab:
        yield lab
