"""The HTTP side of `rovrm.serve`: bodies, limits, errors, and the line in which requests wait for one scoring thread.

    app = make_app(scorer, ServeConfig(model="runs/demo/phase3-visual"))      # any ASGI server runs it

Needs FastAPI (`pip install 'rovrm[serve]'`); `rovrm.serve` says what each path takes and replies.
"""

import asyncio
import hmac
import logging
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from reprlib import repr as short
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as RoutingError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rovrm.common.errors import UserError, one_line
from rovrm.model.scorer import RewardScorer
from rovrm.serving.openrlhf import look_at_template, openrlhf_rows
from rovrm.serving.requests import Checked, Refusal, check, own_tokenizer
from rovrm.settings.keys import ServeConfig

logger = logging.getLogger(__name__)

LONGEST = 480  # characters of an error
RESPONSES = 64  # of one prompt, and images of one prompt
QUERIES = 1024  # of one OpenRLHF request
DRAINED = 4  # times the longest body: what is read of a longer one before it is refused
BODY_SECONDS = 60  # in which a body must have arrived, since it holds a place in the line
SCORING = ("/score", "/rank", "/get_reward")
OPEN = ("/health", "/docs", "/openapi.json")  # need no token: they tell the model's name and nothing else


# ---- bodies ----------------------------------------------------------------------------------------------------------


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextBlock(Body):
    type: Literal["text"]
    text: str


class ImageBlock(Body):
    type: Literal["image"]


class ChatMessage(Body):
    role: Literal["system", "user", "assistant"]
    content: str | list[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]]


Images = Annotated[list[str], Field(max_length=RESPONSES)]


class ScoreRequest(Body):
    prompt: str | list[ChatMessage] = Field(description="a text, or chat messages")
    responses: Annotated[list[str], Field(min_length=1, max_length=RESPONSES)]
    images: Images | None = Field(None, description="base64, data URIs, or paths under the server's image_root")


class RewardRequest(Body):
    query: Annotated[list[str], Field(max_length=QUERIES)] = Field(description="prompt + response, each as one text")
    prompts: list[str] = Field(description="the prompts alone, one for each query")
    labels: list[Any] | None = Field(None, description="taken and not used")
    images: list[str | Images | None] | None = Field(None, description="null, one image or several for each query")


class Scores(BaseModel):
    scores: list[float]


class Ranking(Scores):
    order: list[int] = Field(description="places in `responses`, best first")


class Rewards(Scores):
    rewards: list[float]
    extra_logs: dict[str, list[float]]


class Health(BaseModel):
    status: Literal["ok"]
    model: str


class Error(BaseModel):
    error: str


# ---- the line --------------------------------------------------------------------------------------------------------


class Line:
    """Where checked requests wait, and the one thread that scores them. Whatever waits when it looks goes into one call
    of the scorer, up to `batch_tokens`; a request that comes alone is scored at once."""

    def __init__(self, scorer: RewardScorer, config: ServeConfig):
        self.scorer, self.config = scorer, config
        self.waiting: queue.SimpleQueue[tuple[Checked, Future]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="scoring", daemon=True).start()

    def put(self, checked: Checked) -> Future:
        """The future list of rewards, one list per example."""
        future: Future = Future()
        self.waiting.put((checked, future))
        return future

    def _work(self) -> None:
        held = None
        while True:
            batch = [held or self.waiting.get()]
            held = self._fill(batch)
            # False: the client's request was given up meanwhile
            self._score([job for job in batch if job[1].set_running_or_notify_cancel()])

    def _fill(self, batch: list[tuple[Checked, Future]]) -> tuple[Checked, Future] | None:
        """Adds what waits; the first that does not fit is returned, for the next batch."""
        tokens, pixels = batch[0][0].tokens, batch[0][0].pixels
        while not self.waiting.empty():  # no other thread takes any
            job = self.waiting.get()
            tokens, pixels = tokens + job[0].tokens, pixels + job[0].pixels
            if tokens > self.config.batch_tokens or pixels > self.config.max_pixels:
                return job
            batch.append(job)
        return None

    def _score(self, jobs: Sequence[tuple[Checked, Future]]) -> None:
        examples = [example for checked, _ in jobs for example in checked.examples]
        try:
            rewards = iter(self.scorer.score_batch(examples, self.config.batch_tokens, self.config.normalize))
        except Exception as error:  # whatever it is, it must not end the thread, nor be another request's error
            if len(jobs) == 1:
                jobs[0][1].set_exception(error)
                return
            logger.warning("scoring %d requests one by one after %s: %s", len(jobs), type(error).__name__, error)
            for job in jobs:
                self._score([job])
            return
        for checked, future in jobs:
            future.set_result([next(rewards) for _ in checked.examples])


