"""The replies to what `rovrm.serve` refuses: {"error": one line} with an HTTP status."""

from collections.abc import Mapping
from reprlib import repr as short
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from rovrm.common.errors import one_line
from rovrm.serving.requests import Refusal

LONGEST = 480  # characters of an error
SCORING = ("/score", "/rank", "/get_reward")  # what is posted to
OPEN = ("/health", "/docs", "/openapi.json")  # need no token: they tell the model's name and how it scores
EXTRA_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}


def refusal_reply(refusal: Refusal) -> JSONResponse:
    return _error_reply(refusal.status, str(refusal), EXTRA_HEADERS.get(refusal.status, {}))


def routing_reply(request: Request, error: HTTPException) -> JSONResponse:
    """For a wrong path or method, and for a body that json.loads cannot take for another reason than its grammar."""
    headers = error.headers or {}
    messages = {
        400: "the body is not JSON; send a JSON object",
        404: f"{request.scope['path'][:80]}: no such path; takes {', '.join((*SCORING, *OPEN))}",
        405: f"{request.method} {request.scope['path']}: takes {headers.get('Allow', 'another method')}",
    }
    return _error_reply(error.status_code, messages.get(error.status_code, str(error.detail)), headers)


def _error_reply(status: int, message: str, headers: Mapping[str, str]) -> JSONResponse:
    return JSONResponse({"error": one_line(message, LONGEST)}, status, headers)


# ---- what pydantic complains of --------------------------------------------------------------------------------------


def invalid_body(error: RequestValidationError) -> Refusal:
    """Pydantic's deepest complaint as one line: of a union's branches the deepest is the one that was meant."""
    deepest = max(error.errors(), key=lambda complaint: len(complaint["loc"]))
    kind = deepest["type"]
    if kind == "json_invalid":
        return Refusal(
            400, f"the body is not JSON ({deepest['ctx']['error']}, character {deepest['loc'][-1]}); mend it"
        )
    if error.body is None:
        return Refusal(400, "the body is empty or null; send a JSON object")
    where, value = _place_and_value(deepest, error.body)
    if kind == "missing":
        return Refusal(422, f"{where}: missing; /docs shows what a request holds")
    if kind == "extra_forbidden":
        return Refusal(422, f"unknown key {where} (got {short(value)}); leave it out, /docs shows what a request holds")
    message = deepest["msg"]
    return Refusal(422, f"{where}: got {short(value)}; {message[0].lower()}{message[1:]}")


def _place_and_value(complaint: dict[str, Any], body: Any) -> tuple[str, Any]:
    """Where in the body pydantic's complaint is, as `prompt[0].role`, and what stands there.

    Its `loc` starts with "body", and also holds names of types, which are not in the body and are passed over.
    """
    where, value = "", body
    for part in complaint["loc"][1:]:
        if isinstance(part, int) and isinstance(value, list):
            where, value = f"{where}[{part}]", value[part]
        elif isinstance(value, dict) and (part in value or complaint["type"] == "missing"):
            where, value = f"{where}.{part}", value.get(part)
    return where.lstrip(".")[:80] or "the body", value
