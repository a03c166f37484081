"""The records of bon.jsonl: candidates sampled or given, scored, and the best of them.

    best_of_n(scorer, examples, config, policy, first=0)      # one record per example

The docstring of rovrm/bon.py says what a record holds.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rovrm.best_of_n.curve import best_place
from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.data.images import ImageRef, content_hash, open_images
from rovrm.data.messages import is_blank
from rovrm.model.policy import Candidate, Policy
from rovrm.model.scorer import RewardScorer
from rovrm.settings.keys import BonConfig


@dataclass(slots=True)
class Answers:
    """What is scored for one prompt. Only a policy samples and answers greedily; a file's candidates are texts alone.

    texts: the candidates, and behind them the greedy answer if there is one.
    """

    texts: list[str]
    sampled: list[Candidate] = field(default_factory=list)
    greedy: Candidate | None = None

    @property
    def candidates(self) -> list[str]:
        return self.texts if self.greedy is None else self.texts[:-1]


def best_of_n(
    scorer: RewardScorer, examples: Sequence[Example], config: BonConfig, policy: Policy | None, first: int
) -> list[dict[str, Any]]:
    """Samples or takes the candidates of a batch of prompts, scores them and chooses.

    Args:
        scorer: the reward model.
        examples: the prompts; without a policy their responses are the candidates.
        config: the settings of the command.
        policy: what samples the candidates, or None.
        first: the number of the batch's first prompt among all. Together with config.seed it seeds the sampling, so
            that a stopped command samples the same answers when it goes on.

    Returns:
        One record per prompt. A prompt that cannot be read, sampled for or scored has a record with an `error`.
    """
    # A prompt that cannot be used must not keep the others from being sampled and scored together: it drops out of the
    # batch here and comes back in the end, by its place.
    errors: dict[int, UserError] = {}
    readable: dict[int, Example] = {}
    for place, example in enumerate(examples):
        try:
            readable[place] = _with_open_images(example, policy, config.max_pixels)
        except UserError as error:
            errors[place] = error

    prompts = list(readable.values())
    if policy is None:
        seed = config.seed
        answers = [Answers(example.responses) for example in prompts]
    else:
        seed = config.seed * 1_000_003 + first
        answers = _sample(policy, prompts, config, seed)
    # The greedy answer is scored beside the candidates, on the same prompt.
    scores = _score_texts(scorer, prompts, [of_prompt.texts for of_prompt in answers], config.batch_tokens)

    answers_at = dict(zip(readable, answers, strict=True))
    scores_at = errors | dict(zip(readable, scores, strict=True))
    records = []
    for place, example in enumerate(examples):
        # Of the example as it was given: the opened one's images have no paths.
        record = {"id": example.id, "prompt": example.prompt, "images": image_paths(example, config.out)}
        result = scores_at[place]
        if isinstance(result, UserError):
            record["error"] = str(result)
        else:
            record |= _choice(answers_at[place], result, config.allow_empty, seed)
        records.append(record)
    return records


def _with_open_images(example: Example, policy: Policy | None, max_pixels: int) -> Example:
    """The example with its images decoded, once for sampling and scoring.

    Raises:
        UserError: the prompt has no candidates, an image cannot be decoded, or the policy cannot read the prompt.
    """
    if not example.responses:
        raise UserError("the prompt has no candidates")
    images = list(open_images(example.images, max_pixels))
    refs = [ImageRef(image=image, label=ref.name) for image, ref in zip(images, example.images, strict=True)]
    if policy is not None:
        policy.chat.prompt(example)  # one that the chat template refuses must not end the whole batch
    return replace(example, images=refs)


def _sample(policy: Policy, examples: list[Example], config: BonConfig, seed: int) -> list[Answers]:
    """Per example n sampled answers and the greedy one."""
    if not examples:
        return []
    sampled = policy.sample(
        examples,
        max(config.n),
        temperature=config.temperature,
        top_p=config.top_p,
        max_new_tokens=config.max_new_tokens,
        seed=seed,
    )
    greedy = policy.sample(examples, temperature=0, max_new_tokens=config.max_new_tokens)
    answers = []
    for candidates, [most_probable] in zip(sampled, greedy, strict=True):
        texts = [candidate.text for candidate in (*candidates, most_probable)]
        answers.append(Answers(texts, candidates, most_probable))
    return answers


def _score_texts(
    scorer: RewardScorer, examples: list[Example], texts: list[list[str]], batch_tokens: int
) -> list[list[float] | UserError]:
    """Per example the scores of its texts, or why there are none.

    Equal texts are scored once: apart they would differ by noise, and noise would choose.
    """
    distinct = [list(dict.fromkeys(of_one)) for of_one in texts]
    to_score = []
    for example, of_one in zip(examples, distinct, strict=True):
        to_score.append(replace(example, responses=of_one, ranks=[0] * len(of_one)))
    scores: list[list[float] | UserError] = []
    for i, rewards in enumerate(scorer.score_or_error(to_score, batch_tokens)):
        if isinstance(rewards, UserError):
            scores.append(rewards)
        else:
            reward_of = dict(zip(distinct[i], rewards, strict=True))
            scores.append([reward_of[text] for text in texts[i]])
    return scores


def _choice(answers: Answers, scores: list[float], allow_empty: bool, seed: int) -> dict[str, Any]:
    """What a record says of candidates, scores and choice. scores: of all texts, the greedy answer's too."""
    texts = answers.candidates
    words = [" ".join(text.split()) for text in texts]  # as texts are compared: white space does not count
    choice: dict[str, Any] = {
        "candidates": texts,
        "scores": scores[: len(texts)],
        "best": best_place(texts, scores[: len(texts)], allow_empty),
        "empty": [i for i, text in enumerate(texts) if is_blank(text)],
        "repeated": [i for i in range(len(texts)) if words[i] in words[:i]],
        "seed": seed,
    }
    if answers.greedy is not None:
        greedy = answers.greedy
        choice |= {
            "logprobs": [candidate.logprob for candidate in answers.sampled],
            "tokens": [candidate.tokens for candidate in answers.sampled],
            "cut": [i for i, candidate in enumerate(answers.sampled) if candidate.cut],
            "greedy": {"text": greedy.text, "score": scores[-1], "logprob": greedy.logprob, "cut": greedy.cut},
        }
    return choice


def image_paths(example: Example, out: str) -> list[str]:
    """The images' absolute paths. One without a file of its own is saved in `out`, and its path is relative to it."""
    paths = []
    for ref in example.images:
        if ref.path is not None:
            paths.append(os.path.abspath(ref.path))
            continue
        try:
            picture = ref.open()
        except UserError:  # the record says so
            paths.append(ref.name)
            continue
        path = f"images/{content_hash(picture)}.png"
        file = Path(out) / path
        file.parent.mkdir(exist_ok=True)
        picture.save(file)
        paths.append(path)
    return paths
