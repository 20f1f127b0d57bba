"""The services as an AsyncAPI 3.0 document (https://www.asyncapi.com/docs/reference/specification/v3.0.0).

A service is a channel, its queue, and an operation that receives a request from it and replies to the queue that `reply_to` names. Payloads
are described by the JSON Schemas that pydantic makes of `handle`'s annotations.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from broker.hosting.definition import ServiceDefinition
from broker.protocol import problems
from broker.protocol.message import Reply

_TEXT = {"type": "string", "maxLength": 512}
REQUEST_HEADERS: dict[str, Any] = {
    "type": "object",
    "description": "Application headers. The AMQP properties correlation_id, reply_to and message_id are set beside them.",
    "properties": {
        "callback": {
            "description": "The callback service, or several, that the reply is for; reply_to is the callback queue then.",
            "oneOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": 64}],
        },
        "source": {**_TEXT, "description": "Who invokes. Without callback, the callback is <source>-async-callback."},
        "parent": {**_TEXT, "description": "The correlation ID of the invocation during which this one was made."},
        "traceparent": {**_TEXT, "description": "W3C trace context."},
        "tracestate": {**_TEXT, "description": "W3C trace context."},
        "deadline": {"type": "integer", "description": "When the caller stops waiting, in milliseconds since 1970."},
    },
}
PROBLEM = {
    "type": "object",
    "description": "Why it failed (RFC 9457).",
    "required": ["type", "title", "detail", "service", "attempts"],
    "properties": {
        "type": {
            "type": "string",
            "description": "urn:ackback:problem:error, …:rejected, …:invalid, …:timeout, …:expired, …",
        },
        "title": {"type": "string"},
        "detail": {"type": "string"},
        "service": {"type": "string"},
        "attempts": {"type": "integer", "minimum": 1},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}
CORRELATION = {"description": "AMQP's property correlation_id.", "location": "$message.header#/correlation_id"}
_ID = re.compile(r"[^A-Za-z0-9._-]")
JSON = "application/json"
REPLIES = "--replies"
"""What the key of the channel for its replies has more than a service's own."""


def document(definitions: Iterable[ServiceDefinition], title: str, version: str, urls: Iterable[str]) -> dict[str, Any]:
    """The document. Of the URLs, no user and no password is in it."""
    services = sorted(definitions, key=lambda one: one.name)
    ids = _ids([one.name for one in services])
    schemas = _Schemas(services)
    messages: dict[str, Any] = {"failure": _failure()}
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for service in services:
        name = ids[service.name]
        messages[f"{name}.request"] = _request(service, schemas.takes(service))
        messages[f"{name}.reply"] = _reply(service, schemas.returns(service))
        channels[name] = _channel(service, name)
        channels[f"{name}{REPLIES}"] = _replies(service, name)
        operations[name] = _operation(service, name)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": title,
            "version": version,
            "description": "Services that are invoked over RabbitMQ, by way of the default exchange: the routing key is the queue.",
        },
        "defaultContentType": JSON,
        "servers": _servers(urls),
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas.definitions},
    }


def _ids(names: list[str]) -> dict[str, str]:
    """A key of the document for each name, which allows fewer characters."""
    ids: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        key = wanted = _ID.sub("-", name)
        number = 2
        while {key, key + REPLIES} & taken:
            key, number = f"{wanted}-{number}", number + 1
        ids[name] = key
        taken |= {key, key + REPLIES}
    return ids


def _servers(urls: Iterable[str]) -> dict[str, Any]:
    servers = {}
    for number, url in enumerate(urls, start=1):
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        vhost = unquote(parts.path[1:]) or "/"
        servers[f"rabbitmq{number}"] = {
            "host": f"{parts.hostname}{port}",
            "protocol": parts.scheme,
            "protocolVersion": "0.9.1",
            "description": f"Virtual host {vhost!r}.",
        }
    return servers


def _request(service: ServiceDefinition, payload: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": f"{service.name} request",
        "title": f"A request to {service.name}",
        "correlationId": CORRELATION,
        "headers": REQUEST_HEADERS,
        "payload": payload,
    }


def _reply(service: ServiceDefinition, payload: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": f"{service.name} reply",
        "title": f"The response of {service.name}",
        "correlationId": CORRELATION,
        "headers": _reply_headers("ok"),
        "payload": payload,
    }


def _failure() -> dict[str, Any]:
    return {
        "name": "failure",
        "title": "A failure reply",
        "contentType": problems.CONTENT_TYPE,
        "correlationId": CORRELATION,
        "headers": _reply_headers("error"),
        "payload": PROBLEM,
    }


