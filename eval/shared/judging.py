"""What the oracle, a reward model and the base say of a policy's answers to pictures of the world."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

MEASURES = ["false", "coverage", "length", "unreadable", "reward", "kl"]
AT_ONCE = 50  # prompts
MAX_NEW_TOKENS = 96


def judge_policy(
    policy: str, reward_model: str, examples: Sequence[Any], seed: int, n: int = 1
) -> dict[str, dict[str, float]]:
    """By decoding (`greedy`, `sampled` at temperature 1) the means of MEASURES over a policy's answers.

    false: share of answers with something false, or nothing that can be read. coverage: mean share of the scene's
    things that are named. length: tokens. reward: the reward model's. kl: of log pi - log pi_base over the answers, in
    nats; sampled ones estimate KL(pi, pi_base).

    Args:
        policy: folder.
        reward_model: folder.
        examples: prompts with pictures of the world.
        seed: of the samples.
        n: above 1, the reward model's best of n sampled answers is judged, and there is no greedy decoding and no kl.
    """
    from rovrm import RewardScorer
    from rovrm.model.policy import Policy

    model, scorer = Policy.from_pretrained(policy), RewardScorer.from_pretrained(reward_model)
    measures = {}
    for decoding, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        if n > 1 and decoding == "greedy":
            continue
        answers = []
        for start in range(0, len(examples), AT_ONCE):
            part = examples[start : start + AT_ONCE]
            answers += model.sample(part, n, temperature=temperature, max_new_tokens=MAX_NEW_TOKENS, seed=seed)
        texts = [[candidate.text for candidate in of_prompt] for of_prompt in answers]
        rewards = scorer.score_batch([with_answers(e, of) for e, of in zip(examples, texts, strict=True)])
        best = [max(range(n), key=of_prompt.__getitem__) for of_prompt in rewards]
        chosen = [of_prompt[i] for of_prompt, i in zip(answers, best, strict=True)]
        values = _verdicts(examples, [candidate.text for candidate in chosen])
        values["length"] = fmean(candidate.tokens for candidate in chosen)
        values["reward"] = fmean(of_prompt[i] for of_prompt, i in zip(rewards, best, strict=True))
        if n == 1:
            before = _base_logps(examples, [of_prompt[0] for of_prompt in texts])
            values["kl"] = fmean(c.logprob - logp for c, logp in zip(chosen, before, strict=True))
        measures[decoding] = values
    return measures


def verdict_of(example: Any, text: str) -> Any:
    """The oracle's verdict of an answer to a prompt with a picture of the world."""
    from rovrm.data.messages import text_of
    from rovrm.world.oracle import judge

    return judge(example.images[0].drawing.scene, text_of(example.prompt[-1]["content"]), text)


def with_answers(example: Any, answers: list[str]) -> Any:
    """The example with these answers in place of its responses."""
    from dataclasses import replace

    return replace(example, responses=answers, ranks=[0] * len(answers), lengths=None)


def _verdicts(examples: Sequence[Any], texts: Sequence[str]) -> dict[str, float]:
    verdicts = [verdict_of(example, text) for example, text in zip(examples, texts, strict=True)]
    return {
        "false": fmean(verdict.false for verdict in verdicts),
        "coverage": fmean(verdict.coverage for verdict in verdicts),
        "unreadable": fmean(not verdict.parsed for verdict in verdicts),
    }


def _base_logps(examples: Sequence[Any], texts: Sequence[str]) -> list[float]:
    """log pi_base of each answer, end of turn included."""
    import torch

    from rovrm.model.answer_collator import AnswerCollator
    from rovrm.model.batches import LOSS_KEYS
    from rovrm.model.likelihood import load_policy_model
    from rovrm.model.loading import load_processor
    from rovrm.world.default import BASE

    model = load_policy_model(BASE).eval()
    collator = AnswerCollator(load_processor(BASE), model.config)
    logps = []
    for start in range(0, len(examples), AT_ONCE):
        part = zip(examples[start : start + AT_ONCE], texts[start : start + AT_ONCE], strict=True)
        batch = collator([with_answers(example, [text]) for example, text in part])
        with torch.no_grad():
            logps += model(**{key: value for key, value in batch.items() if key not in LOSS_KEYS}).logps.tolist()
    return logps
