"""The lab's helper: the process that owns the namespaces, makes sockets in them and starts programs on hosts.

::

    notebook ──▶ guardian ──▶ helper (process 1 of a PID namespace) ──▶ wire, programs, their children

The guardian makes the lab's directory and the user, network and PID namespaces, waits, and removes the directory
when nothing is left that could write to it. The helper is the first process of the PID namespace, so when it ends
the kernel ends all that it started, even what has daemonised. It ends when the notebook's end of the control socket
closes or the notebook's process does: SIGKILL of the notebook leaves nothing. It ends, too, with the guardian and
with the wire.

A socket belongs to the namespace in which it was created, not to the process that uses it. So the helper enters
a host, opens a socket there, and passes the descriptor to the notebook.

Runs as ``python -I -S`` (no site-packages: 20 ms instead of 200), so standard library only.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from typing import Any, NamedTuple

from labkit.network import forked, rpc
from labkit.network.addresses import PREFIX6
from labkit.network.namespaces import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    MS_BIND,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    end_with_parent,
    enter_user_namespace,
    keep_network_capabilities,
    mount,
    setns,
    unshare,
)
from labkit.network.netlink import IFF_NOARP, IFF_UP, RouteSocket, turn_offloads_off
from labkit.network.ring import RingAhead

ENTERED = "entered"  # a file in the lab's directory: processes of the notebook's may be on hosts
STRAYS_S = 5.0
FIRST_DEVICE = "eth0"
# The same start on every machine. Values that the kernel refuses (a read-only /proc/sys) are reported, not hidden.
HOST_SYSCTLS = {
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": f"{os.getegid()} {os.getegid()}",
    "net.ipv4.tcp_fastopen": "3",
    # Each connection starts afresh, not with the cwnd and RTT that the last one left behind.
    "net.ipv4.tcp_no_metrics_save": "1",
    # Kernels differ in their default (cubic, bbr); Reno is built into all of them and is what RFC 5681 describes.
    "net.ipv4.tcp_congestion_control": "reno",
    # The send buffer lets one connection have about 5 MB in flight: 1 Gbit/s at an RTT of 40 ms, and no more
    # than the wire's ring holds, so that one fast sender cannot overrun the wire. Defaults differ with memory.
    "net.ipv4.tcp_rmem": "4096 131072 33554432",
    "net.ipv4.tcp_wmem": "4096 16384 7340032",
    # The kernel would derive both from the size of the host's table of connections, which is small (see below).
    "net.ipv4.tcp_max_syn_backlog": "2048",
    "net.ipv4.tcp_max_tw_buckets": "131072",
    "net.ipv6.conf.all.accept_ra": "0",
}
# To list a host's connections the kernel walks through the whole table, and the one that all namespaces share has
# 262,144 entries or so: half a millisecond for each look of labkit.queues. So hosts get a table of their own.
CONNECTION_TABLE = {"net.ipv4.tcp_child_ehash_entries": "8192"}


MOST_RINGS_AHEAD = 8
WIRE_ENDS_S = 1.0


def sysctl_path(name: str) -> str:
    return "/proc/sys/" + name.replace(".", "/")


def mac(number: int, side: int) -> bytes:
    """A locally administered address: side 0 is the host's, side 1 the wire's."""
    return bytes([2, 0, 0, 0, side, number])


class Interface(NamedTuple):
    """An interface of a host, and the network that it is in."""

    number: int
    device_index: int
    host: str
    network: int
    addresses: tuple[str, ...]


class Host:
    """A host's namespaces, as the helper knows it: that of its network, and that of its name where there is one."""

    def __init__(self, name: str, namespace: int, uts: int | None) -> None:
        self.name, self.namespace, self.uts = name, namespace, uts


