"""The reward model as a Python scorer.

    from rovrm import RewardScorer
    scorer = RewardScorer.from_pretrained("runs/demo/phase3-visual")
    scorer.score("What is on the table?", ["A cup.", "A dog."], images="photo.jpg")   # -> [1.83, -0.41]

Responses to one prompt share their row: prompt and image are encoded once.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from rovrm.batches import PlannedBatches, batch_loader, collect_rewards, plan_batches, split_batch
from rovrm.errors import UserError
from rovrm.examples import Example
from rovrm.images import ImageRef
from rovrm.rows import RewardCollator


class RewardScorer:
    """Scores responses to prompts about images; higher is better.

    model: a reward model (rovrm.modeling). processor: its processor (or tokenizer). normalize=True in the calls below
    gives (reward - mean) / spread, with the two taken on held-out data at the end of training.
    """

    def __init__(self, model: Any, processor: Any, rows: str = "auto", row_tokens: int = 16384, workers: int = 0):
        self.model, self.processor, self.workers = model.eval(), processor, workers
        self.collator = RewardCollator(processor, model.config, rows, row_tokens)
        self.mean = getattr(model.config, "reward_mean", None)
        self.std = getattr(model.config, "reward_std", None)
        self.max_length = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        adapter: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        rows: str = "auto",
        workers: int = 0,
        trust_remote_code: bool = False,
    ) -> "RewardScorer":
        """Loads a reward checkpoint: a folder that rovrm.train wrote (the full model, or only an adapter, whose base is
        then loaded), or a hub id. adapter: an adapter folder to put on the model `name`. dtype auto: bfloat16 on a GPU
        that has it, else float32; the head is float32 always. Raises UserError for what is no reward model.
        """
        from rovrm.checkpoints import ADAPTER, load_adapter, load_config, load_processor, load_reward_model
        from rovrm.modeling import SUFFIX
        from rovrm.train import numeric_type

        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        kind = numeric_type(dtype, use_cpu=device.type == "cpu") if isinstance(dtype, str) else dtype
        base, stats = name, {}
        own = os.path.join(name, ADAPTER)
        if adapter is None and not os.path.isfile(os.path.join(name, "config.json")) and os.path.isdir(own):
            adapter, base = own, _base_of(own)
            stats = _phase_record(Path(name))
        config = load_config(base, trust_remote_code)
        architecture = (config.architectures or ["none"])[0]
        if adapter is None and not architecture.endswith(SUFFIX):
            raise UserError(
                f"{name!r} is no reward model (its architecture is {architecture}); train one with rovrm.train"
            )
        model = load_reward_model(base, kind, trust_remote_code=trust_remote_code)
        if adapter is not None:
            model = load_adapter(model, adapter, trainable=False)
        for key, value in stats.items():
            setattr(model.config, key, value)
        processor = load_processor(name, "", trust_remote_code, config)
        return cls(model.to(device), processor, rows=rows, workers=workers)  # type: ignore[arg-type]

    def score(
        self, prompt: str | list[dict[str, Any]], responses: Sequence[str], images: Any = None, normalize: bool = False
    ) -> list[float]:
        """One reward per response. images: None, a path, a PIL image, or a list of them."""
        return self.score_batch([{"prompt": prompt, "responses": responses, "images": images}], normalize=normalize)[0]

    def score_batch(
        self,
        examples: Sequence[Example | Mapping[str, Any]],
        batch_tokens: int = 16384,
        normalize: bool = False,
        progress: bool = False,
    ) -> list[list[float]]:
        """One list of rewards per example, in order. An example is a mapping with `prompt` (a string or chat messages),
        `responses` (strings) and optionally `images`; batches hold at most `batch_tokens` padded tokens."""
        if normalize:
            self.require_stats()
        if not examples:
            return []
        ready = [self.measured(example, i) for i, example in enumerate(examples)]
        found: dict[int, dict[int, float]] = {}
        for batch in tqdm(self._loader(ready, batch_tokens), desc="scoring", disable=not progress):
            self._score(batch, found)
        mean, std = (self.mean, self.std) if normalize else (0.0, 1.0)
        return [[(found[i][j] - mean) / std for j in range(len(e.responses))] for i, e in enumerate(ready)]  # type: ignore[operator]

    def reward(
        self, prompts: Sequence[Any], completions: Sequence[Any], images: Sequence[Any] | None = None, **columns: Any
    ) -> list[float]:
        """A reward function for TRL's GRPO and RLOO trainers: one reward per (prompt, completion).

        completions: strings or TRL's `[{"role": "assistant", "content": ...}]`. images: per sample an image, a list or
        None; without the column, images inside the prompts' content blocks are used. Samples of the same prompt and
        images that follow each other share their row. Video is refused.
        """
        if any(value is not None for value in columns.get("videos") or []):
            raise UserError("videos cannot be scored: this toolkit takes images; drop the videos column")
        groups: list[dict[str, Any]] = []
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            pictures = images[i] if images is not None else _images_inside(prompt)
            text = completion if isinstance(completion, str) else _completion_text(completion)
            last = groups[-1] if groups else None
            if last is None or last["prompt"] != prompt or not _same_images(last["images"], pictures):
                groups.append({"prompt": prompt, "images": pictures, "responses": []})
            groups[-1]["responses"].append(text)
        return [reward for rewards in self.score_batch(groups) for reward in rewards]

    def measured(self, row: Example | Mapping[str, Any], number: int = 0) -> Example:
        """The row as an Example with its lengths. Raises UserError for a row that cannot be scored."""
        example = as_example(row, number)
        if example.lengths is None:
            lengths = self.collator.lengths(example, [ref.open() for ref in example.images])
            example = replace(example, lengths=lengths)
        longest = example.lengths[0] + max(example.lengths[1])  # type: ignore[index]
        if self.max_length and longest > self.max_length:
            raise UserError(
                f"example {example.id}: a conversation of {longest} tokens is longer than max_length="
                f"{self.max_length}; shorten prompt or response"
            )
        return example

    def require_stats(self) -> None:
        """Raises UserError where the checkpoint does not know its rewards' mean and spread."""
        if self.mean is None or not self.std:
            raise UserError(
                "this checkpoint holds no reward_mean and reward_std in its config; score with normalize=False"
            )

    # ------------------------------------------------------------------------------------------------------------------

    def _loader(self, examples: list[Example], batch_tokens: int) -> DataLoader:
        costs = [self.collator.cost(e.lengths) for e in examples if e.lengths]
        kinds = [bool(e.images) and not self.collator.shared for e in examples]
        planned = PlannedBatches(examples, plan_batches(costs, kinds, batch_tokens, len(examples), None))
        return batch_loader(planned, self.collator, self.workers, pin_memory=False)

    @torch.inference_mode()
    def _score(self, batch: dict[str, Any], into: dict[int, dict[int, float]]) -> None:
        device = next(self.model.parameters()).device
        model_inputs, ours = split_batch(batch)
        rewards = self.model(**{key: value.to(device) for key, value in model_inputs.items()}).logits
        collect_rewards(ours, rewards.cpu(), into)


