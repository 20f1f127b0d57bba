"""Small services to try things out with."""

from typing import Any

from broker import Service


class Echo(Service):
    """Answers with what it was sent."""

    async def handle(self) -> Any:
        return self.request.payload


class InputLogger(Service):
    """Logs what it was sent; fit to be anybody's callback."""

    async def handle(self) -> None:
        self.logger.info(
            "Received %r (%s, from %s)", self.request.payload, self.request.content_type, self.request.source
        )


class ZatoInputLogger(InputLogger):
    name = "zato.helpers.input-logger"
