"""Services that run once for each message: a repeat is answered with the outcome that was kept.

Whoever handles a message first claims its identity in a store, and keeps the outcome there before it is published. A claim is a
lease that is renewed as long as the handler runs: if its process dies, another may take over once the lease is over. So `handle` runs
again only if its process died, or lost the store, after its work was done and before the outcome was kept.
Failures are not kept: a message that failed may be tried again, and a dead letter replayed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from broker.log import logger
from broker.protocol import archive
from broker.protocol import headers as h
from broker.protocol.cids import seed_of
from broker.protocol.delays import delayed
from broker.protocol.message import Message, Publishing
from broker.protocol.outcomes import NOTHING, Outcome, republished
from broker.stores.interface import Claim, Store, StoreError

LEASE = 30.0
BUSY_AGAIN_AFTER = 1


class Once:
    """Runs handlers once for each message, as far as its store can tell."""

    def __init__(self, store: Store, keep_for: float) -> None:
        self._store = store
        self._keep_for = keep_for
        self._failing = False

    async def run(
        self, service: str, message: Message, handling: Coroutine[Any, Any, Outcome], *, is_reply: bool
    ) -> Outcome:
        """The outcome of `handling`, or the one that is kept for this message. If another process is at it, the message comes again."""
        try:
            return await self._run(service, message, handling, is_reply)
        finally:
            handling.close()  # it may not have begun

    async def _run(
        self, service: str, message: Message, handling: Coroutine[Any, Any, Outcome], is_reply: bool
    ) -> Outcome:
        key, owner = identity(service, message), secrets.token_hex(8)
        try:
            claimed = await self._store.claim(key, owner, LEASE)
        except StoreError as error:
            if not self._failing:
                self._failing = True
                logger.error("%s; messages of idempotent services wait until it works", error)
            return self._later(service, message, is_reply)
        if self._failing:
            self._failing = False
            logger.info("the store of idempotent services works again")
        if claimed is Claim.BUSY:
            return self._later(service, message, is_reply)
        if isinstance(claimed, str):
            logger.info("a repeat: answered with the outcome that was kept", extra={"cid": message.correlation_id})
            return _answered(message, claimed)
        return await self._handled(key, owner, handling)

    async def _handled(self, key: str, owner: str, handling: Coroutine[Any, Any, Outcome]) -> Outcome:
        renewing = asyncio.ensure_future(self._renew(key, owner))
        outcome: Outcome | None = None
        try:
            outcome = await handling
        finally:
            renewing.cancel()
            try:
                if outcome is None or outcome.dead or outcome.again:
                    await self._store.release(key, owner)
                elif not await self._store.keep(key, owner, _kept(outcome), self._keep_for):
                    logger.warning("another process has taken over meanwhile: the outcome is not kept")
            except StoreError as error:
                logger.error("%s: the outcome is not kept", error)
        return outcome

    async def _renew(self, key: str, owner: str) -> None:
        while True:
            await asyncio.sleep(LEASE / 3)
            with suppress(StoreError):
                await self._store.claim(key, owner, LEASE)

    @staticmethod
    def _later(service: str, message: Message, is_reply: bool) -> Outcome:
        again = Publishing(service, republished(message, is_reply=is_reply))
        return Outcome(again=delayed(again, BUSY_AGAIN_AFTER))


def identity(service: str, message: Message) -> str:
    """What repeats of a message have in common. A reply that was passed on is the same as the one that came to the callback queue."""
    if h.STATUS in message.headers and message.message_id:
        return f"{service}\0{_text(message.message_id.removesuffix('/' + service))}"
    # Stores keep text: what a foreign client has sent need not be UTF-8.
    return seed_of(message, service, message.correlation_id or "").decode("utf-8", "backslashreplace")


def _text(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _kept(outcome: Outcome) -> str:
    return archive.dumps(outcome.reply.message) if outcome.reply else ""


def _answered(request: Message, kept: str) -> Outcome:
    if not kept or not request.reply_to:
        return NOTHING
    message = archive.loads(kept)
    message.correlation_id = request.correlation_id
    message.headers = {k: v for k, v in message.headers.items() if k not in h.ECHOED} | h.echoed(request.headers)
    return Outcome(reply=Publishing(request.reply_to, message))
