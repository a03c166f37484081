"""The reward model as a Python scorer.

    from rovrm import RewardScorer

    scorer = RewardScorer.from_pretrained("runs/demo/phase3-visual")
    scorer.score("What is on the table?", ["A cup.", "A dog."], images="photo.jpg")   # -> [1.83, -0.41]

    rows = [
        {"prompt": "What is on the table?", "responses": ["A cup.", "A dog."], "images": "photo.jpg"},
        {"prompt": "What is 2 plus 3?", "responses": ["5"]},
    ]
    scorer.score_batch(rows)                                                          # -> [[1.83, -0.41], [0.67]]

A reward is one number for a whole conversation: prompt, images and the response at its end. It compares responses to
one prompt, and means nothing by itself. Prompts, messages and `<image>` placeholders are read by the code that reads
the training data, so that a row means the same in both.
"""

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.data.images import find_image, open_images
from rovrm.data.prompts import example_or_error
from rovrm.model import contract
from rovrm.model.adapters import load_to_score
from rovrm.model.batches import batch_loader, collect_rewards, fitting_into_memory, plan_batches, split_batch
from rovrm.model.collator import RewardCollator
from rovrm.model.reward import group_samples, rewards_or_none
from rovrm.settings.keys import MAX_PIXELS

if TYPE_CHECKING:
    from rovrm.settings.keys import ScoreConfig, ServeConfig


MANY = 32  # examples from which it pays to start worker processes that measure them


