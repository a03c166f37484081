"""The reward model as a Python scorer.

    from rovrm import RewardScorer
    scorer = RewardScorer.from_pretrained("runs/demo/phase3-visual")
    scorer.score("What is on the table?", ["A cup.", "A dog."], images="photo.jpg")   # -> [1.83, -0.41]

Responses to one prompt share their row: prompt and image are encoded once. Prompts, messages and `<image>` placeholders
are read by the code that reads the training data, so that a row means the same in both.
"""

import logging
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
from rovrm.data.formats import VIDEO_COLUMNS
from rovrm.data.images import ImageRef, find_image, open_images
from rovrm.data.prompts import as_example, as_messages, example_or_error, holds_more
from rovrm.model.batches import PlannedBatches, batch_loader, collect_rewards, plan_batches, split_batch
from rovrm.model.collator import RewardCollator, split_responses
from rovrm.settings.keys import MAX_PIXELS

if TYPE_CHECKING:
    from rovrm.settings.keys import ScoreConfig, ServeConfig


logger = logging.getLogger(__name__)
MANY = 32  # examples from which it pays to start worker processes that measure them


class RewardScorer:
    """Scores responses to prompts about images; higher is better. Calls from several threads wait for each other.

    model: a reward model (rovrm/model/modeling.py). processor: its processor or tokenizer. rows: auto | shared |
    separate. workers: processes that read images and build batches; 0 = none. `max_length`: tokens of the longest
    conversation taken, at first the model's own limit; `max_pixels`: pixels of all images of a row together.
    normalize=True in the calls below gives (reward - mean) / spread, with the two taken on held-out data at the end of
    training.
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
    ) -> "RewardScorer":
        """Loads a reward checkpoint: a folder that rovrm.train wrote (the full model, or only an adapter, whose base is
        then loaded), or a hub id. adapter: a phase folder or adapter folder to put on the model `name`. dtype auto:
        bfloat16 on a GPU that has it, else float32; the head is float32 always. Raises UserError for what is no reward
        model, and for an adapter without a head on a base that has none.
        """
        from rovrm.model.adapters import adapter_folder, base_of, brings_head, load_adapter, phase_record, processor_of
        from rovrm.model.loading import is_reward_model, load_config, load_processor, load_reward_model

        base, folder = os.fspath(name), None
        place = _device(device)
        if adapter is not None or (os.path.isdir(base) and not os.path.isfile(os.path.join(base, "config.json"))):
            folder = adapter_folder(base if adapter is None else adapter)
            base = base_of(folder) if adapter is None else base
        config = load_config(base, trust_remote_code)
        if not is_reward_model(config) and not (folder is not None and brings_head(folder)):
            raise UserError(
                f"{os.fspath(adapter or name)!r} is no reward model (architecture "
                f"{(config.architectures or ['none'])[0]}, and no adapter with a trained `score`); train one with "
                "rovrm.train"
            )
        model: Any = load_reward_model(base, _dtype(dtype, place), trust_remote_code=trust_remote_code)
        if folder is not None:
            model = load_adapter(model, str(folder), trainable=False)
            record = phase_record(folder.parent)  # the base's own mean and spread, if any, are not the adapter's
            model.config.reward_mean, model.config.reward_std = record.get("reward_mean"), record.get("reward_std")
        processor = load_processor(processor_of(folder, base), "", trust_remote_code, config)
        return cls(model.to(place), processor, rows=rows, workers=workers)

    def score(self, prompt: Any, responses: Sequence[Any], images: Any = None, normalize: bool = False) -> list[float]:
        """One reward per response. prompt: a string or chat messages. images: None, a path, a PIL image, or a list of
        them; without it, those inside the messages' content blocks. Raises UserError as `score_batch`."""
        return self.score_batch([{"prompt": prompt, "responses": responses, "images": images}], normalize=normalize)[0]

    def score_batch(
        self,
        examples: Sequence[Example | Mapping[str, Any]],
        batch_tokens: int = 16384,
        normalize: bool = False,
        progress: bool = False,
    ) -> list[list[float]]:
        """One list of rewards per example, in order: k rewards for k responses.

        examples: mappings with `prompt` (a string or chat messages), `responses` (or `chosen` and `rejected`, or
        `response`), optionally `images` and `system`; rows of any format that training reads, whose answers are then
        the same and in the row's order; or Examples. A forward takes at most `batch_tokens` padded
        tokens; an example with more is scored in several. Raises UserError for the first example that cannot be scored.
        """
        if normalize:
            self.require_stats()
        with self._lock:
            ready = self.measure(examples)
            for example in ready:
                if isinstance(example, UserError):
                    raise example
            [rewards] = self._rewards([ready], batch_tokens, normalize, None, progress)  # type: ignore[list-item]
        return rewards

    def score_or_error(
        self,
        rows: Sequence[Example | Mapping[str, Any]],
        batch_tokens: int = 16384,
        normalize: bool = False,
        find: Callable[[str], str] = find_image,
    ) -> list[list[float] | UserError]:
        """As `score_batch`, but an example that cannot be scored gives the UserError that says why. find: as in
        `measure`."""
        return [r for unit in self.score_units(rows, len(rows) or 1, batch_tokens, normalize, find) for r in unit]

    def score_units(
        self,
        rows: Sequence[Example | Mapping[str, Any] | UserError],
        size: int,
        batch_tokens: int = 16384,
        normalize: bool = False,
        find: Callable[[str], str] = find_image,
        batch_size: int | None = None,
    ) -> Iterator[list[list[float] | UserError]]:
        """As `score_or_error`, `size` rows after another: no batch holds rows of two of these units, so that the last
        digits of a unit's rewards do not depend on what else is scored. A UserError among the rows stays one.
        batch_size: rows of a batch, at most; a unit of short rows would be one, padded to its longest."""
        if normalize:
            self.require_stats()
        with self._lock:
            measured = self.measure(rows, find)
            units = [measured[start : start + size] for start in range(0, len(measured), size)]
            good = [[example for example in unit if isinstance(example, Example)] for unit in units]
            for unit, found in zip(units, self._rewards(good, batch_tokens, normalize, batch_size), strict=True):
                rewards = iter(found)
                yield [example if isinstance(example, UserError) else next(rewards) for example in unit]

    def reward(
        self, prompts: Sequence[Any], completions: Sequence[Any], images: Sequence[Any] | None = None, **columns: Any
    ) -> list[float | None]:
        """A reward function for TRL's GRPO and RLOO trainers: one reward per (prompt, completion).

        prompts: strings or chat messages. completions: strings or TRL's `[{"role": "assistant", "content": ...}]`; of
        several turns the last is scored, the others join the prompt. images (or a column `image`): per sample an image,
        a list or None; where it is None, the images inside the prompt's content blocks are used, and where these hold
        more than it, since TRL adds it to them. White space that leads a completion is dropped: a policy begins with
        a space where its chat template ends without one. Samples of the same prompt and images (by path or pixels)
        that follow each other share their row. A completion that cannot be scored (too long, or with the text of the
        image token or of one that ends turns) gets None, by which TRL leaves it out, and is logged; if none of a call
        can be, UserError is raised. Other columns are ignored, but video is refused.
        """
        images = columns.get("image") if images is None else images
        groups: list[Example] = []
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            if not isinstance(completion, str) and len(completion) > 1:
                prompt = as_messages(prompt) + list(completion[:-1])
                completion = completion[-1:]
            pictures = None if images is None or holds_more(prompt, images[i]) else images[i]
            row = {"prompt": prompt, "responses": [completion], "images": pictures}
            for column in VIDEO_COLUMNS:
                row[column] = columns[column][i] if columns.get(column) is not None else None
            example = as_example(row, i)
            example.responses = [text.lstrip() for text in example.responses]
            if groups and groups[-1].prompt == example.prompt and _same_images(groups[-1].images, example.images):
                groups[-1].responses += example.responses
                groups[-1].ranks += example.ranks
            else:
                groups.append(example)
        return self._rewards_or_none(groups)

    def measure(
        self, rows: Sequence[Example | Mapping[str, Any] | UserError], find: Callable[[str], str] = find_image
    ) -> list[Example | UserError]:
        """Every row as an Example with its lengths, or the UserError that says why it cannot be scored. Images are
        decoded for it, in the worker processes. find: an image's name in a row -> its path."""
        found: list[Example | UserError] = [example_or_error(row, i, find) for i, row in enumerate(rows)]
        todo = [i for i, e in enumerate(found) if isinstance(e, Example) and e.lengths is None]
        looks = _Lengths([found[i] for i in todo], self.collator, self.max_pixels)  # type: ignore[misc]
        with self._lock:
            workers = self.workers if len(todo) >= MANY else 0
            loader = DataLoader(looks, batch_size=8, num_workers=workers, collate_fn=list)
            for i, lengths in zip(todo, (one for batch in loader for one in batch), strict=True):
                fine = isinstance(lengths, tuple)
                found[i] = replace(found[i], lengths=lengths) if fine else UserError(lengths)  # type: ignore[type-var]
        return [self._short_enough(e) if isinstance(e, Example) else e for e in found]

    def require_stats(self) -> None:
        """Raises UserError where the checkpoint does not know its rewards' mean and spread."""
        if self.mean is None or not self.std:
            raise UserError(
                "this checkpoint holds no reward_mean and reward_std in its config; score with normalize=False"
            )

    # ------------------------------------------------------------------------------------------------------------------

    def _rewards_or_none(self, groups: list[Example]) -> list[float | None]:
        """Rewards of all responses, in order. A group that cannot be scored as one is tried response by response."""
        found: list[list[float] | UserError] = []
        for group, rewards in zip(groups, self.score_or_error(groups), strict=True):
            alone = [replace(group, responses=[text], ranks=[0]) for text in group.responses]
            found += self.score_or_error(alone) if isinstance(rewards, UserError) and len(alone) > 1 else [rewards]
        errors = [rewards for rewards in found if isinstance(rewards, UserError)]
        if errors and len(errors) == len(found):
            raise errors[0]
        for error in errors:
            logger.warning("no reward for a completion: %s", error)
        return [reward for rewards in found for reward in ([None] if isinstance(rewards, UserError) else rewards)]

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
        """The rewards of each unit as soon as they are there; one loader builds the batches of all, ahead of them."""
        self.collator.row_tokens = batch_tokens
        rewards = [[[math.nan] * len(example.responses) for example in unit] for unit in units]
        items: list[Example] = []
        places: list[tuple[list[float], list[int]]] = []  # where the rewards of an item belong
        plans: list[list[list[int]]] = []
        for unit, targets in zip(units, rewards, strict=True):
            parts = [(i, part) for i, e in enumerate(unit) for part in self._parts(e, batch_tokens)]
            some = [_some(unit[i], part) for i, part in parts]
            plans.append([[len(items) + i for i in batch] for batch in self._plan(some, batch_tokens, batch_size)])
            items += some
            places += [(targets[i], part) for i, part in parts]
        batches = iter(tqdm(self._loader(items, plans), desc="scoring", disable=not progress))
        for unit, targets, plan in zip(units, rewards, plans, strict=True):
            found: dict[int, dict[int, float]] = {}
            for _ in plan:
                self._score(next(batches), found)
            for item, many in found.items():
                for k, reward in many.items():
                    places[item][0][places[item][1][k]] = reward
            _check_finite(unit, targets)
            yield self._normalized(targets) if normalize else targets

    def _normalized(self, rewards: list[list[float]]) -> list[list[float]]:
        return [[(reward - self.mean) / self.std for reward in many] for many in rewards]  # type: ignore[operator]

    def _parts(self, example: Example, batch_tokens: int) -> list[list[int]]:
        """The example's responses in groups whose rows fit into one forward."""
        prefix, lengths = example.lengths or (0, [])
        if self.collator.shared:
            return split_responses(prefix, lengths, batch_tokens)
        count = max(batch_tokens // (prefix + max(lengths)), 1)
        numbers = list(range(len(lengths)))
        return [numbers[start : start + count] for start in range(0, len(numbers), count)]

    def _plan(self, examples: list[Example], batch_tokens: int, batch_size: int | None) -> list[list[int]]:
        costs = [self.collator.cost(e.lengths) for e in examples if e.lengths]
        kinds = [bool(e.images) and not self.collator.shared for e in examples]
        return plan_batches(costs, kinds, batch_tokens, batch_size or len(examples), None)

    def _loader(self, items: list[Example], plans: list[list[list[int]]]) -> DataLoader:
        planned = PlannedBatches(items, [batch for plan in plans for batch in plan])
        return batch_loader(planned, self.collator, self.workers if len(planned) > 1 else 0, pin_memory=False)

    @torch.inference_mode()
    def _score(self, batch: dict[str, Any], into: dict[int, dict[int, float]]) -> None:
        device = next(self.model.parameters()).device
        model_inputs, ours = split_batch(batch)
        rewards = self.model(**{key: value.to(device) for key, value in model_inputs.items()}).logits
        collect_rewards(ours, rewards.cpu(), into)


class _Lengths(Dataset):
    """`self[i]`: an example's lengths, or why it cannot be scored."""

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


def load_scorer(config: "ScoreConfig | ServeConfig", workers: int = 0) -> RewardScorer:
    """The scorer that the settings of a command ask for."""
    scorer = RewardScorer.from_pretrained(
        config.model,
        device=config.device or None,
        dtype=config.dtype,
        rows=config.rows,
        workers=workers,
        trust_remote_code=config.trust_remote_code,
    )
    scorer.max_length, scorer.max_pixels = config.max_length or scorer.max_length, config.max_pixels
    if config.normalize:
        scorer.require_stats()
    return scorer


def _some(example: Example, numbers: list[int]) -> Example:
    """The example with these of its responses alone."""
    prefix, lengths = example.lengths or (0, [])
    responses, own = [example.responses[j] for j in numbers], [lengths[j] for j in numbers]
    return replace(example, responses=responses, ranks=[0] * len(numbers), lengths=(prefix, own))


def _check_finite(examples: list[Example], rewards: list[list[float]]) -> None:
    for example, many in zip(examples, rewards, strict=True):
        if not all(map(math.isfinite, many)):
            raise UserError(f"example {example.id}: rewards {many}; the model overflows, score with dtype=float32")


def _same_images(one: list[ImageRef], other: list[ImageRef]) -> bool:
    """Whether two samples' images are the same files or the same pixels: data sets decode an image anew for every
    sample that repeats it."""
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(a == b or (a.image is not None and a.image == b.image) for a, b in pairs)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def _device(device: str | torch.device | None) -> torch.device:
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={str(device)!r} cannot be used ({str(error).splitlines()[0]}); try cpu") from error
    return place


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    from rovrm.model.loading import numeric_type

    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise UserError(f"dtype={dtype!r}: takes auto, float32, bfloat16 or float16")
    return numeric_type(dtype, use_cpu=device.type == "cpu")
