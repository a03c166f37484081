"""The records of bon.jsonl: candidates sampled or given, scored, and the best of them."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rovrm.common.errors import UserError
from rovrm.settings.keys import BonConfig

if TYPE_CHECKING:
    from rovrm.data.example import Example
    from rovrm.model.policy import Policy
    from rovrm.model.scorer import RewardScorer


def best_of_n(
    scorer: "RewardScorer", examples: Sequence["Example"], config: BonConfig, policy: "Policy | None", number: int
) -> list[dict[str, Any]]:
    """One record per prompt. Without a policy the examples' responses are the candidates. number: of the first prompt;
    it and config.seed seed the sampling."""
    from rovrm.data.example import Example

    opened = [_opened(example, policy, config.max_pixels) for example in examples]
    good = [example for example in opened if isinstance(example, Example)]
    seed = config.seed if policy is None else config.seed * 1_000_003 + number
    answers = (
        [([], [], example.responses) for example in good] if policy is None else _sample(policy, good, config, seed)
    )
    scores = _scores(scorer, good, [texts for *_, texts in answers], config.batch_tokens)
    found = iter(zip(answers, scores, strict=True))
    return [
        _record(example, config, seed, *(next(found) if isinstance(ready, Example) else (([], [], []), ready)))
        for example, ready in zip(examples, opened, strict=True)
    ]


def _opened(example: "Example", policy: "Policy | None", max_pixels: int) -> "Example | UserError":
    """The example with its images decoded, once for sampling and scoring; or why they cannot be, or why the policy
    cannot read the prompt."""
    from rovrm.data.images import ImageRef, open_images

    if not example.responses:
        return UserError("the prompt has no candidates")
    try:
        opened = list(open_images(example.images, max_pixels))
        images = [ImageRef(image=image, label=ref.name) for image, ref in zip(opened, example.images, strict=True)]
        if policy is not None:
            policy.chat.prompt(example)  # one that the template refuses must not end the whole batch
        return replace(example, images=images)
    except UserError as error:
        return error


def _sample(policy: "Policy", examples: list["Example"], config: BonConfig, seed: int) -> list[tuple[list, list, list]]:
    """Per example the sampled candidates, the greedy one (one in a list), and the texts of both."""
    if not examples:
        return []
    length = config.max_new_tokens
    sampled = policy.sample(
        examples, max(config.n), temperature=config.temperature, top_p=config.top_p, max_new_tokens=length, seed=seed
    )
    greedy = policy.sample(examples, temperature=0, max_new_tokens=length)
    return [(some, first, [c.text for c in (*some, *first)]) for some, first in zip(sampled, greedy, strict=True)]


def _scores(
    scorer: "RewardScorer", examples: list["Example"], texts: list[list[str]], batch_tokens: int
) -> list[list[float] | UserError]:
    """Per example the scores of its texts, or why there are none. Equal texts are scored once: apart they would
    differ by noise, and noise would choose."""
    distinct = [list(dict.fromkeys(many)) for many in texts]
    asked = [replace(e, responses=some, ranks=[0] * len(some)) for e, some in zip(examples, distinct, strict=True)]
    found: list[list[float] | UserError] = []
    for many, some, rewards in zip(texts, distinct, scorer.score_or_error(asked, batch_tokens), strict=True):
        if not isinstance(rewards, UserError):
            by_text = dict(zip(some, rewards, strict=True))
            rewards = [by_text[text] for text in many]
        found.append(rewards)
    return found


def _record(
    example: "Example", config: BonConfig, seed: int, answers: tuple[list, list, list], scores: list[float] | UserError
) -> dict[str, Any]:
    """A line of bon.jsonl. answers: sampled and greedy candidates, if any, and all texts."""
    from rovrm.data.messages import is_blank

    found = {"id": example.id, "prompt": example.prompt, "images": _image_paths(example, config.out)}
    if isinstance(scores, UserError):
        return found | {"error": str(scores)}
    sampled, greedy, texts = answers
    count = len(sampled) or len(texts)
    words = [" ".join(text.split()) for text in texts[:count]]
    found |= {
        "candidates": texts[:count],
        "scores": scores[:count],
        "best": best_place(texts[:count], scores[:count], config.allow_empty),
        "empty": [i for i in range(count) if is_blank(texts[i])],
        "repeated": [i for i in range(count) if words[i] in words[:i]],
        "seed": seed,
    }
    if sampled:
        found |= {
            "logprobs": [c.logprob for c in sampled],
            "tokens": [c.tokens for c in sampled],
            "cut": [i for i, c in enumerate(sampled) if c.cut],
            "greedy": {"text": texts[-1], "score": scores[-1], "logprob": greedy[0].logprob, "cut": greedy[0].cut},
        }
    return found


def best_place(texts: Sequence[str], scores: Sequence[float], allow_empty: bool) -> int:
    from rovrm.best_of_n.curve import standing

    return max(range(len(texts)), key=lambda i: standing(texts[i], scores[i], allow_empty))


def _image_paths(example: "Example", out: str) -> list[str]:
    """Absolute paths; for an image without a file of its own that of a copy in `out`, relative to it."""
    from rovrm.data.images import content_hash

    paths = []
    for ref in example.images:
        path = os.path.abspath(ref.path) if ref.path is not None else ""
        try:
            picture = None if path else ref.open()
        except UserError:  # the record says so
            path, picture = ref.name, None
        if picture is not None:
            path = f"images/{content_hash(picture)}.png"
            file = Path(out) / path
            file.parent.mkdir(exist_ok=True)
            picture.save(file)
        paths.append(path)
    return paths
