"""What only the lane can do: strings that are not UTF-8, on which aio-pika's codec ends the connection."""

from __future__ import annotations

from typing import Any

from broker import Service
from broker.protocol.message import Message
from broker.transport.lane import LaneTransport
from tests.support import run, running, unique

RAW = "\udcff\udc80raw"


def test_strings_that_are_not_utf_8_come_back_byte_for_byte(rabbitmq_url: str) -> None:
    class Echo(Service):
        name = unique("echo")

        async def handle(self) -> Any:
            self.logger.info("handling")
            if self.request.payload == "fail":
                raise ValueError(self.request.headers["mine"])
            return self.request.payload

    async def test() -> None:
        async with running(LaneTransport([rabbitmq_url]), Echo) as daemon:
            strange = {"correlation_id": RAW, "message_id": RAW, "type": RAW, "app_id": RAW}
            reply = await daemon.ask(Echo.name, Message(b"x", headers={"mine": RAW, RAW: 1}, **strange))
            assert (reply.body, reply.correlation_id, reply.message_id) == (b"x", RAW, f"{RAW}/reply")
            failed = await daemon.ask(Echo.name, Message(b"fail", headers={"mine": RAW, RAW: 1}, **strange))
            assert failed.headers["status"] == "error"
            dead = await daemon.dead_letter(RAW)
            assert (dead.headers[RAW], dead.headers["mine"], dead.type) == (1, RAW, RAW)
            # As a content type, a character set or one of the protocol's own headers it is only invalid.
            for wrong in (
                {"content_type": RAW},
                {"content_encoding": RAW},
                {"headers": {"callback": RAW}},
                {"headers": {"source": RAW}},
            ):
                reply = await daemon.ask(Echo.name, Message(b"x", correlation_id=unique("c"), **wrong))
                assert reply.headers["status"] in ("ok", "error")
            assert (await daemon.ask(Echo.name, Message(b"still here"))).body == b"still here"

    run(test())
