"""What is started or opened inside ``with host:`` is on that host, or is refused: no packet of it leaves the lab.

The proof runs in a network namespace of its own whose default route and name server lead to one interface. A packet
socket there counts what goes out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import ORDINARY

ROOT = Path(__file__).resolve().parents[2]

# Run as root of a user namespace of its own, which gives it a network and a name server in the wide world.
WORLD = """
set -e
ip link add world type veth peer name nobody
for end in world nobody; do ip link set $end addrgenmode none arp off up; done
ip link set lo up
ip address add 10.9.8.7/24 dev world
ip address add fd09::7/64 dev world nodad
ip route add default via 10.9.8.1 && ip -6 route add default via fd09::1
printf 'nameserver 10.9.8.1\noptions timeout:1 attempts:1\n' >resolv.conf
mount --bind resolv.conf /etc/resolv.conf
exec "$@"
"""

WAYS = """
import socket, sys

def tell(way, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(way.encode(), ("192.0.2.2", port))
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.sendto(way.encode(), ("2001:db8::2", port))
    try:
        return socket.gethostbyname("example.org")
    except OSError:
        return "no name server"

if sys.argv[1] == "tell":
    print(tell(sys.argv[2], int(sys.argv[3])))
    sys.exit()

import asyncio, concurrent.futures, json, multiprocessing, os, subprocess

def leaving(sock):
    sock.setblocking(False)
    count = 0
    try:
        while True:
            data = sock.recv(65536)
            count += not data.startswith(b"\\x33\\x33")  # the kernel's own multicast reports
    except BlockingIOError:
        return count

def main():
    seen = socket.socket(fileno=int(sys.argv[1]))
    try:
        socket.gethostbyname("example.org")
    except OSError:
        pass
    report = {"counted outside": leaving(seen)}
    from labkit import Lab
    with Lab(rtt_ms=0) as lab:
        heard, heard6 = (lab.server.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6))
        heard.bind((lab.server.ip, 0))
        port = heard.getsockname()[1]
        heard6.bind((lab.server.ip6, port))
        with lab.client:
            report["answers"] = ways(port)
            report["refused"] = refused()
        told = [[], []]
        for sock, words in zip((heard, heard6), told):
            sock.settimeout(10)
            words += sorted(sock.recvfrom(100)[0].decode() for _ in report["answers"])
            heard6.settimeout(10)
        report["told"] = told
    report["left"] = leaving(seen)
    print(json.dumps(report))

def ways(port):
    answers = {}
    def program(way):
        return [sys.executable, "-I", "-S", sys.argv[0], "tell", way, str(port)]
    def line(way):
        return " ".join(program(way)) + " >/dev/null"
    def waited(way, pid):
        answers[way] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    answers["run"] = subprocess.run(program("run"), capture_output=True, text=True).stdout.strip()
    answers["shell"] = subprocess.getoutput(line("shell"))
    answers["system"] = os.system(line("system"))
    waited("posix_spawn", os.posix_spawn(sys.executable, program("posix_spawn"), os.environ))
    waited("posix_spawnp", os.posix_spawnp("sh", ["sh", "-c", line("posix_spawnp")], os.environ))
    answers["spawnv"] = os.spawnv(os.P_WAIT, sys.executable, program("spawnv"))
    pid = os.fork()
    if pid == 0:
        os.execv(sys.executable, program("fork and exec"))
    waited("fork and exec", pid)
    pid, terminal = os.forkpty()
    if pid == 0:
        os.execv(sys.executable, program("forkpty"))
    waited("forkpty", pid)
    os.close(terminal)
    async def started():
        process = await asyncio.create_subprocess_exec(*program("asyncio"), stdout=subprocess.PIPE)
        return (await process.communicate())[0].decode().strip()
    answers["asyncio"] = asyncio.run(started())
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            answers[method] = pool.submit(tell, method, port).result()
    return answers

def refused():
    import grpc, psycopg, zmq
    def grpc_server():
        grpc.server(concurrent.futures.ThreadPoolExecutor(1)).add_insecure_port("[::]:50051")
    attempts = {
        "psycopg": lambda: psycopg.connect("host=server.lab connect_timeout=2"),
        "psycopg with an address": lambda: psycopg.connect("hostaddr=192.0.2.2 connect_timeout=2"),
        "grpcio": lambda: grpc.insecure_channel("server.lab:50051"),
        "grpcio's server": grpc_server,
        "pyzmq": lambda: zmq.Context.instance().socket(zmq.REQ).connect("tcp://192.0.2.2:50051"),
        "getaddrinfo": lambda: socket.getaddrinfo("example.org", 80),
        "gethostbyname_ex": lambda: socket.gethostbyname_ex("example.org"),
        "gethostbyaddr": lambda: socket.gethostbyaddr("203.0.113.9"),
        "getnameinfo": lambda: socket.getnameinfo(("203.0.113.9", 80), socket.NI_NAMEREQD),
        "connect": lambda: socket.socket().connect(("example.org", 80)),
        "sendmsg": lambda: socket.socket(type=socket.SOCK_DGRAM).sendmsg([b"x"], [], 0, ("example.org", 80)),
        "exec": lambda: os.execv("/bin/true", ["true"]),
    }
    words = {}
    for way, attempt in attempts.items():
        try:
            attempt()
        except Exception as exc:
            words[way] = f"{type(exc).__name__}: {exc}"
    return words

if __name__ == "__main__":
    main()
"""

WATCHED = """
import socket, subprocess, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as seen:
    seen.bind(("world", 0))
    command = [*sys.argv[2:], sys.executable, sys.argv[1], str(seen.fileno())]
    sys.exit(subprocess.call(command, pass_fds=[seen.fileno()]))
"""

USERS = {"root": (), "an ordinary user": ORDINARY}


@pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="this kernel has no IPv6")
@pytest.mark.parametrize("user", USERS)
def test_no_packet_leaves(user: str, tmp_path: Path, require_program: Callable[[str], str]) -> None:
    require_program("ip")
    (tmp_path / "ways.py").write_text(WAYS)
    command = ["unshare", "-Urnm", "sh", "-c", WORLD, "sh", sys.executable, "-c", WATCHED]
    done = subprocess.run(
        [*command, str(tmp_path / "ways.py"), *USERS[user]],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "PYTHONSAFEPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["counted outside"] > 0  # or the test could not fail
    nobody = "no name server"
    assert report["answers"] == {
        "run": nobody,
        "asyncio": nobody,
        "fork": nobody,
        "spawn": nobody,
        "forkserver": nobody,
        "shell": "",
        **dict.fromkeys(["system", "posix_spawn", "posix_spawnp", "spawnv", "fork and exec", "forkpty"], 0),
    }
    assert report["told"] == [sorted(report["answers"])] * 2
    assert report["left"] == 0
    refused = report["refused"]
    assert len(refused) == 12, refused
    for way in ("psycopg", "psycopg with an address", "grpcio", "grpcio's server", "pyzmq", "exec"):
        assert "lab.client.run([...])" in refused[way]
        assert way == "exec" or refused[way].startswith("OutsideTheLab")
    for way in ("getaddrinfo", "gethostbyname_ex", "connect", "sendmsg"):
        assert refused[way].startswith("gaierror") and "is no host of this lab" in refused[way]