# ---- the door --------------------------------------------------------------------------------------------------------


class Door:
    """In front of FastAPI: the token, the number of requests in work, the type of a body, and its size while it is
    read, which FastAPI would first read whole."""

    def __init__(self, app: ASGIApp, config: ServeConfig):
        self.app, self.config = app, config
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request, path = Request(scope), scope["path"]  # request.url also believes the Host header
        try:
            if self.config.token and path not in OPEN:
                _check_token(request, self.config.token)
            if request.method != "POST" or path not in SCORING:
                return await self.app(scope, receive, send)
            _check_head(request)
            if self.inside >= self.config.queue:
                raise Refusal(429, f"{self.inside} requests are in work, queue={self.config.queue}; try again later")
        except Refusal as refusal:
            return await _refused(refusal)(scope, receive, send)
        self.inside += 1
        try:
            await self._enter(scope, receive, send)
        finally:
            self.inside -= 1

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _read(receive, self.config.max_body, Request(scope).headers.get("content-length", ""))
        except Refusal as refusal:
            return await _refused(refusal)(scope, receive, send)
        except TimeoutError:
            slow = Refusal(408, f"the body did not arrive within {BODY_SECONDS} s; send less, or try again")
            return await _refused(slow)(scope, receive, send)
        if body is None:
            return None
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, again, send)


async def _read(receive: Receive, limit: int, length: str = "") -> bytes | None:
    """The body, None where the client has gone. Raises Refusal where it is longer than the limit. length: as announced,
    or empty. A body up to DRAINED times too long is read to its end and thrown away: many clients send all of it before
    they look at the reply, and would see nothing but a connection cut off."""
    if length.isdigit() and int(length) > DRAINED * limit:
        raise _too_long(int(length), limit)
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size, more = size + len(part), message.get("more_body", False)
        if size > DRAINED * limit:
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
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())  # in a time that tells nothing
    if scheme.lower() != "bearer" or not same:
        what = "a wrong token" if given else "no token"
        raise Refusal(401, f"Authorization: {what}; send the server's token as Authorization: Bearer TOKEN")


def _check_head(request: Request) -> None:
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, f"Content-Type: got {kind[:80]!r}, takes application/json")


# ---- errors ----------------------------------------------------------------------------------------------------------


def _refused(error: Refusal) -> JSONResponse:
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(error.status, {})
    return _error(error.status, str(error), headers)


def _error(status: int, text: str, headers: Mapping[str, str]) -> JSONResponse:
    return JSONResponse({"error": one_line(text, LONGEST)}, status, headers)


def _unknown(request: Request, error: RoutingError) -> JSONResponse:
    """Wrong path or method; a body that json.loads cannot take for another reason than its grammar."""
    told = {
        400: "the body is not JSON; send a JSON object",
        404: f"{request.scope['path'][:80]}: no such path; takes {', '.join((*SCORING, *OPEN))}",
        405: f"{request.method} {request.scope['path']}: takes {(error.headers or {}).get('Allow', 'another method')}",
    }
    return _error(error.status_code, told.get(error.status_code, str(error.detail)), error.headers or {})


