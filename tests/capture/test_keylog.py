from __future__ import annotations

from labkit.capture.keylog import KeyLog

RANDOM = bytes(range(32))


def test_secrets_are_found_by_label_and_client_random():
    log = KeyLog.parse(f"CLIENT_RANDOM {RANDOM.hex()} {'ab' * 48}\nSERVER_TRAFFIC_SECRET_0 {RANDOM.hex()} cdef\n")
    assert log.secret("CLIENT_RANDOM", RANDOM) == b"\xab" * 48
    assert log.secret("SERVER_TRAFFIC_SECRET_0", RANDOM) == b"\xcd\xef"
    assert log.secret("CLIENT_TRAFFIC_SECRET_0", RANDOM) is None
    assert log.secret("CLIENT_RANDOM", bytes(32)) is None


def test_malformed_lines_are_ignored():
    good = f"CLIENT_RANDOM {RANDOM.hex()} 01"
    log = KeyLog.parse(
        f"# a comment\n\n{good}\nCLIENT_RANDOM\nCLIENT_RANDOM xyz 01\nCLIENT_RANDOM {RANDOM.hex()} 0\n"
        f"CLIENT_RANDOM {RANDOM.hex()[2:]} 01\nCLIENT_RANDOM {RANDOM.hex()} 02 03\n\0\xff binary\n"
        f"SERVER_TRAFFIC_SECRET_0 {RANDOM.hex()}"
    )
    assert len(log) == 1
    assert log.secret("CLIENT_RANDOM", RANDOM) == b"\x01"


def test_labels_of_old_quic_libraries():
    log = KeyLog.parse(f"QUIC_SERVER_TRAFFIC_SECRET_0 {RANDOM.hex()} 01")
    assert log.secret("SERVER_TRAFFIC_SECRET_0", RANDOM) == b"\x01"


def test_repr_shows_no_secret():
    log = KeyLog.parse(f"CLIENT_RANDOM {RANDOM.hex()} deadbeef")
    assert repr(log) == "KeyLog(1 secrets of 1 sessions)"
