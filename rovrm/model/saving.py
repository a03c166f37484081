"""A merged or fully tuned reward model as a folder that loads without rovrm, and the quick start of its card."""

from pathlib import Path
from typing import Any

import torch

from rovrm.common.errors import UserError
from rovrm.common.files import saving
from rovrm.model.chat import ChatTemplate

QUESTIONS = (
    "What is in the picture?",
    "How many objects are there?",
    "Is the left half darker?",
    "What is 17 plus 25?",
)
ANSWERS = ("It is a red cup on a table.", "There are two of them.", "Yes.", "No, it is not possible to say.")


def save_merged(merged: Any, processor: Any, folder: Path, save_dtype: str, record: dict[str, Any], card: str) -> None:
    """Writes a merged or fully tuned reward model as an ordinary checkpoint folder.

    Stored in bfloat16, it prints by how much the rounding moves the rewards: small updates vanish in it.

    Args:
        merged: the model; in float32, where it is to be rounded.
        processor: for the measurement alone; it is saved elsewhere.
        save_dtype: bfloat16 rounds every weight but the head's; float32 casts nothing.
        record: the phase's (phase.json), with the mean and the spread of held-out rewards.
        card: the text of README.md.
    """
    note_rewards(merged.config, record)
    if save_dtype == "bfloat16":
        before = sample_rewards(merged, processor)
        rounded = [p for name, p in merged.named_parameters() if name != "score.weight"]
        # Rounded, but still computed in float32: so the change is that of the storage, not of the arithmetic.
        for parameter in rounded:
            parameter.data = parameter.data.bfloat16().float()
        _say_change(before, sample_rewards(merged, processor))
        for parameter in rounded:
            parameter.data = parameter.data.bfloat16()
        merged.config.dtype = torch.bfloat16

    with saving(folder) as partial:
        merged.save_pretrained(partial)
        (partial / "README.md").write_text(card)


def sample_rewards(model: Any, processor: Any) -> list[float]:
    """Rewards of 4 fixed answers to each of 4 fixed questions, with drawn pictures where the model takes images."""
    from PIL import Image

    from rovrm.model.scorer import RewardScorer

    pictures = [Image.linear_gradient("L"), Image.radial_gradient("L").crop((0, 0, 256, 160)), None, None]
    if getattr(model.config, "vision_config", None) is None:
        pictures = [None] * len(QUESTIONS)
    rows = [
        {"prompt": question, "responses": ANSWERS, "images": picture}
        for question, picture in zip(QUESTIONS, pictures, strict=True)
    ]
    return [reward for rewards in RewardScorer(model, processor).score_batch(rows) for reward in rewards]


def _say_change(before: list[float], after: list[float]) -> None:
    from statistics import pstdev

    moved = max(abs(a - b) for a, b in zip(before, after, strict=True))
    print(
        f"stored in bfloat16: the rewards of {len(before)} fixed short answers move by up to {moved:.2e} (their "
        f"standard deviation is {pstdev(before):.2e}); save_dtype=float32 keeps them exactly"
    )


def note_rewards(config: Any, record: dict[str, Any]) -> None:
    """Writes the mean and the spread of the held-out rewards into the config, for `normalize=True`."""
    if "reward_mean" in record:
        config.reward_mean, config.reward_std = record["reward_mean"], record["reward_std"]


def quick_start(processor: Any) -> str:
    """Lines that score one answer with transformers alone, for this processor or tokenizer."""
    special = f"add_special_tokens={_adds_special_tokens(processor)}"
    if not hasattr(processor, "tokenizer"):
        auto, question, answer = "AutoTokenizer", '"What is 2 plus 3?"', '"It is 5."'
        call = f'processor([text], return_tensors="pt", {special})'
    else:
        auto, answer = "AutoProcessor", '[{"type": "text", "text": "A cup."}]'
        question = '[{"type": "image"}, {"type": "text", "text": "What is on the table?"}]'
        call = f'processor(text=[text], images=[image], return_tensors="pt", {special})  # image: a PIL image'
    return f"""import torch
from transformers import AutoModelForSequenceClassification, {auto}

folder = "."  # this folder
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()  # runs modeling.py
processor = {auto}.from_pretrained(folder)
messages = [
    {{"role": "user", "content": {question}}},
    {{"role": "assistant", "content": {answer}}},
]
text = processor.apply_chat_template(messages, tokenize=False)
inputs = {call}
with torch.no_grad():
    print(model(**inputs).logits.item())"""


def _adds_special_tokens(processor: Any) -> bool:
    """As `chat.encode` decides it: a conversation begins with one bos token, never with two."""
    try:
        return not ChatTemplate(processor).has_bos()
    except UserError:  # the template is broken: reading a reward says so, and how to mend it
        return True