def _invalid(error: RequestValidationError) -> Refusal:
    """Pydantic's deepest complaint as one line: of a union's branches the deepest is the one that was meant."""
    worst = max(error.errors(), key=lambda e: len(e["loc"]))
    if worst["type"] == "json_invalid":
        return Refusal(400, f"the body is not JSON ({worst['ctx']['error']}, character {worst['loc'][-1]}); mend it")
    if error.body is None:
        return Refusal(400, "the body is empty or null; send a JSON object")
    where, value = _place(worst, error.body)
    if worst["type"] == "missing":
        return Refusal(422, f"{where}: missing; /docs shows what a request holds")
    if worst["type"] == "extra_forbidden":
        return Refusal(422, f"unknown key {where} (got {short(value)}); leave it out, /docs shows what a request holds")
    return Refusal(422, f"{where}: got {short(value)}; {worst['msg'][0].lower()}{worst['msg'][1:]}")


def _place(complaint: dict[str, Any], value: Any) -> tuple[str, Any]:
    """(name, value) of what pydantic complains of. Its `loc` also holds names of types, which are not in the body."""
    where = ""
    for part in complaint["loc"][1:]:
        if isinstance(part, int) and isinstance(value, list):
            where, value = f"{where}[{part}]", value[part]
        elif isinstance(value, dict) and (part in value or complaint["type"] == "missing"):
            where, value = f"{where}.{part}", value.get(part)
    return where.lstrip(".")[:80] or "the body", value


# ---- the app ---------------------------------------------------------------------------------------------------------


def make_app(scorer: RewardScorer, config: ServeConfig) -> FastAPI:
    """The server as an ASGI app. `config.token`, if any, is asked for; host and port are the caller's."""
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Error} for status in (400, 401, 408, 413, 415, 422, 429, 500)
    }
    app = FastAPI(title="rovrm", description=f"Rewards by {config.model}.", redoc_url=None, redirect_slashes=False)
    app.add_middleware(Door, config=config)
    app.add_exception_handler(Refusal, lambda _, error: _refused(error))  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, lambda _, error: _refused(_invalid(error)))  # type: ignore[arg-type]
    app.add_exception_handler(RoutingError, _unknown)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, lambda *_: _refused(Refusal(500, "the server failed; its log says how")))
    measuring, template = own_tokenizer(scorer, config.batch_tokens), look_at_template(scorer)
    line, checkers = Line(scorer, config), ThreadPoolExecutor(config.workers, "check")
    app.state.line = line

    def aside(function: Any, *arguments: Any) -> Any:
        return asyncio.get_running_loop().run_in_executor(checkers, function, *arguments)

    async def rewards_of(rows: list[dict[str, Any]]) -> list[float]:
        checked = await aside(check, rows, measuring, config)
        try:
            many = await asyncio.wrap_future(line.put(checked))
        except Refusal:
            raise
        except UserError as error:  # what was checked cannot be at fault: a reward that is not finite, say
            raise Refusal(500, str(error)) from error
        return [reward for rewards in many for reward in rewards]

    @app.post("/score", responses=refusals)
    async def score(body: ScoreRequest) -> Scores:
        """One reward for each response; higher is better."""
        return Scores(scores=await rewards_of([{"id": "", **body.model_dump()}]))

    @app.post("/rank", responses=refusals)
    async def rank(body: ScoreRequest) -> Ranking:
        """The rewards, and the responses' places from the best to the worst."""
        scores = await rewards_of([{"id": "", **body.model_dump()}])
        return Ranking(order=sorted(range(len(scores)), key=lambda i: -scores[i]), scores=scores)

    @app.post("/get_reward", responses=refusals)
    async def get_reward(body: RewardRequest) -> Rewards:
        """OpenRLHF's remote reward model (`--remote_rm_url`)."""
        rows = await aside(openrlhf_rows, body.query, body.prompts, body.images, template)
        rewards = await rewards_of(rows) if rows else []
        return Rewards(rewards=rewards, scores=rewards, extra_logs={"reward_model": rewards})

    @app.get("/health")
    async def health() -> Health:
        return Health(status="ok", model=config.model)

    return app
