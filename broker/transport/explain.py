"""What RabbitMQ and its client libraries report, in words that say what to do."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from urllib.parse import unquote, urlsplit

from aiormq import exceptions as amqp

_INEQUIVALENT = re.compile(
    r"inequivalent arg '(?P<key>[^']+)' for (?:queue|exchange) .*?: received (?P<ours>.*?) but current is (?P<theirs>.*)"
)
_PERMISSION = re.compile(r"(configure|write|read) access to")
_OF_TYPE = re.compile(r"(?:the value )?'([^']*)'(?: of type '[^']*')?")


def connect(url: str, error: BaseException, timeout: float) -> str:
    """Why there is no connection to `url`, without its password."""
    parts = urlsplit(url)
    place = f"RabbitMQ at {parts.hostname}:{parts.port or (5671 if parts.scheme == 'amqps' else 5672)}"
    cause = error.__cause__ if error.__cause__ is not None else error
    vhost = unquote(parts.path[1:]) or "/"
    text = " ".join(str(arg) for arg in error.args)
    if isinstance(error, amqp.ProbableAuthenticationError):
        return f"{place} refuses user {parts.username or 'guest'!r}: the name or the password is wrong"
    if isinstance(error, TimeoutError):
        return f"{place} does not answer within {timeout:g} s"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"{place}: its TLS certificate is not valid here: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return f"{place}: no TLS connection: {cause.reason or cause}"
    if isinstance(cause, socket.gaierror):
        return f"the host name {parts.hostname!r} cannot be resolved: {cause.strerror}"
    if isinstance(error, amqp.InvalidFrameError) and "OpenOk" in text:
        # aiormq throws away what RabbitMQ says here; these are its two reasons.
        return (
            f"{place} does not let user {parts.username or 'guest'!r} into virtual host {vhost!r}: there is no such "
            "virtual host, or the user has no permission for it (rabbitmqctl add_vhost, set_permissions)"
        )
    if isinstance(error, StopAsyncIteration):
        return f"{place} hung up before it said anything: it may be starting"
    if isinstance(cause, ConnectionRefusedError) or "Connect call failed" in text or "refused" in text.lower():
        return f"{place} is not there: the connection was refused"
    return f"{place} cannot be used: {text or type(error).__name__}"


def mismatch(what: str, text: str) -> str:
    """How a queue or exchange that exists differs from the one declared, read from RabbitMQ's words for its 406."""
    if not (match := _INEQUIVALENT.search(text)):
        return f"{what} cannot be declared: {text}"
    ours, theirs = (_shown_argument(match[side]) for side in ("ours", "theirs"))
    return (
        f"{what} exists with other arguments: {match['key']} is {theirs} there and {ours} here; if an earlier version of ackback has "
        f"declared it, `ackback migrate` brings it over with its messages, else delete the {_how_to_delete(what)}, and start again"
    )


def _how_to_delete(what: str) -> str:
    kind, _, name = what.partition(" ")
    return f"queue once it is empty (rabbitmqctl delete_queue {name[1:-1]})" if kind == "queue" else kind


def _shown_argument(text: str) -> str:
    return "not set" if text == "none" else _OF_TYPE.sub(r"\1", text) or "empty"


def refusal(what: str, permission: str, error: amqp.AMQPError) -> str:
    """Which permission the user lacks: RabbitMQ from 3.11 on names it, before that it is `permission`."""
    if found := _PERMISSION.search(str(error.args[0])):
        permission = found[1]
    return (
        f"the user may not {what}: it lacks the {permission} permission ({error.args[0]}); "
        "grant it with rabbitmqctl set_permissions"
    )


def silent(what_it_does: str, seconds: float) -> str:
    """That the peer of one of the two connections has fallen silent."""
    return f"nothing was heard for {seconds:g} s on the one that {what_it_does}"


def closed(error: BaseException | None) -> str:
    """Why a connection or channel ended."""
    if error is None or isinstance(error, asyncio.CancelledError):
        return "the connection was lost"
    text = " ".join(str(arg) for arg in error.args if arg is not None)
    return text or type(error).__name__
