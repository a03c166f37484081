"""What a request must pass before FastAPI sees it: the token, the number of requests in work, its type and its size.

FastAPI itself would read a body to its end, whatever its size.
"""

import asyncio
import hmac

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rovrm.serving.errors import OPEN, SCORING, refusal_reply
from rovrm.serving.requests import Refusal
from rovrm.settings.keys import ServeConfig

READ_AT_MOST = 4  # times the longest body: what is read of a longer one before it is refused
BODY_SECONDS = 60  # in which a body must have arrived, since it counts as a request in work


class Door:
    """ASGI middleware around the app."""

    def __init__(self, app: ASGIApp, config: ServeConfig):
        self.app, self.config = app, config
        self.in_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request, path = Request(scope), scope["path"]  # not request.url, which believes the Host header too
        try:
            if self.config.token and path not in OPEN:
                _check_token(request, self.config.token)
            if request.method != "POST" or path not in SCORING:
                return await self.app(scope, receive, send)
            _check_content_type(request)
            if self.in_work >= self.config.queue:
                raise Refusal(429, f"{self.in_work} requests are in work, queue={self.config.queue}; try again later")
        except Refusal as refusal:
            return await refusal_reply(refusal)(scope, receive, send)
        self.in_work += 1
        try:
            await self._pass_on(scope, receive, send)
        finally:
            self.in_work -= 1

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the body within its limits and hands it to the app in one piece."""
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _read_body(receive, self.config.max_body, Request(scope).headers.get("content-length", ""))
        except Refusal as refusal:
            return await refusal_reply(refusal)(scope, receive, send)
        except TimeoutError:
            slow = Refusal(408, f"the body did not arrive within {BODY_SECONDS} s; send less, or try again")
            return await refusal_reply(slow)(scope, receive, send)
        if body is None:
            return None
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, receive_again, send)


async def _read_body(receive: Receive, limit: int, content_length: str = "") -> bytes | None:
    """The body, or None where the client has gone.

    A body up to READ_AT_MOST times too long is read to its end and thrown away: many clients send all of it before they
    look at the reply, and would see nothing but a connection cut off.

    Args:
        receive: gives the body piece by piece.
        limit: bytes of a body, at most.
        content_length: the size as the client announced it, or empty.

    Raises:
        Refusal: the body is longer than the limit.
    """
    if content_length.isdigit() and int(content_length) > READ_AT_MOST * limit:
        raise _too_long(int(content_length), limit)
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size, more = size + len(part), message.get("more_body", False)
        if size > READ_AT_MOST * limit:
            raise _too_long(size, limit)
        parts.append(part)
        if size > limit:
            parts.clear()
    if size > limit:
        raise _too_long(size, limit)
    return b"".join(parts)


def _too_long(size: int, limit: int) -> Refusal:
    return Refusal(413, f"a body of {size} bytes or more, max_body={limit}; send smaller images or fewer at once")


def _check_token(request: Request, token: str) -> None:
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    # compare_digest takes as long for a wrong token as for a right one: its time tells nothing of the token.
    same = hmac.compare_digest(credentials.strip().encode("latin-1"), token.encode())
    if scheme.lower() != "bearer" or not same:
        what = "a wrong token" if credentials else "no token"
        raise Refusal(401, f"Authorization: {what}; send the server's token as Authorization: Bearer TOKEN")


def _check_content_type(request: Request) -> None:
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, f"Content-Type: got {content_type[:80]!r}, takes application/json")
