"""Where checked requests wait for the one thread that scores them."""

import logging
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple

from rovrm.model.scorer import RewardScorer
from rovrm.serving.requests import CheckedRequest
from rovrm.settings.keys import ServeConfig

logger = logging.getLogger(__name__)


class Job(NamedTuple):
    request: CheckedRequest
    rewards: "Future[list[list[float]]]"  # to come; one list per example


class ScoringQueue:
    """Scores what waits in batches: whatever is there when the thread looks goes into one call of the scorer, up to
    `batch_tokens` and `max_pixels`. A request that comes alone is therefore scored at once."""

    def __init__(self, scorer: RewardScorer, config: ServeConfig):
        self.scorer, self.config = scorer, config
        self.waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="scoring", daemon=True).start()

    def put(self, request: CheckedRequest) -> "Future[list[list[float]]]":
        """The rewards to come, one list per example."""
        job = Job(request, Future())
        self.waiting.put(job)
        return job.rewards

    def _work(self) -> None:
        held_over = None  # the job that did not fit into the batch before
        while True:
            batch = [held_over or self.waiting.get()]
            held_over = self._fill(batch)
            # A job whose client has gone meanwhile is cancelled; it drops out here.
            self._score([job for job in batch if job.rewards.set_running_or_notify_cancel()])

    def _fill(self, batch: list[Job]) -> Job | None:
        """Adds what waits to the batch. The first job that does not fit is returned, for the next batch."""
        tokens, pixels = batch[0].request.tokens, batch[0].request.pixels
        while not self.waiting.empty():  # and get() then never blocks: no other thread takes any
            job = self.waiting.get()
            tokens, pixels = tokens + job.request.tokens, pixels + job.request.pixels
            if tokens > self.config.batch_tokens or pixels > self.config.max_pixels:
                return job
            batch.append(job)
        return None

    def _score(self, jobs: Sequence[Job]) -> None:
        """Scores jobs in one call, or one by one where that call fails: what is wrong with one is not another's."""
        examples = [example for job in jobs for example in job.request.examples]
        try:
            rewards = self.scorer.score_batch(examples, self.config.batch_tokens, self.config.normalize)
        except Exception as error:  # whatever it is, it must not end the thread
            if len(jobs) == 1:
                jobs[0].rewards.set_exception(error)
                return
            logger.warning("scoring %d requests one by one after %s: %s", len(jobs), type(error).__name__, error)
            for job in jobs:
                self._score([job])
            return
        start = 0
        for job in jobs:
            end = start + len(job.request.examples)
            job.rewards.set_result(rewards[start:end])
            start = end
