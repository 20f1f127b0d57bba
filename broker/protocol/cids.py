"""Correlation IDs: new ones are random, those made inside a handler are derived."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import overload

from broker.protocol.message import Message

MAX_SHORTSTR = 255

_BYTES = 16
_KEYED = hashlib.blake2b(digest_size=_BYTES, key=b"ackback invocation")


def new_cid() -> str:
    """128 random bits in hex."""
    return os.urandom(_BYTES).hex()


def check_cid(cid: str) -> str:
    """Return a CID that a user gave, if AMQP can carry it.

    Raises:
        ValueError: it is empty or longer than 200 bytes.
    """
    if not isinstance(cid, str) or not cid or len(cid.encode()) > 200:
        raise ValueError(f"a CID is a string of 1 to 200 bytes, not {cid!r:.60}")
    return cid


def derived_cid(seed: bytes, ordinal: int) -> str:
    """The CID of the `ordinal`th invocation (from 0) of the handler that `seed` stands for.

    The same for every attempt, so that what a retried or redelivered handler sends again is recognised.
    """
    keyed = _KEYED.copy()
    keyed.update(b"%b/%d" % (seed, ordinal))
    return keyed.hexdigest()


def reply_id(cid: str, callback: str = "") -> str:
    """The message ID of the reply to `cid`, or of its copy for one callback.

    A foreign CID may be as long as AMQP allows a message ID to be (255 bytes): then a hash of it takes its place.
    """
    suffix = f"/reply/{callback}" if callback else "/reply"
    if len(cid) * 4 + len(suffix) > MAX_SHORTSTR and len(_encoded(cid)) + len(suffix) > MAX_SHORTSTR:
        cid = hashlib.blake2b(_encoded(cid), digest_size=_BYTES).hexdigest()
    return cid + suffix


def seed_of(message: Message, service: str, cid: str) -> bytes:
    """What the derived CIDs of one message's handling hang on: its ID and the service.

    Foreign clients may leave the message ID out and use one correlation ID again and again: then the body counts, too.
    """
    if message.message_id:
        return _encoded(f"{service}\0{message.message_id}")
    body = hashlib.blake2b(message.body, digest_size=_BYTES).digest()
    return _encoded(f"{service}\0{cid}\0") + body


def _encoded(text: str) -> bytes:
    # What a foreign client sends need not be UTF-8; the transports keep it byte for byte.
    return text.encode("utf-8", "surrogateescape")


class Cids(Sequence[str]):
    """Many derived CIDs, in 16 bytes each: a fifth of what the text takes."""

    def __init__(self) -> None:
        self._derived = bytearray()

    def append(self, cid: str) -> None:
        self._derived += bytes.fromhex(cid)

    def __len__(self) -> int:
        return len(self._derived) // _BYTES

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        places = range(len(self))[index]
        if isinstance(places, range):
            return [self[place] for place in places]
        return self._derived[_BYTES * places : _BYTES * (places + 1)].hex()
