"""Invoke any service in the background over RabbitMQ, and have the reply delivered to a callback service."""

from broker.client import AsyncClient, Client
from broker.errors import (
    AckbackError,
    ConfigurationError,
    ConfirmTimeoutError,
    NotAcceptedError,
    RemoteError,
    ServiceDefinitionError,
    UnroutableError,
)
from broker.protocol.message import Reply
from broker.retry import Reject, Retry, RetryAfter
from broker.schedule import cron, every
from broker.service import Service

__all__ = [
    "AckbackError",
    "AsyncClient",
    "Client",
    "ConfigurationError",
    "ConfirmTimeoutError",
    "NotAcceptedError",
    "Reject",
    "RemoteError",
    "Reply",
    "Retry",
    "RetryAfter",
    "Service",
    "ServiceDefinitionError",
    "UnroutableError",
    "cron",
    "every",
]
