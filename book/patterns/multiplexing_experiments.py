"""What the section "Multiplexing and demultiplexing" measures with: Envoy's configuration, clients side by side."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from book.learn.live import key_of
from labkit.lab import Lab
from labkit.network.host import Host
from labkit.recorded import recall
from labkit.services import Envoy
from labkit.services.packaged import Packaged

T = TypeVar("T")

FRONT = """\
static_resources:
  listeners:
  - address: {{ socket_address: {{ address: {host}, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ prefix: "/" }}
                route: {{ cluster: backend }}
  clusters:
  - name: backend
    load_assignment:
      cluster_name: backend
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: {upstream}, port_value: {upstream_port} }} }} }}
"""


def front(listens: tuple[str, int], upstream: tuple[str, int], cluster: str = "") -> str:
    """The configuration of an Envoy that takes HTTP/1.1 and HTTP/2 on one port, and hands all of it to one backend.

    Args:
        listens: its own name and port: ("proxy.lab", 80).
        upstream: those of the backend.
        cluster: lines of YAML, further fields of the cluster.
    """
    text = FRONT.format(host=listens[0], port=listens[1], upstream=upstream[0], upstream_port=upstream[1])
    return text + "".join(f"    {line}\n" for line in cluster.strip().splitlines())


def counter(envoy: Envoy, name: str) -> int:
    """One of the numbers that Envoy keeps of its cluster, such as "upstream_cx_total"."""
    name = f"cluster.backend.{name}"
    lines = (line.partition(": ") for line in envoy.admin(f"/stats?filter={name}").splitlines())
    return next(int(value) for found, _, value in lines if found == name)


def installed(*services: type[Packaged]) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Above ``@recorded``: the recorded run is also what a machine shows on which one of these is not installed."""

    def decorate(run: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(run)
        def call(lab: Lab, *args: Any) -> T:
            missing = [service.program for service in services if not service.available()]
            if missing:
                recording: T = recall(key_of(run, lab, args), tier=f"without {', '.join(missing)}")
                return recording
            return run(lab, *args)

        return call

    return decorate


def where(lab: Lab, *services: type[Packaged]) -> str:
    """The tier of what these measure; "recorded" where this lab or a missing program makes it a recorded run."""
    return lab.tier if lab.can("kernel") and all(each.available() for each in services) else "recorded"


def how_to_install(lab: Lab, *services: type[Packaged]) -> str:
    """Whether these run here, and for what is missing the command that brings it."""
    if not lab.can("kernel"):
        return f"On the tier {lab.tier!r} you see recorded runs of {', '.join(each.__name__ for each in services)}"
    missing = [service for service in services if not service.available()]
    lines = [f"{each.__name__} is not installed, its runs are recorded ones: {each.install}" for each in missing]
    return "\n".join(lines) or "installed: " + ", ".join(each.__name__ for each in services)


def side_by_side(host: Host, calls: Iterable[Callable[[], T]]) -> list[T]:
    """Run these at the same time, each in a thread on a host. Returns what they return; raises what one raises."""
    waiting = list(calls)
    together = threading.Barrier(len(waiting))

    def run(call: Callable[[], T]) -> T:
        with host:
            together.wait(10)
            return call()

    with ThreadPoolExecutor(len(waiting)) as threads:
        return list(threads.map(run, waiting))


def on_a_loop(host: Host, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on a host, in a thread with a loop of its own: the notebook's own loop is running already."""

    def run() -> T:
        loop = asyncio.new_event_loop()
        with host:
            try:
                return loop.run_until_complete(work())
            finally:
                loop.close()

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(run).result()
