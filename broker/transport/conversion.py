"""Messages as aiormq and pamqp have them, and as they are here."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import aiormq
from pamqp.commands import Basic

from broker.protocol.message import Message

PERSISTENT = 2


def message(delivered: aiormq.abc.DeliveredMessage) -> Message:
    properties = delivered.header.properties
    return Message(
        body=delivered.body,
        headers=properties.headers or {},
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        message_id=properties.message_id,
        expiration=int(properties.expiration) if properties.expiration else None,
        priority=properties.priority,
        timestamp=None if properties.timestamp is None else int(properties.timestamp.timestamp()),
        type=properties.message_type,
        user_id=properties.user_id,
        app_id=properties.app_id,
    )


def properties(one: Message) -> Basic.Properties:
    return Basic.Properties(
        content_type=one.content_type,
        content_encoding=one.content_encoding,
        headers=_table(one.headers) if one.headers else None,
        delivery_mode=PERSISTENT,
        priority=one.priority,
        correlation_id=one.correlation_id,
        reply_to=one.reply_to,
        expiration=None if one.expiration is None else str(one.expiration),
        message_id=one.message_id,
        timestamp=None if one.timestamp is None else datetime.fromtimestamp(one.timestamp, UTC),
        message_type=one.type,
        app_id=one.app_id,
    )


def _table(value: Any) -> Any:
    # pamqp reads a byte array as bytes and writes it only from a bytearray.
    if isinstance(value, dict):
        return {key: _table(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_table(item) for item in value]
    return bytearray(value) if isinstance(value, bytes) else value
