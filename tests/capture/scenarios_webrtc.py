"""WebRTC between two peers of aiortc: STUN, DTLS, SRTP, and a data channel in SCTP."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from recorder import Recorder


def webrtc(recorder: Recorder) -> None:
    """One offers a data channel and a track of sound, the other takes them."""
    import aioice.ice
    from aiortc import RTCCertificate, RTCPeerConnection
    from aiortc.mediastreams import AudioStreamTrack

    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]
    create = RTCCertificate._create_ssl_context

    def with_keylog(self: RTCCertificate, **options: Any) -> Any:
        context = create(self, **options)
        context.set_keylog_callback(lambda _, line: _append(recorder.keylog, line))
        return context

    RTCCertificate._create_ssl_context = with_keylog

    async def run() -> None:
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

        offering.addTrack(AudioStreamTrack())
        channel = offering.createDataChannel("chat", ordered=False)
        channel.on("open", lambda: channel.send("hello"))
        channel.on("message", answered.set_result)
        await offering.setLocalDescription(await offering.createOffer())
        await answering.setRemoteDescription(offering.localDescription)
        await answering.setLocalDescription(await answering.createAnswer())
        await offering.setRemoteDescription(answering.localDescription)
        assert await asyncio.wait_for(answered, 20) == "echo hello"
        await asyncio.wait_for(heard.wait(), 20)
        await offering.close()
        await answering.close()

    asyncio.run(run())


def _append(path: Path, line: bytes) -> None:
    with path.open("ab") as file:
        file.write(line + b"\n")
