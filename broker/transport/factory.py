"""Which transport a configuration asks for."""

from __future__ import annotations

from broker.transport.interface import Transport


def is_embedded(urls: list[str]) -> bool:
    """Whether the broker is in this process, and no other can reach it."""
    return urls[0].startswith("memory:")


def create(urls: list[str], name: str = "auto") -> Transport:
    """The transport that the configuration names, for these URLs."""
    if is_embedded(urls):
        from broker.transport.memory import MemoryBroker

        return MemoryBroker()
    if name == "aio-pika":
        from broker.transport.amqp import AmqpTransport

        return AmqpTransport(urls)
    from broker.transport.lane import LaneTransport

    return LaneTransport(urls)
