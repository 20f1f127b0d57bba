"""Who may do what: passwords, hosts, origins, tokens of forms; and what a browser may do with a page.

Without a password the page is for this machine alone. A page of somebody else's, open in the same browser, can neither read it (no CORS;
names that are made to lead here are not ours: `Host`) nor act in it (`Origin`, and a token that only our own forms have).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "ackback"
TOKEN = "token"  # noqa: S105 # nosec B105
"""A form's field."""
MAX_FORM = 1_048_576
MAX_FIELDS = 100
OPEN = ("/healthz",)
"""What a container's health check asks for, without a password."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Guard:
    """The middleware around everything.

    Args:
        password: what HTTP Basic asks for, with any user name; None: nothing is asked, and only names of this machine lead here.
    """

    def __init__(self, app: ASGIApp, password: str | None) -> None:
        self._app = app
        self._password = password

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope["path"], Headers(scope=scope))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, path: str, headers: Headers) -> Response | None:
        if self._password is None:
            if _hostname(headers.get("host", "")) not in LOOPBACK:
                return PlainTextResponse("this page is for localhost alone, as it has no password\n", 421)
        elif path not in OPEN and not self._is_known(headers.get("authorization", "")):
            challenge = {"www-authenticate": 'Basic realm="ackback", charset="UTF-8"'}
            return PlainTextResponse("a password is needed ([web] password)\n", 401, challenge)
        return None

    def _is_known(self, authorization: str) -> bool:
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() != "basic" or self._password is None:
            return False
        try:
            given = base64.b64decode(credentials, validate=True).partition(b":")[2]
        except (ValueError, binascii.Error):
            return False
        return hmac.compare_digest(given, self._password.encode())


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


class Tokens:
    """Tokens of forms, each good for one browser (by a cookie) and for this process."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def session(self, request: Request) -> str:
        """The browser's name for itself; a new one if it has none. Give it to `remember`."""
        name = request.cookies.get(COOKIE, "")
        return name if len(name) == 32 and name.isalnum() else secrets.token_hex(16)

    @staticmethod
    def remember(response: Response, session: str) -> None:
        response.set_cookie(COOKIE, session, httponly=True, samesite="strict")

    def token(self, session: str) -> str:
        return hmac.new(self._key, session.encode(), hashlib.sha256).hexdigest()

    def check(self, request: Request, token: str) -> None:
        """
        Raises:
            HTTPException: the form is not one that we gave to this browser.
        """
        origin, host = request.headers.get("origin", ""), request.headers.get("host", "")
        if not host or urlsplit(origin).netloc != host:
            raise HTTPException(403, "The request comes from another site, so nothing was done.")
        if not hmac.compare_digest(token.encode(), self.token(request.cookies.get(COOKIE, "")).encode()):
            raise HTTPException(
                403,
                "The form is from before a restart, or from another browser, so nothing was done. Go back, reload, and try again.",
            )


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a submitted form, the last of each name.

    Raises:
        HTTPException: it is too large, or no form.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM:
            raise HTTPException(413, f"A form may have {MAX_FORM:,} bytes.")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"))
    except ValueError:
        raise HTTPException(400, "The form cannot be read.") from None