class RewardScorer:
    """Scores responses to prompts about images; higher is better. Calls from several threads wait for each other.

    Args:
        model: a reward model (rovrm/model/modeling.py). processor: its processor; of a text model its tokenizer.
        rows: `shared` encodes a prompt and its images once for all responses, `separate` once for each; `auto` shares
            where that is proved exact for the model's family.
        workers: processes that read images and build batches; 0 for none.

    Attributes:
        max_length: tokens of the longest conversation that is scored, at first the model's own limit; None for none.
        max_pixels: pixels of all images of a row together, at most.
        mean, std: of the rewards on held-out data at the end of training, as the checkpoint's config has them; None
            where it has none. With `normalize=True` every method below returns (reward - mean) / std.
    """

    def __init__(self, model: Any, processor: Any, rows: str = "auto", workers: int = 0):
        self.model, self.processor, self.workers = model.eval(), processor, workers
        self.collator = RewardCollator(processor, model.config, rows)
        self.mean = getattr(model.config, "reward_mean", None)
        self.std = getattr(model.config, "reward_std", None)
        self.max_length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_pixels = MAX_PIXELS
        self._lock = threading.RLock()  # fast tokenizers refuse two threads at once ("Already borrowed")

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        *,
        adapter: str | os.PathLike | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        rows: str = "auto",
        workers: int = 0,
        trust_remote_code: bool = False,
        verify: bool = True,
    ) -> "RewardScorer":
        """Loads a reward checkpoint.

        Args:
            name: a folder that rovrm.train wrote, or a hub id. A folder that holds an adapter alone is put on its base
                model, which is loaded too.
            adapter: a phase folder, or an adapter's folder, to put on the model `name`.
            device: where the model runs; None for the GPU if there is one, else the CPU.
            dtype: numbers of the model: `float32`, `bfloat16`, `float16` or a `torch.dtype`; `auto` is bfloat16 on a
                GPU that has it, else float32. The head is float32 always.
            rows, workers: as in the class. trust_remote_code: lets the checkpoint run code of its own.
            verify: looks whether the rewards that the checkpoint promises come out (rovrm/model/contract.py).

        Raises:
            UserError: for what is no reward model, for an adapter without a head on a base that has none, and where the
                rewards are not the promised ones.
        """
        loaded = load_to_score(os.fspath(name), adapter, device, dtype, trust_remote_code)
        scorer = cls(loaded.model, loaded.processor, rows=rows)
        if verify:
            contract.check(scorer, contract.read(loaded.place), loaded.place, loaded.doubt)
        scorer.workers = workers  # from now on: to start them for the check takes longer than the check
        return scorer

    # ---- scoring -----------------------------------------------------------------------------------------------------

    def score(self, prompt: Any, responses: Sequence[Any], images: Any = None, normalize: bool = False) -> list[float]:
        """The rewards of responses to one prompt.

            scorer.score("Which is older?", ["The left one.", "The right one."], images=["left.jpg", "right.jpg"])

        Args:
            prompt: a string or chat messages.
            responses: one or more strings.
            images: a path, a PIL image, or a list of them; None for those inside the messages' content blocks, if any.
            normalize: in standard deviations from the mean of held-out rewards.

        Returns:
            One reward per response.
        """
        row = {"prompt": prompt, "responses": responses, "images": images}
        return self.score_batch([row], normalize=normalize)[0]

    def score_batch(
        self,
        examples: Sequence[Example | Mapping[str, Any]],
        batch_tokens: int = 16384,
        normalize: bool = False,
        progress: bool = False,
    ) -> list[list[float]]:
        """The rewards of the responses of many examples.

            scorer.score_batch([{"prompt": "What is this?", "responses": ["A cup.", "A dog."], "images": "photo.jpg"}])

        Args:
            examples: mappings with `prompt` (a string or chat messages), `responses` (or `chosen` and `rejected`, or
                `response`), optionally `images` and `system`; or rows of any format that training reads, whose answers
                are scored in the row's own order; or Examples.
            batch_tokens: padded tokens of one forward, at most; an example with more is scored in several.
            normalize: in standard deviations from the mean of held-out rewards.
            progress: shows a progress bar.

        Returns:
            One list per example, in order, with one reward per response.

        Raises:
            UserError: for the first example that cannot be scored.
        """
        if normalize:
            self.require_stats()
        with self._lock:
            measured = self.measure(examples)
            for example in measured:
                if isinstance(example, UserError):
                    raise example
            [rewards] = self._rewards([measured], batch_tokens, normalize, None, progress)  # type: ignore[list-item]
        return rewards

    def score_or_error(
        self,
        rows: Sequence[Example | Mapping[str, Any] | UserError],
        batch_tokens: int = 16384,
        normalize: bool = False,
        find: Callable[[str], str] = find_image,
    ) -> list[list[float] | UserError]:
        """As `score_batch`, but an example that cannot be scored gives the UserError that says why. find: as in
        `measure`."""
        scored: list[list[float] | UserError] = []
        for unit in self.score_units(rows, len(rows) or 1, batch_tokens, normalize, find):
            scored += unit
        return scored

    def score_units(
        self,
        rows: Sequence[Example | Mapping[str, Any] | UserError],
        size: int,
        batch_tokens: int = 16384,
        normalize: bool = False,
        find: Callable[[str], str] = find_image,
        batch_size: int | None = None,
    ) -> Iterator[list[list[float] | UserError]]:
        """As `score_or_error`, but unit by unit, each as soon as it is there. No batch holds rows of two units, so that
        the last digits of a unit's rewards do not depend on what else is scored.

        Args:
            rows: as in `score_batch`; a UserError among them stays one.
            size: rows of a unit.
            find: as in `measure`.
            batch_size: rows of a batch, at most; None for no limit. Without one a unit of short rows may be a single
                batch, padded to its longest.
        """
        if normalize:
            self.require_stats()
        with self._lock:
            measured = self.measure(rows, find)
            units = [measured[start : start + size] for start in range(0, len(measured), size)]
            good = [[example for example in unit if isinstance(example, Example)] for unit in units]
            for unit, rewards_of_good in zip(
                units, self._rewards(good, batch_tokens, normalize, batch_size), strict=True
            ):
                rewards = iter(rewards_of_good)
                yield [example if isinstance(example, UserError) else next(rewards) for example in unit]

    def reward(
        self, prompts: Sequence[Any], completions: Sequence[Any], images: Sequence[Any] | None = None, **columns: Any
    ) -> list[float | None]:
        """A reward function for TRL's GRPO and RLOO trainers.

            GRPOTrainer(policy, reward_funcs=scorer.reward, ...)

        Samples of the same prompt and images (by path or pixels) that follow each other are scored together. White
        space that leads a completion is dropped: a policy begins with a space where its chat template ends without one.

        Args:
            prompts: strings or chat messages, one per sample.
            completions: strings or TRL's `[{"role": "assistant", "content": ...}]`, one per sample; of several turns
                the last is scored, and the others join the prompt.
            images: an image, a list of them or None, for each sample. Where it is None, or holds fewer than the content
                blocks of the prompt (TRL adds its images to them), those in the prompt are used.
            columns: `image` stands for `images`, sample by sample; a column that holds video, audio, or pictures under
                another name, is refused; all others are ignored.

        Returns:
            One reward per sample. None, which TRL leaves out, for a completion that cannot be scored: one that is too
            long or empty of turns, that calls tools or ends with a tool's turn, whose picture is missing, or that holds
            the text of an image token or of a token that ends turns. Each reason of a call is logged once.

        Raises:
            UserError: a column holds video, audio or pictures that would not be read, or the lists differ in length.
        """
        return rewards_or_none(self.score_or_error, group_samples(prompts, completions, images, columns))

    def measure(
        self, rows: Sequence[Example | Mapping[str, Any] | UserError], find: Callable[[str], str] = find_image
    ) -> list[Example | UserError]:
        """Every row as an Example with its lengths in tokens, or the UserError that says why it cannot be scored.
        Images are decoded for it, in the worker processes.

        rows: as in `score_batch`; a UserError among them stays one. find: the name of an image in a row -> its path.
        """
        examples: list[Example | UserError] = [example_or_error(row, i, find) for i, row in enumerate(rows)]
        unmeasured = [i for i, e in enumerate(examples) if isinstance(e, Example) and e.lengths is None]
        lengths_of = _Lengths([examples[i] for i in unmeasured], self.collator, self.max_pixels)  # type: ignore[misc]
        workers = self.workers if len(unmeasured) >= MANY else 0
        looks: list[tuple[int, list[int]] | str] = []
        with self._lock:
            for batch in DataLoader(lengths_of, batch_size=8, num_workers=workers, collate_fn=list):
                looks += batch
        for i, look in zip(unmeasured, looks, strict=True):
            examples[i] = UserError(look) if isinstance(look, str) else replace(examples[i], lengths=look)  # type: ignore[type-var]
        return [self._short_enough(example) if isinstance(example, Example) else example for example in examples]

    def require_stats(self) -> None:
        """Raises UserError where the checkpoint does not know its rewards' mean and spread."""
        if self.mean is None or not self.std:
            raise UserError(
                "this checkpoint holds no reward_mean and reward_std in its config; score with normalize=False"
            )

    # ---- the steps of scoring ----------------------------------------------------------------------------------------

    def _short_enough(self, example: Example) -> Example | UserError:
        longest = example.lengths[0] + max(example.lengths[1])  # type: ignore[index]
        if not self.max_length or longest <= self.max_length:
            return example
        return UserError(
            f"example {example.id}: a conversation of {longest} tokens is longer than max_length={self.max_length}; "
            "shorten prompt or response"
        )

    def _rewards(
        self,
        units: list[list[Example]],
        batch_tokens: int,
        normalize: bool,
        batch_size: int | None,
        progress: bool = False,
    ) -> Iterator[list[list[float]]]:
        """Yields the rewards of each unit as soon as they are there; one loader builds the batches of all, ahead."""
        # An example whose responses do not fit into one forward is scored in parts, each an example of its own.
        parts: list[Example] = []
        numbers: list[list[int]] = []  # of the responses of each part, in its example
        owners: list[list[float]] = []  # of each part: the rewards of its example, filled in as they come
        rewards_of_units = [[[math.nan] * len(example.responses) for example in unit] for unit in units]
        plans: list[list[list[int]]] = []
        for unit, rewards_of_unit in zip(units, rewards_of_units, strict=True):
            start = len(parts)
            for example, rewards in zip(unit, rewards_of_unit, strict=True):
                for responses in self.collator.split(example.lengths, batch_tokens):  # type: ignore[arg-type]
                    parts.append(_part_of(example, responses))
                    numbers.append(responses)
                    owners.append(rewards)
            mine = range(start, len(parts))
            plans.append(plan_batches(parts, self.collator, batch_tokens, batch_size or len(mine), None, mine))

        joined = [batch for plan in plans for batch in plan]
        loader = batch_loader(parts, joined, self.collator, self.workers if len(joined) > 1 else 0)
        batches = iter(tqdm(loader, desc="scoring", disable=not progress))
        for unit, rewards_of_unit, plan in zip(units, rewards_of_units, plans, strict=True):
            rewards_by_part: dict[int, dict[int, float]] = {}
            for _ in plan:
                self._score(next(batches), rewards_by_part)
            for part, rewards_by_response in rewards_by_part.items():
                for place, reward in rewards_by_response.items():
                    owners[part][numbers[part][place]] = reward
            _check_finite(unit, rewards_of_unit)
            yield self._normalized(rewards_of_unit) if normalize else rewards_of_unit

    def _normalized(self, rewards_of_unit: list[list[float]]) -> list[list[float]]:
        return [[(reward - self.mean) / self.std for reward in rewards] for rewards in rewards_of_unit]  # type: ignore[operator]

    @torch.inference_mode()
    def _score(self, batch: dict[str, Any], rewards_by_part: dict[int, dict[int, float]]) -> None:
        """One forward; its rewards go into `rewards_by_part`, by part and response."""
        device = next(self.model.parameters()).device
        model_inputs, loss_inputs = split_batch(batch)
        with fitting_into_memory(len(loss_inputs["labels"])):
            rewards = self.model(**{key: value.to(device) for key, value in model_inputs.items()}).logits[:, 0]
        collect_rewards(loss_inputs, rewards.cpu(), rewards_by_part)


