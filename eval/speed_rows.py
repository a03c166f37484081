"""Shared prompts against separate rows: scoring, through rovrm.bon, sampling and training. For eval.speed."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoModelForImageTextToText

from eval.shared.keys import SpeedConfig
from eval.shared.made_up import make_batches, make_examples, make_reward_model
from eval.shared.timing import alternate, peak_memory, print_rates
from rovrm.best_of_n.choose import best_of_n
from rovrm.data.images import ImageRef
from rovrm.model.adapters import lora_config, set_trainable
from rovrm.model.batches import collect_rewards, split_batch
from rovrm.model.policy import Candidate, Policy
from rovrm.model.scorer import RewardScorer
from rovrm.settings.keys import BonConfig
from rovrm.training.losses import compare, preference_loss

NEW_TOKENS = 32  # of a sampled answer, at most
ROWS = ("separate", "shared")  # both sides, the slower one first
REWARD_LIMIT = {"float32": 1e-4, "bfloat16": 0.1}  # how far the two sides' rewards may differ
LOSS_LIMIT = {"float32": 1e-4, "bfloat16": 0.05}  # and their losses


def compare_rows(config: SpeedConfig) -> None:
    torch.manual_seed(config.seed)
    model, processor = make_reward_model(config.size, config.device, config.dtype)
    parameters = sum(weight.numel() for weight in model.parameters()) / 1e6
    print(
        f"{parameters:.1f}M parameters, {config.dtype}, {config.device}, {torch.get_num_threads()} threads, "
        f"{config.batch_tokens} tokens a batch, responses of about {config.response_length} tokens"
    )
    for responses in config.responses:
        compare_scoring(config, model, processor, responses)
    compare_bon(config, model, processor, config.responses[0])
    compare_sampling(config, model, processor, config.responses[0])
    compare_training(config, model, processor)


def compare_scoring(config: SpeedConfig, model: Any, processor: Any, responses: int) -> None:
    model.eval()
    data = _examples(config, max(2, config.pairs // 2), responses)
    batches = {rows: _batches_of(config, model, processor, data, rows) for rows in ROWS}
    rewards: dict[str, dict[int, dict[int, float]]] = {rows: {} for rows in ROWS}  # by example and response

    @torch.inference_mode()
    def score(rows: str) -> None:
        for batch in batches[rows]:
            model_inputs, loss_inputs = split_batch(batch)
            collect_rewards(loss_inputs, model(**model_inputs).logits[:, 0], rewards[rows])

    score("separate")
    score("shared")
    gaps = []
    for i, by_response in rewards["separate"].items():
        for j, reward in by_response.items():
            gaps.append(abs(rewards["shared"][i][j] - reward))
    limit = REWARD_LIMIT[config.dtype]
    print(f"\nscoring k={responses}: {len(gaps)} rewards differ by at most {max(gaps):.1e} (limit {limit:g})")
    assert max(gaps) < limit, "the two sides do not compute the same rewards"
    _time_rows(config, "responses", len(gaps), score)


def compare_bon(config: SpeedConfig, model: Any, processor: Any, responses: int) -> None:
    """What rovrm.bon does with the candidates of a file."""
    data = _examples(config, max(2, config.pairs // 2), responses)
    scorers = {rows: RewardScorer(model, processor, rows) for rows in ROWS}
    scores: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for example in data:
            file = Path(folder) / f"{example.id}.png"
            example.images[0].open().save(file)
            example.images = [ImageRef(path=str(file))]
        settings = BonConfig(out=folder, batch_tokens=config.batch_tokens)

        def choose(rows: str) -> None:
            records = best_of_n(scorers[rows], data, settings, None, 0)
            scores[rows] = [score for record in records for score in record["scores"]]

        choose("separate")
        choose("shared")
        gap = max(abs(a - b) for a, b in zip(scores["separate"], scores["shared"], strict=True))
        print(f"\nbest of {responses} through rovrm.bon: rewards differ by at most {gap:.1e}")
        assert gap < REWARD_LIMIT[config.dtype], "the two sides do not compute the same rewards"
        _time_rows(config, "candidates", len(scores["shared"]), choose)


def compare_sampling(config: SpeedConfig, model: Any, processor: Any, responses: int) -> None:
    """Answers of a policy with the reward model's shapes: each prompt run once, or once for every answer."""
    causal = AutoModelForImageTextToText.from_config(model.config, dtype=getattr(torch, config.dtype))
    policy = Policy(causal.to(config.device), processor)
    data = _examples(config, max(2, config.pairs // 2), 1)
    answers: dict[str, list[Candidate]] = {}

    def sample(rows: str) -> None:
        policy.shared = rows == "shared"
        found = policy.sample(data, responses, max_new_tokens=NEW_TOKENS, seed=config.seed)
        answers[rows] = [answer for of_prompt in found for answer in of_prompt]

    sample("separate")
    sample("shared")
    gap = max(abs(a.logprob - b.logprob) for a, b in zip(answers["separate"], answers["shared"], strict=True))
    longest = max(answer.tokens for answer in answers["shared"])
    print(f"\nsampling k={responses}, up to {longest} tokens: log-probabilities differ by at most {gap:.1e}")
    if config.dtype == "float32":  # in bfloat16 a token may fall otherwise, and all behind it
        assert gap < REWARD_LIMIT[config.dtype], "the two sides do not sample the same answers"
    _time_rows(config, "answers", len(answers["shared"]), sample)


def compare_training(config: SpeedConfig, model: Any, processor: Any) -> None:
    adapted: Any = get_peft_model(model, lora_config(model, r=16, alpha=32, dropout=0.0))
    set_trainable(adapted, visual=True, full=False)
    if config.checkpointing:
        adapted.gradient_checkpointing_enable({"use_reentrant": False})
    adapted.train()
    data = _examples(config, config.pairs, 2)
    batches = {rows: _batches_of(config, adapted, processor, data, rows) for rows in ROWS}
    # A rate of 0: every step is computed in full, and the weights stay the same for the other side.
    optimizer = torch.optim.AdamW([weight for weight in adapted.parameters() if weight.requires_grad], lr=0.0)
    losses: dict[str, float] = {}

    def train(rows: str) -> None:
        losses[rows] = 0.0
        for batch in batches[rows]:
            model_inputs, loss_inputs = split_batch(batch)
            with torch.autocast(config.device.split(":")[0], torch.bfloat16, enabled=config.dtype == "bfloat16"):
                logits = adapted(**model_inputs).logits[:, 0]
            comparison = compare(logits, loss_inputs["labels"], loss_inputs["list_ids"])
            loss = preference_loss(comparison, loss_inputs["margins"]) / (2 * config.pairs)
            loss.backward()
            losses[rows] += loss.item()
        optimizer.step()
        optimizer.zero_grad()

    train("separate")
    train("shared")
    gap = abs(losses["shared"] - losses["separate"])
    print(
        f"\ntraining pairs (LoRA, forward, backward, step): losses {losses['separate']:.6f} and {losses['shared']:.6f}"
    )
    assert gap < LOSS_LIMIT[config.dtype], "the two sides do not compute the same loss"
    _time_rows(config, "pairs", config.pairs, train)


def _examples(config: SpeedConfig, count: int, responses: int) -> list[Any]:
    return make_examples(count, responses, config.seed, response_length=config.response_length)


def _batches_of(config: SpeedConfig, model: Any, processor: Any, data: list[Any], rows: str) -> list[dict[str, Any]]:
    return make_batches(model, processor, data, rows, config.batch_tokens, config.device, config.dtype)


def _time_rows(config: SpeedConfig, unit: str, count: int, work: Any) -> None:
    """Times and prints `work("separate")` against `work("shared")`, and the memory that each takes."""
    sides = {"separate rows": lambda: work("separate"), "shared prompts": lambda: work("shared")}
    print_rates(unit, count, alternate(sides, config.repeats, config.device))
    peaks = [f"{peak_memory(side, config.device):.0f}" for side in sides.values()]
    print(f"  memory at the peak, beyond the weights: {' and '.join(peaks)} MiB")
