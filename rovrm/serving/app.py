"""The HTTP side of `rovrm.serve`: its paths, from a body to a reply.

    app = make_app(scorer, ServeConfig(model="runs/demo/phase3-visual"))      # any ASGI server runs it

Needs FastAPI (`pip install 'rovrm[serve]'`); `rovrm.serve` says what each path takes and replies. A request passes
door.py (token, size), bodies.py (types), requests.py (images, lengths), and waits in scoring_queue.py for its rewards.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from rovrm.common.errors import UserError
from rovrm.model.contract import numeric_type_of
from rovrm.model.scorer import RewardScorer
from rovrm.serving.bodies import Error, Health, Ranking, RewardRequest, Rewards, ScoreRequest, Scores
from rovrm.serving.door import Door
from rovrm.serving.errors import invalid_body, refusal_reply, routing_reply
from rovrm.serving.openrlhf import look_at_template, openrlhf_rows
from rovrm.serving.requests import Refusal, check, own_tokenizer
from rovrm.serving.scoring_queue import ScoringQueue
from rovrm.settings.keys import ServeConfig

REFUSED = (400, 401, 408, 413, 415, 422, 429, 500)  # the statuses that /docs lists


def make_app(scorer: RewardScorer, config: ServeConfig) -> FastAPI:
    """The server as an ASGI app. `config.token`, if any, is asked for; host and port are the caller's."""
    app = FastAPI(title="rovrm", description=f"Rewards by {config.model}.", redoc_url=None, redirect_slashes=False)
    app.add_middleware(Door, config=config)
    app.add_exception_handler(Refusal, lambda _, error: refusal_reply(error))  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, lambda _, error: refusal_reply(invalid_body(error)))  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, routing_reply)  # type: ignore[arg-type]
    failed = Refusal(500, "the server failed; its log says how")
    app.add_exception_handler(Exception, lambda *_: refusal_reply(failed))
    app.state.queue = ScoringQueue(scorer, config)
    _add_paths(app, scorer, config)
    return app


def _add_paths(app: FastAPI, scorer: RewardScorer, config: ServeConfig) -> None:
    measuring, template = own_tokenizer(scorer), look_at_template(scorer)
    checkers = ThreadPoolExecutor(config.workers, "check")
    queue: ScoringQueue = app.state.queue
    refusals: dict[int | str, dict[str, Any]] = {status: {"model": Error} for status in REFUSED}

    def in_thread(function: Callable[..., Any], *arguments: Any) -> Awaitable[Any]:
        """Tokenising and decoding take long, and the event loop must not wait for them."""
        return asyncio.get_running_loop().run_in_executor(checkers, function, *arguments)

    async def rewards_of(rows: list[dict[str, Any]]) -> list[float]:
        checked = await in_thread(check, rows, measuring, config)
        try:
            rewards_by_row = await asyncio.wrap_future(queue.put(checked))
        except Refusal:
            raise
        except UserError as error:  # what was checked cannot be at fault: a reward that is not finite, say
            raise Refusal(500, str(error)) from error
        return [reward for rewards in rewards_by_row for reward in rewards]

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
        rows = await in_thread(openrlhf_rows, body.query, body.prompts, body.images, template)
        rewards = await rewards_of(rows) if rows else []
        return Rewards(rewards=rewards, scores=rewards, extra_logs={"reward_model": rewards})

    @app.get("/health")
    async def health() -> Health:
        precision = numeric_type_of(scorer.model)
        return Health(status="ok", model=config.model, precision=precision, normalize=config.normalize)
