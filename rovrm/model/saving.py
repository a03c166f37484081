"""A merged or fully tuned reward model as a folder that loads without rovrm, its expected rewards, and the quick start
of its card."""

from pathlib import Path
from statistics import pstdev
from typing import Any

import torch

from rovrm.common.errors import UserError
from rovrm.common.files import saving
from rovrm.model import contract
from rovrm.model.chat import ChatTemplate


def save_merged(
    merged: Any,
    processor: Any,
    folder: Path,
    save_dtype: str,
    record: dict[str, Any],
    card: str,
    expected: contract.Contract | None,
) -> None:
    """Writes a merged or fully tuned reward model as an ordinary checkpoint folder, with its expected rewards.

    Stored in bfloat16, it prints by how much the rounding moves the rewards: small updates vanish in it.

    Args:
        merged: the model, in float32.
        processor: for the measurements alone; it is saved elsewhere.
        save_dtype: bfloat16 rounds every weight but the head's; float32 casts nothing.
        record: the phase's (phase.json), with the mean and the spread of held-out rewards.
        card: the text of README.md.
        expected: its rewards (`expected_rewards`), before it is rounded.
    """
    note_rewards(merged.config, record)
    if save_dtype == "bfloat16":
        rounded = [p for name, p in merged.named_parameters() if name != "score.weight"]
        # Rounded, but still computed in float32: so the change is that of the storage, not of the arithmetic.
        for parameter in rounded:
            parameter.data = parameter.data.bfloat16().float()
        exact, expected = expected, expected_rewards(merged, processor)
        if exact is not None and expected is not None:
            _say_change(exact.rewards(), expected.rewards())
        for parameter in rounded:
            parameter.data = parameter.data.bfloat16()
        merged.config.dtype = torch.bfloat16

    with saving(folder) as partial:
        merged.save_pretrained(partial)
        if expected is not None:
            expected.write(partial)
        (partial / "README.md").write_text(card)


def expected_rewards(model: Any, processor: Any) -> contract.Contract | None:
    """The score contract of a model in float32, whose rewards separate rows give."""
    from rovrm.model.scorer import RewardScorer

    return contract.record(RewardScorer(model, processor, rows="separate"))


def merge_alike(adapted: Any, processor: Any, expected: contract.Contract | None) -> Any:
    """Merges an adapter into its base and looks whether the rewards are still the adapter's.

    Args:
        adapted: `adapters.adapted_base`.
        expected: the rewards of that; None to merge without a look.

    Raises:
        UserError: they are others.
    """
    from rovrm.model.scorer import RewardScorer

    merged = adapted.merge_and_unload()
    if expected is not None:
        contract.check(RewardScorer(merged, processor, rows="separate"), expected, "the merged model")
    return merged


def _say_change(before: list[float], after: list[float]) -> None:
    moved = max(abs(a - b) for a, b in zip(before, after, strict=True))
    print(
        f"stored in bfloat16: the rewards of {len(before)} fixed answers move by up to {moved:.2e} (their "
        f"standard deviation is {pstdev(before):.2e}); save_dtype=float32 keeps them exactly"
    )


def note_rewards(config: Any, record: dict[str, Any]) -> None:
    """Writes the mean and the spread of the held-out rewards into the config, for `normalize=True`."""
    if "reward_mean" in record:
        config.reward_mean, config.reward_std = record["reward_mean"], record["reward_std"]


def quick_start(processor: Any) -> str:
    """Lines that score one answer with transformers alone, for this processor or tokenizer."""
    imports = image = ""  # of a text model
    special = f"add_special_tokens={_adds_special_tokens(processor)}"
    if not hasattr(processor, "tokenizer"):
        auto, question, answer = "AutoTokenizer", '"What is 2 plus 3?"', '"It is 5."'
        call = f'processor([text], return_tensors="pt", {special})'
    else:
        auto, answer = "AutoProcessor", '[{"type": "text", "text": "A cup."}]'
        question = '[{"type": "image"}, {"type": "text", "text": "What is on the table?"}]'
        call = f'processor(text=[text], images=[image], return_tensors="pt", {special})'
        image = '\nimage = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")  # upright, without alpha'
        imports = "\nfrom PIL import Image, ImageOps"
    return f"""import torch{imports}
from transformers import AutoModelForSequenceClassification, {auto}

folder = "."  # this folder
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()  # runs modeling.py
processor = {auto}.from_pretrained(folder){image}
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
