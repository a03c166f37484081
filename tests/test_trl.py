"""RewardScorer.reward in TRL's GRPO and RLOO trainers: real steps of a vision-language policy on pictures of the world.

What is expected is scored from the pictures as they were drawn, never from what went through TRL: an image that is
dropped or exchanged on the way makes the rewards differ.
"""

import functools
import math
import random
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from datasets import Dataset, Image
from helpers import close, forward_sizes

from rovrm.model.scorer import RewardScorer
from rovrm.world.default import BASE
from rovrm.world.scenes import Drawing, draw_scene

QUESTIONS = ("What do you see?", "Describe the picture.")
GENERATIONS = 3


class Step(NamedTuple):
    """One optimizer step: what TRL gave to the reward function and got back, and what came of it."""

    given: dict[str, Any]
    rewards: list[float]
    rows: list[int]  # of each forward of the reward model
    log: dict[str, float]
    moved: list[str]  # the policy's parameters that changed


@pytest.fixture(scope="module")
def scorer(reward) -> RewardScorer:
    return RewardScorer.from_pretrained(reward, device="cpu")


@functools.cache
def drawn(number: int):
    return Drawing(draw_scene(random.Random(number), "picture"), number)()


def pictures(number: int, column: str) -> Any:
    """The cell of this column in row 0 or 1: an image, or a list of two."""
    return drawn(number) if column == "image" else [drawn(number), drawn(number + 2)]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def data_set(column: str, folder: Path) -> Dataset:
    """One row per question: `image` is a path that the column decodes, `images` are embedded."""
    rows = [{"prompt": [user(text)], "number": i, column: pictures(i, column)} for i, text in enumerate(QUESTIONS)]
    if column == "images":
        return Dataset.from_list(rows)
    for row in rows:
        path = folder / f"{row['number']}.png"
        row[column].save(path)
        row[column] = str(path)
    return Dataset.from_list(rows).cast_column(column, Image())


