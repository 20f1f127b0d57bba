"""Services that answer at once: is anybody there?"""

from broker import Service


class Ping(Service):
    name = "ping"

    def handle(self) -> dict[str, str]:
        return {"ping": "pong"}


class ZatoPing(Service):
    name = "zato.ping"

    def handle(self) -> dict[str, str]:
        return {"pong": "zato"}