class _Lengths(Dataset):
    """`self[i]`: the lengths of an example (rovrm/data/example.py), or a text that says why it cannot be scored."""

    def __init__(self, examples: Sequence[Example], collator: RewardCollator, max_pixels: int):
        self.examples, self.collator, self.max_pixels = examples, collator, max_pixels

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[int, list[int]] | str:
        example = self.examples[index]
        try:
            return self.collator.lengths(example, list(open_images(example.images, self.max_pixels)))
        except UserError as error:
            return f"example {example.id}: {error}"
        except Exception as error:  # an image processor may refuse an odd image with any exception: the row says which
            return f"example {example.id}: {type(error).__name__}: {error}"


def _part_of(example: Example, numbers: list[int]) -> Example:
    """The example with these of its responses alone."""
    prefix, lengths = example.lengths or (0, [])
    return replace(
        example,
        responses=[example.responses[j] for j in numbers],
        ranks=[0] * len(numbers),
        lengths=(prefix, [lengths[j] for j in numbers]),
    )


def _check_finite(examples: list[Example], rewards_of_unit: list[list[float]]) -> None:
    for example, rewards in zip(examples, rewards_of_unit, strict=True):
        if not all(map(math.isfinite, rewards)):
            raise UserError(f"example {example.id}: rewards {rewards}; the model overflows, score with dtype=float32")


# ---- loading ---------------------------------------------------------------------------------------------------------


def load_scorer(config: "ScoreConfig | ServeConfig", workers: int = 0) -> RewardScorer:
    """The scorer that the settings of a command ask for."""
    scorer = RewardScorer.from_pretrained(
        config.model,
        device=config.device or None,
        dtype=config.dtype,
        rows=config.rows,
        workers=workers,
        trust_remote_code=config.trust_remote_code,
        verify=config.verify,
    )
    scorer.max_length = config.max_length or scorer.max_length
    scorer.max_pixels = config.max_pixels
    if config.normalize:
        scorer.require_stats()
    return scorer