def one_step(kind: str, scorer: RewardScorer, data: Dataset, folder: Path) -> Step:
    """kind: GRPO or RLOO. The policy is the shipped base, and TRL is given the bound method itself."""
    trl = pytest.importorskip("trl")
    calls, method = [], RewardScorer.reward

    @functools.wraps(method)
    def watched(self, **given):
        calls.append((given, method(self, **given)))
        return calls[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RewardScorer, "reward", watched)
        sizes = forward_sizes(patch, scorer.model)
        arguments = getattr(trl, f"{kind}Config")(
            output_dir=str(folder),
            per_device_train_batch_size=len(QUESTIONS) * GENERATIONS,
            num_generations=GENERATIONS,
            max_completion_length=10,
            temperature=1.5,
            learning_rate=1e-3,
            max_steps=1,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = getattr(trl, f"{kind}Trainer")(
            model=BASE, reward_funcs=scorer.reward, args=arguments, train_dataset=data
        )
        before = {name: tensor.detach().clone() for name, tensor in trainer.model.named_parameters()}
        trainer.train()
    moved = [name for name, tensor in trainer.model.named_parameters() if not torch.equal(tensor, before[name])]
    assert len(calls) == 1  # all completions of the batch together
    return Step(*calls[0], [rows for rows, _ in sizes], trainer.state.log_history[0], moved)


def answers(step: Step) -> list[str]:
    """The completions as text, without the space that follows the policy's "ASSISTANT:"."""
    found = step.given["completions"]
    return [(one if isinstance(one, str) else one[0]["content"]).lstrip() for one in found]


def one_by_one(scorer: RewardScorer, step: Step, images: list[Any]) -> list[float]:
    """Every completion scored alone, in a call of its own."""
    asked = [QUESTIONS[number] for number in step.given["number"]]
    rows = zip(asked, answers(step), images, strict=True)
    return [scorer.score(question, [answer], images=image)[0] for question, answer, image in rows]


def apart(one: list[float], other: list[float]) -> bool:
    """Whether every reward differs."""
    return all(abs(a - b) > 1e-3 for a, b in zip(one, other, strict=True))


COLUMNS = [(kind, column) for kind in ("GRPO", "RLOO") for column in ("image", "images")]


@pytest.fixture(scope="module", params=COLUMNS, ids="-".join)
def taken(request, scorer, tmp_path_factory) -> tuple[Step, str]:
    kind, column = request.param
    folder = tmp_path_factory.mktemp("policy")
    return one_step(kind, scorer, data_set(column, folder), folder), column


def test_every_reward_is_that_of_the_picture_and_the_completion_alone(taken, scorer):
    step, column = taken
    numbers = step.given["number"]
    assert sorted(numbers) == [0] * GENERATIONS + [1] * GENERATIONS and len(set(answers(step))) > 2
    assert all(turn["role"] == "assistant" for (turn,) in step.given["completions"])
    expected = one_by_one(scorer, step, [pictures(number, column) for number in numbers])
    assert close(step.rewards, expected)
    assert apart(expected, one_by_one(scorer, step, [None] * len(numbers)))
    assert apart(expected, one_by_one(scorer, step, [pictures(1 - number, column) for number in numbers]))
    seen = [step.log["rewards/reward/mean"], step.log["rewards/reward/std"]]
    assert close(seen, [statistics.fmean(expected), statistics.stdev(expected)])


def test_completions_of_a_prompt_share_its_row(taken):
    step, _ = taken
    assert step.rows == [len(QUESTIONS)]


def test_the_policy_moves(taken):
    step, _ = taken
    assert math.isfinite(step.log["reward"]) and step.log["reward_std"] > 0
    assert {part for name in step.moved for part in ("multi_modal_projector", "language_model") if part in name} == {
        "multi_modal_projector",
        "language_model",
    }


def test_other_images_or_none_give_other_rewards(taken, scorer):
    step, column = taken
    numbers = step.given["number"]
    others = {key: value for key, value in step.given.items() if key not in ("prompts", column)}

    def again(prompt, of: list[int] | None) -> list[float]:
        images = {} if of is None else {column: [pictures(number, column) for number in of]}
        return scorer.reward(prompts=[prompt(QUESTIONS[number]) for number in numbers], **others, **images)

    for prompt in (lambda text: text, lambda text: [user(text)]):
        assert close(again(prompt, numbers), step.rewards)
        assert apart(again(prompt, [1 - number for number in numbers]), step.rewards)
        assert apart(again(prompt, None), step.rewards)
        empty = {column: [None] * len(numbers)}
        none = scorer.reward(prompts=[prompt(QUESTIONS[number]) for number in numbers], **others, **empty)
        assert close(none, again(prompt, None))
    # TRL's own prompts hold the images too, so these are seen where the column is left out.
    assert close(scorer.reward(prompts=step.given["prompts"], **others), step.rewards)


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_prompts_that_are_strings(kind, scorer, tmp_path):
    """TRL takes strings without images alone; the call with images is in the test above."""
    data = Dataset.from_list([{"prompt": text, "number": i} for i, text in enumerate(QUESTIONS)])
    step = one_step(kind, scorer, data, tmp_path)
    assert all(isinstance(one, str) for one in step.given["prompts"] + step.given["completions"])
    expected = one_by_one(scorer, step, [None] * len(step.rewards))
    assert close(step.rewards, expected) and step.rows == [len(QUESTIONS)]
    assert close([step.log["rewards/reward/mean"]], [statistics.fmean(expected)])


def test_images_of_the_column_beside_those_that_a_prompt_holds(scorer, tmp_path):
    """A worked example with its own picture, then the question, whose empty block TRL fills from the column."""

    def turns(question: str) -> list[dict[str, Any]]:
        example = [{"type": "image", "image": drawn(3)}, {"type": "text", "text": QUESTIONS[0]}]
        said = {"role": "assistant", "content": [{"type": "text", "text": "There is a small red star."}]}
        return [user(example), said, user([{"type": "image"}, {"type": "text", "text": question}])]

    def filled(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        prompts = [turns(QUESTIONS[number]) for number in batch["number"]]
        return batch | {"prompt": prompts, "images": [[drawn(number)] for number in batch["number"]]}

    data = Dataset.from_list([{"number": i} for i in range(len(QUESTIONS))]).with_transform(filled)
    step = one_step("GRPO", scorer, data, tmp_path)

    def expected(images: dict[int, list[Any]]) -> list[float]:
        rows = zip(step.given["number"], answers(step), strict=True)
        return [scorer.score(turns(QUESTIONS[n]), [answer], images=images[n])[0] for n, answer in rows]

    assert close(step.rewards, expected({n: [drawn(3), drawn(n)] for n in (0, 1)}))
    assert close(step.rewards, expected({n: [drawn(n), drawn(3)] for n in (0, 1)}))  # the first block names its own
    assert apart(step.rewards, expected({n: [drawn(3), drawn(1 - n)] for n in (0, 1)}))
    assert step.rows == [len(QUESTIONS)]