def _reply_headers(status: str) -> dict[str, Any]:
    echoed = {
        name: REQUEST_HEADERS["properties"][name]
        for name in ("callback", "source", "parent", "traceparent", "tracestate")
    }
    return {
        "type": "object",
        "required": ["service", "status"],
        "properties": {"service": {"type": "string"}, "status": {"const": status}, **echoed},
    }


def _channel(service: ServiceDefinition, name: str) -> dict[str, Any]:
    queue = {"name": service.name, "durable": True, "exclusive": False, "autoDelete": False}
    return {
        "address": service.name,
        "description": "The service's queue. The daemon declares it.",
        "messages": {"request": _to("components", "messages", f"{name}.request")},
        "bindings": {"amqp": {"is": "queue", "queue": queue, "bindingVersion": "0.3.0"}},
    }


def _replies(service: ServiceDefinition, name: str) -> dict[str, Any]:
    return {
        "address": None,
        "description": f"Whatever queue a request to {service.name} names in reply_to.",
        "messages": {
            "reply": _to("components", "messages", f"{name}.reply"),
            "failure": _to("components", "messages", "failure"),
        },
    }


def _operation(service: ServiceDefinition, name: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "action": "receive",
        "channel": _to("channels", name),
        "messages": [_to("channels", name, "messages", "request")],
        "bindings": {"amqp": {"ack": True, "bindingVersion": "0.3.0"}},
        "reply": {
            "address": {"description": "AMQP's property reply_to.", "location": "$message.header#/reply_to"},
            "channel": _to("channels", f"{name}{REPLIES}"),
            "messages": [
                _to("channels", f"{name}{REPLIES}", "messages", "reply"),
                _to("channels", f"{name}{REPLIES}", "messages", "failure"),
            ],
        },
    }
    if text := service.cls.__doc__:
        summary, _, rest = inspect.cleandoc(text).partition("\n")
        operation["summary"] = summary
        if rest.strip():
            operation["description"] = rest.strip()
    return operation


def _to(*path: str) -> dict[str, str]:
    return {"$ref": "#/" + "/".join(path)}


class _Schemas:
    """The JSON Schemas of all services; what several have in common is once in `definitions`."""

    def __init__(self, services: list[ServiceDefinition]) -> None:
        inputs: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = []
        for service in services:
            if service.takes is not None and _has_schema(service.takes, "validation"):
                inputs.append((service.name, "validation", service.takes))
            if (
                service.returns is not None
                and not _returns_a_reply(service)
                and _has_schema(service.returns, "serialization")
            ):
                inputs.append((service.name, "serialization", service.returns))
        found, definitions = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")
        self._found: dict[Any, dict[str, Any]] = {key: _without_discriminators(schema) for key, schema in found.items()}
        self.definitions: dict[str, Any] = _without_discriminators(definitions.get("$defs", {}))

    def takes(self, service: ServiceDefinition) -> dict[str, Any]:
        if service.takes is None:
            return {"description": "Anything: the service takes the body as it comes."}
        return self._found.get((service.name, "validation"), _unknown(service.input_type))

    def returns(self, service: ServiceDefinition) -> dict[str, Any]:
        if _returns_a_reply(service):
            return {"description": "What the service says: body, content type and headers are its own."}
        if service.returns is None:
            return {"description": "Not said: the service has no return annotation."}
        return self._found.get((service.name, "serialization"), _unknown(service.output_type))


def _returns_a_reply(service: ServiceDefinition) -> bool:
    return typing.get_type_hints(service.cls.handle).get("return") is Reply  # type: ignore[attr-defined]


def _without_discriminators(schema: Any) -> Any:
    """OpenAPI's discriminators are objects, which AsyncAPI does not know; what they tell, the constants in the alternatives tell, too."""
    if isinstance(schema, list):
        return [_without_discriminators(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _without_discriminators(value)
        for key, value in schema.items()
        if not (key == "discriminator" and isinstance(value, dict) and "propertyName" in value)
    }


def _has_schema(adapter: TypeAdapter[Any], mode: JsonSchemaMode) -> bool:
    try:
        adapter.json_schema(mode=mode, schema_generator=GenerateJsonSchema)
    except PydanticInvalidForJsonSchema:
        return False
    return True


def _unknown(annotation: str) -> dict[str, Any]:
    return {"description": f"{annotation}, for which there is no JSON Schema."}