def as_example(row: Example | Mapping[str, Any], number: int = 0) -> Example:
    """A mapping with prompt, responses and images as an Example. Raises UserError naming what is missing or refused."""
    if isinstance(row, Example):
        return row
    name = str(row.get("id", number))
    prompt, responses, images = row.get("prompt"), row.get("responses"), row.get("images")
    if prompt is None or isinstance(responses, str) or not responses:
        raise UserError(f"example {name}: needs a prompt and a list of one or more responses, got {sorted(row)}")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _without_pixels(prompt)
    pictures = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
    return Example(name, "", messages, list(responses), [0] * len(responses), [image_ref(p) for p in pictures])


def image_ref(image: Any) -> ImageRef:
    """A path or a PIL image as a lazy handle."""
    if isinstance(image, ImageRef):
        return image
    if isinstance(image, Image.Image):
        return ImageRef(image=image)
    if isinstance(image, (str, os.PathLike)):
        from rovrm.images import find_image

        return ImageRef(path=str(find_image(str(image), None, None)))
    raise UserError(f"images takes a path, a PIL image or a list of them, got {type(image).__name__}")


def _without_pixels(messages: Any) -> list[dict[str, Any]]:
    """Chat messages whose image blocks are mere placeholders."""
    cleaned = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [{"type": "image"} if block["type"] == "image" else block for block in content]
        cleaned.append({"role": message["role"], "content": content})
    return cleaned


def _images_inside(prompt: Any) -> list[Any]:
    if isinstance(prompt, str):
        return []
    blocks = [b for m in prompt if not isinstance(m["content"], str) for b in m["content"] if b["type"] == "image"]
    return [block["image"] for block in blocks if block.get("image") is not None]


def _completion_text(messages: Any) -> str:
    content = messages[-1]["content"]
    return content if isinstance(content, str) else "".join(b["text"] for b in content if b["type"] == "text")


def _same_images(one: Any, other: Any) -> bool:
    """Whether two samples' images are the very same objects or equal paths (pixels are not compared)."""
    a, b = (x if isinstance(x, (list, tuple)) else [x] for x in (one, other))
    return len(a) == len(b) and all(p is q or (isinstance(p, str) and p == q) for p, q in zip(a, b, strict=True))


def _base_of(adapter: str) -> str:
    with open(os.path.join(adapter, "adapter_config.json")) as file:
        return json.load(file)["base_model_name_or_path"]


def _phase_record(folder: Path) -> dict[str, float]:
    path = folder / "phase.json"
    record = json.loads(path.read_text()) if path.is_file() else {}
    return {key: record[key] for key in ("reward_mean", "reward_std") if key in record}