class Helper:
    def __init__(self, control: socket.socket, directory: str, wire_pid: int) -> None:
        self.control = control
        self.wire_pid = wire_pid
        self.directory = directory
        self.ipv6 = os.path.exists("/proc/net/if_inet6")
        self.base = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        for sysctl, value in CONNECTION_TABLE.items():
            with contextlib.suppress(OSError):  # kernels before 6.1, or a read-only /proc/sys: looks cost more
                with open(sysctl_path(sysctl), "w") as file:
                    file.write(value)
        self.hosts: dict[str, Host] = {}
        self.interfaces: list[Interface] = []
        self.poll = select.poll()
        self.programs: dict[int, socket.socket] = {}  # pid → where its exit status is awaited
        self.handlers: dict[str, rpc.Handler] = {
            "add_host": self.add_host,
            "add_interface": self.add_interface,
            "socket": self.open_socket,
            "namespaces": self.namespaces,
            "read": self.read_file,
            "write": self.write_file,
            "spawn": self.spawn,
            "signal": self.signal_program,
        }

    @contextlib.contextmanager
    def on(self, name: str) -> Any:
        """Be on a host for the length of a block."""
        setns(self.hosts[name].namespace, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(self.base, CLONE_NEWNET)

    def add_host(self, request: dict[str, Any], *_: object) -> tuple[rpc.Reply, list[int]]:
        """A namespace, and its first interface."""
        name = request["name"]
        unshare(CLONE_NEWNET)
        namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        setns(self.base, CLONE_NEWNET)
        uts, no_name = own_name(name)
        self.hosts[name] = Host(name, namespace, uts)
        refused = dict(no_name)
        try:
            with self.on(name), RouteSocket() as route:
                for sysctl, value in HOST_SYSCTLS.items():
                    try:
                        with open(sysctl_path(sysctl), "w") as file:
                            file.write(value)
                    except OSError as exc:
                        refused[sysctl] = exc.strerror or str(exc)
                route.set_flags(socket.if_nametoindex("lo"), IFF_UP, IFF_UP)
            reply = self.add_interface(request)[0]
        except OSError:
            os.close(self.hosts.pop(name).namespace)
            raise
        return {**reply, "refused": refused}, []

    def add_interface(self, request: dict[str, Any], *_: object) -> tuple[rpc.Reply, list[int]]:
        """A veth pair between a host and the wire, addresses, and permanent neighbours all round."""
        number, name, device = request["number"], request["name"], request["device"]
        wire_side = f"wire{number}"
        ip6 = request["ip6"] if self.ipv6 else ""
        with RouteSocket() as here:
            here.add_veth(wire_side, mac(number, 1), device, mac(number, 0), self.hosts[name].namespace)
            index = socket.if_nametoindex(wire_side)
            if ip6:
                here.no_link_local(index)
            here.set_flags(index, IFF_UP, IFF_UP)
            turn_offloads_off(wire_side)
            with self.on(name), RouteSocket() as route:
                turn_offloads_off(device)
                device_index = socket.if_nametoindex(device)
                if ip6:
                    route.no_link_local(device_index)
                # All neighbours are known. With NOARP the kernel asks for none and joins no multicast group, so no
                # ARP, neighbour solicitation or MLD report ever stands between the packets of a lesson.
                route.set_flags(device_index, IFF_UP | IFF_NOARP, IFF_UP | IFF_NOARP)
                route.add_address(device_index, request["ip"], request["bits"])
                if ip6:
                    route.add_address(device_index, ip6, PREFIX6)
            here.wait_until_up(index)  # else the wire's first frames for this host may be dropped, unseen
        addresses = tuple(filter(None, (request["ip"], ip6)))
        new = Interface(number, device_index, name, request["subnet"], addresses)
        for other in self.interfaces:
            if other.network == new.network:
                self.introduce(new, other)
                self.introduce(other, new)
        self.interfaces.append(new)
        # A further interface has a name of its own, so that a name means one address; and programs that ask for the
        # name of each address, as traceroute does, do not wait for a DNS server.
        names = f"{name}.lab {name}" if device == FIRST_DEVICE else f"{device}.{name}.lab"
        with open(os.path.join(self.directory, "hosts"), "a") as file:
            file.write(f"{request['ip']} {names}\n")
        chosen = {"interface": wire_side, "interface_index": index, "device_index": device_index, "ip6": ip6}
        return {**chosen, "refused": {}}, []

    def introduce(self, to: Interface, other: Interface) -> None:
        """Tell a host another's link address, which it would else ask for with ARP and wait a round trip."""
        with self.on(to.host), RouteSocket() as route:
            for address in other.addresses:
                route.add_neighbour(to.device_index, address, mac(other.number, 0))

    def open_socket(self, request: dict[str, Any], *_: object) -> tuple[rpc.Reply, list[int]]:
        arguments = request["family"], request["type"], request["proto"]
        if request["host"] is None:  # in the wire's own namespace: how a capture sees every link at once
            sock = socket.socket(*arguments)
        else:
            with self.on(request["host"]):
                sock = socket.socket(*arguments)
        return {}, [sock.detach()]

    def namespaces(self, request: dict[str, Any], *_: object) -> tuple[rpc.Reply, list[int]]:
        """Of a host, by their names in /proc/self/ns: for processes of the notebook's that enter it."""
        host = self.hosts[request["host"]]
        open(os.path.join(self.directory, ENTERED), "w").close()
        own = {kind: os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("user", "mnt")}
        # Copies, because what is sent is closed here.
        own["net"] = os.dup(host.namespace)
        if host.uts is not None:
            own["uts"] = os.dup(host.uts)
        own["lab"] = os.pidfd_open(os.getpid())  # tells when the lab has ended, in whatever way
        return {"kinds": list(own)}, list(own.values())

    def read_file(self, request: dict[str, Any], *_: object) -> tuple[rpc.Reply, list[int]]:
        with self.on(request["host"]), open(request["path"]) as file:
            return {"text": file.read()}, []

    def write_file(self, request: dict[str, Any], *_: object) -> tuple[rpc.Reply, list[int]]:
        with self.on(request["host"]), open(request["path"], "w") as file:
            file.write(request["text"])
        return {}, []

    def spawn(
        self, request: dict[str, Any], descriptors: list[int], reply_socket: socket.socket
    ) -> tuple[rpc.Reply, list[int]] | None:
        """Start a program on a host. Answers twice: when it is executing (or cannot), and when it has ended."""
        host = self.hosts[request["host"]]

        def enter() -> None:
            setns(host.namespace, CLONE_NEWNET)
            if host.uts is not None:
                setns(host.uts, CLONE_NEWUTS)
            for target, descriptor in enumerate(descriptors[:3]):
                os.dup2(descriptor, target)
            keep_network_capabilities()

        pid = forked.start(request["argv"], request["env"], request["cwd"], enter)
        self.programs[pid] = reply_socket
        self.poll.register(reply_socket, 0)  # which tells when its other end has gone
        with contextlib.suppress(rpc.Disconnected):
            rpc.send(reply_socket, {"pid": pid})
        return None

    def abandon(self, descriptor: int) -> None:
        """End a program whose caller has gone: it was interrupted, and nobody knows of the program."""
        self.poll.unregister(descriptor)
        for pid, waiting in self.programs.items():
            if waiting.fileno() == descriptor:
                os.killpg(pid, signal.SIGKILL)

    def signal_program(self, request: dict[str, Any], *_: object) -> tuple[rpc.Reply, list[int]]:
        """Signal a program and the processes it started, which share its session's process group."""
        with contextlib.suppress(ProcessLookupError):  # all of them have ended
            os.killpg(request["pid"], request["signal"])
        return {}, []

    def reap(self) -> None:
        """Collect what has ended: as process 1 of its namespace the helper inherits every orphan.

        Raises Disconnected where the wire is what has ended: its lab is of no use.
        """
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.wire_pid:
                    raise rpc.Disconnected
                waiting = self.programs.pop(pid, None)
                if waiting is not None:
                    with contextlib.suppress(KeyError):  # abandoned before
                        self.poll.unregister(waiting)
                    with contextlib.suppress(rpc.Disconnected), waiting:
                        rpc.send(waiting, {"exit": os.waitstatus_to_exitcode(status)})

    def end_wire(self) -> None:
        """Let the wire close its rings, which it does side by side, and the kernel one after the other."""
        with contextlib.suppress(ProcessLookupError):
            wire = os.pidfd_open(self.wire_pid)
            os.kill(self.wire_pid, signal.SIGTERM)
            select.select([wire], [], [], WIRE_ENDS_S)

    def run(self, notebook: int, wakeup: socket.socket) -> None:
        """Serve until the notebook's process or its end of the control socket has gone."""
        for descriptor in (self.control.fileno(), notebook, wakeup.fileno()):
            self.poll.register(descriptor, select.POLLIN)
        while True:
            told = [descriptor for descriptor, _ in self.poll.poll()]
            ours = {self.control.fileno(), notebook, wakeup.fileno()}
            for descriptor in (each for each in told if each not in ours):  # first: those below may close it
                self.abandon(descriptor)
            for descriptor in (each for each in told if each in ours):
                if descriptor == notebook:
                    return
                try:
                    if descriptor == wakeup.fileno():
                        wakeup.recv(4096)
                        self.reap()
                    else:
                        rpc.answer_one(self.control, self.handlers)
                except rpc.Disconnected:
                    return


def enter_namespaces() -> None:
    """New user, mount, network and PID namespaces; only the last three where a root may not have the first."""
    try:
        enter_user_namespace()
    except OSError:
        if os.geteuid() != 0:
            raise
    unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID)


