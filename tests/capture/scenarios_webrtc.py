"""WebRTC between two peers of aiortc: STUN, DTLS, SRTP, and a data channel in SCTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from unittest import mock

from recorder import Recorder

Host = tuple[str, AbstractContextManager[Any]]  # a peer's address, and what to enter to be there


def webrtc(recorder: Recorder) -> None:
    """Two peers on one machine."""
    here = "127.0.0.1", nullcontext()
    talk(here, here, recorder.keylog)


def talk(offering_at: Host, answering_at: Host, keylog: Path) -> None:
    """One offers a data channel and a track of sound, the other takes them."""
    import aioice.ice
    from aiortc import RTCCertificate

    address = ContextVar[str]("address")
    create = RTCCertificate._create_ssl_context

    def with_keylog(self: RTCCertificate, **options: Any) -> Any:
        context = create(self, **options)
        context.set_keylog_callback(lambda _, line: _append(keylog, line))
        return context

    def addresses(use_ipv4: bool, use_ipv6: bool) -> list[str]:
        return [address.get()]

    @contextmanager
    def at(host: Host) -> Iterator[None]:
        token = address.set(host[0])
        with host[1]:
            yield
        address.reset(token)

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(RTCCertificate, "_create_ssl_context", with_keylog))
        patches.enter_context(mock.patch.object(aioice.ice, "get_host_addresses", addresses))
        asyncio.run(_talk(lambda: at(offering_at), lambda: at(answering_at)))


async def _talk(on_offering: Any, on_answering: Any) -> None:
    from aiortc import RTCPeerConnection
    from aiortc.mediastreams import AudioStreamTrack

    offering, answering = RTCPeerConnection(), RTCPeerConnection()
    loop = asyncio.get_running_loop()
    answered, heard = loop.create_future(), asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    @answering.on("datachannel")
    def opened(channel: Any) -> None:
        channel.on("message", lambda text: channel.send(f"echo {text}"))

    @answering.on("track")
    def track(track: Any) -> None:
        async def listen() -> None:
            for _ in range(3):
                await track.recv()
            heard.set()

        tasks.append(loop.create_task(listen()))

    with on_offering():
        offering.addTrack(AudioStreamTrack())
        channel = offering.createDataChannel("chat", ordered=False)
        channel.on("open", lambda: channel.send("hello"))
        channel.on("message", answered.set_result)
        await offering.setLocalDescription(await offering.createOffer())
    with on_answering():
        await answering.setRemoteDescription(offering.localDescription)
        await answering.setLocalDescription(await answering.createAnswer())
    with on_offering():
        await offering.setRemoteDescription(answering.localDescription)
    assert await asyncio.wait_for(answered, 20) == "echo hello"
    await asyncio.wait_for(heard.wait(), 20)
    await offering.close()
    await answering.close()


def _append(path: Path, line: bytes) -> None:
    with path.open("ab") as file:
        file.write(line + b"\n")