def own_name(name: str) -> tuple[int | None, dict[str, str]]:
    """A namespace in which the machine has a host's name, so that a program that asks for the address of its own name
    (Erlang, Java, sudo) finds it in the hosts file. Returns its descriptor and what the kernel refused."""
    try:
        unshare(CLONE_NEWUTS)
        socket.sethostname(name)
    except OSError as exc:
        return None, {"host name": exc.strerror or str(exc)}
    return os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC), {}


def hosts_file(directory: str) -> dict[str, str]:
    """Give programs the lab's names by an /etc/hosts of their own. Returns what the kernel refused."""
    path = os.path.join(directory, "hosts")
    with open(path, "w") as file:
        file.write("127.0.0.1 localhost\n::1 localhost\n")
        # Where a host cannot have a name of its own, its programs ask for the machine's. As Debian has it.
        file.write(f"127.0.1.1 {socket.gethostname()}\n")
    os.chmod(path, 0o644)  # whatever the umask: for programs that change their user
    try:
        mount("none", "/", MS_REC | MS_PRIVATE)
        mount(path, "/etc/hosts", MS_BIND)
    except OSError as exc:
        return {"hosts file": exc.strerror or str(exc)}
    return {}


def end_what_entered() -> None:
    """Kill the notebook's own processes on hosts (labkit.network.enter), and their children: all that share the mount
    namespace of this process. They are not in the lab's PID namespace, so that the notebook can be their parent."""
    own = os.stat("/proc/self/ns/mnt").st_ino
    deadline = time.monotonic() + STRAYS_S
    found = True
    while found and time.monotonic() < deadline:
        found = False
        for number in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):  # of another user, or it has ended meanwhile
                process = os.open(f"/proc/{number}", os.O_RDONLY | os.O_DIRECTORY)
                try:
                    if number != os.readlink("/proc/self") and os.stat("ns/mnt", dir_fd=process).st_ino == own:
                        found = True
                        signal.pidfd_send_signal(process, signal.SIGKILL)
                finally:
                    os.close(process)
        time.sleep(0.001 if found else 0)  # until the kernel has taken them away


def main() -> None:
    """Arguments: descriptor of the control socket, of the wire's, of the notebook's pidfd; directory; seed; how many
    interfaces there will be at once; "fixed" to take the right to change kernel settings away, for a rehearsal of
    machines that do so."""
    control_number, wire_number, notebook = (int(text) for text in sys.argv[1:4])
    directory, seed, interfaces, fixed_sysctls = sys.argv[4], int(sys.argv[5]), int(sys.argv[6]), sys.argv[7] == "fixed"
    for descriptor in (control_number, wire_number, notebook):
        os.set_inheritable(descriptor, False)  # none of the programs' business
    control, wire_control = socket.socket(fileno=control_number), socket.socket(fileno=wire_number)
    os.mkdir(directory, 0o700)
    try:
        enter_namespaces()
        if fixed_sysctls:
            mount("/proc/sys", "/proc/sys", MS_BIND)
            mount("/proc/sys", "/proc/sys", MS_BIND | MS_REMOUNT | MS_RDONLY)
        helper = os.fork()
    except OSError as exc:
        os.rmdir(directory)
        rpc.send(control, {"errno": exc.errno, "error": exc.strerror})
        os._exit(1)
    if helper:
        control.close()
        wire_control.close()
        import shutil  # now that nobody waits for it

        os.waitpid(helper, 0)
        if os.path.exists(os.path.join(directory, ENTERED)):
            end_what_entered()
        shutil.rmtree(directory, ignore_errors=True)
        os._exit(0)
    try:
        end_with_parent()
        helper_main(control, wire_control, notebook, directory, seed, interfaces)
    except BaseException:
        import traceback

        traceback.print_exc()  # to standard error, which the notebook quotes
        os._exit(1)
    os._exit(0)


def helper_main(
    control: socket.socket, wire_control: socket.socket, notebook: int, directory: str, seed: int, interfaces: int
) -> None:
    """Process 1: start the wire, say that the lab is there, serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wakeup, waker = socket.socketpair()
    for end in (wakeup, waker):
        end.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    refused = hosts_file(directory)
    wire_pid = os.fork()
    if wire_pid == 0:
        control.close()
        # The kernel takes some 10 ms for a ring, and Python for the wire's modules: both at once.
        rings = [RingAhead() for _ in range(min(interfaces, MOST_RINGS_AHEAD))]
        from labkit.network import wire

        wire.main(wire_control, seed, rings)
    wire_control.close()
    helper = Helper(control, directory, wire_pid)
    rpc.send(control, {"pid": int(os.readlink("/proc/self")), "refused": refused})
    helper.run(notebook, wakeup)
    helper.end_wire()
