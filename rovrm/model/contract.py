"""The score contract: a checkpoint says which rewards it gives, and whatever loads it looks whether they come out.

    record(scorer).write(folder)              # expected_rewards.json: a few conversations and their float32 rewards
    contract = read("runs/demo/phase3-visual")    # None where a checkpoint has no such file
    check(scorer, contract, "runs/demo/phase3-visual")    # UserError where a reward is another

The conversations are the same for every model, and their picture is drawn by a formula, so the file needs no other.
Each is kept as the chat template rendered it, with a hash of its token ids: the check can tell another template or
tokenizer from other weights.
"""

import hashlib
import itertools
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.utils.hub import cached_file

from rovrm.common.errors import UserError
from rovrm.common.files import read_json, write_json
from rovrm.data.example import Example
from rovrm.model.chat import encode
from rovrm.model.video import image_backend

logger = logging.getLogger(__name__)

FILE = "expected_rewards.json"
SCHEMA = 1
SKIP = "verify=False loads it as it is"
LIBRARIES = ("torch", "transformers")
PIXELS = 1_000_000  # of a picture, at most
# How far a reward may be off, as a share of the size that `record` finds: some times what all roads (shared and
# separate rows, padding on either side, a merged adapter) differ by in tiny models, because real ones are deeper and
# wider. tests/test_contract.py prints how much of it each family takes up.
TOLERANCES = {"float32": 3e-5, "float16": 0.03, "bfloat16": 0.2}
QUESTIONS: tuple[tuple[str, str | None, tuple[str, ...]], ...] = (  # prompt, picture, answers
    (
        "What is 17 plus 25?",
        None,
        (
            "42",
            "",
            "To add the two numbers, I begin with the ones: 7 plus 5 is 12, so I write down 2 and carry 1. Then I add "
            "the tens: 1 plus 2 is 3, and with the 1 that I carried it is 4. The sum of 17 and 25 is therefore 42. You "
            "can check it the other way round: 42 minus 25 is 17.",
        ),
    ),
    ("Wie heißt die Hauptstadt von Österreich?", None, ("Wien.", "Sie heißt Wien: 维也纳, ウィーン, Βιέννη 🙂")),
    (
        "Describe the picture.",
        "waves 224x160",
        (
            "A red cup.",
            "There are no objects in this picture. It shows soft waves of colour: the red grows from the left to the "
            "right, the green from the top to the bottom, and blue stripes cross both of them. The upper left corner "
            "is dark, and the lower right corner is bright yellow or white.",
        ),
    ),
)


@dataclass(frozen=True)
class Conversation:
    """A prompt, perhaps with a picture (the name that `drawn` takes), its answer and the reward.

    text: as the chat template renders it. tokens, ids: how many token ids that becomes, and their hash.
    """

    prompt: str
    picture: str | None
    answer: str
    text: str
    tokens: int
    ids: str
    reward: float


@dataclass(frozen=True)
class Comparison:
    """Where rewards differ most from the expected ones. right: of how many conversations they agree."""

    conversation: Conversation
    found: float
    tolerance: float
    right: int
    pictures_alone: bool  # whether those without a picture agree, and far better

    @property
    def difference(self) -> float:
        return abs(self.found - self.conversation.reward)

    @property
    def agrees(self) -> bool:
        return self.difference <= self.tolerance  # false for NaN


@dataclass(frozen=True)
class Contract:
    """What the file holds. tolerance: the largest difference of a reward, by the name of a numeric type. versions: of
    the libraries that gave the rewards, and under `images` the one that scaled the pictures."""

    conversations: list[Conversation]
    tolerance: dict[str, float]
    versions: dict[str, str]

    def write(self, folder: Path) -> None:
        content = {"schema": SCHEMA, "versions": self.versions, "tolerance": self.tolerance}
        write_json(folder / FILE, content | {"conversations": [asdict(c) for c in self.conversations]})

    def rewards(self) -> list[float]:
        """The expected rewards, of each conversation."""
        return [conversation.reward for conversation in self.conversations]

    def rewards_of(self, scorer: Any) -> list[float]:
        """The rewards that a `RewardScorer` gives, of each conversation."""
        return list(itertools.chain(*scorer.score_batch(self.rows())))

    def rows(self) -> list[dict[str, Any]]:
        """The conversations as rows that a scorer takes, those about the same prompt as one."""
        groups = itertools.groupby(self.conversations, lambda c: (c.prompt, c.picture))
        return [_row(*question, [conversation.answer for conversation in group]) for question, group in groups]

    def compare(self, rewards: Sequence[float], number: str) -> Comparison:
        """The expected rewards beside others.

        Args:
            rewards: of each conversation.
            number: the numeric type that gave them (`numeric_type_of`).
        """
        tolerance = self.tolerance[number]
        pairs = list(zip(self.conversations, rewards, strict=True))
        moves = [abs(found - conversation.reward) for conversation, found in pairs]
        moves = [math.inf if math.isnan(move) else move for move in moves]
        largest = max(moves)
        worst, found = pairs[moves.index(largest)]
        of_texts = [move for move, (conversation, _) in zip(moves, pairs, strict=True) if conversation.picture is None]
        pictures_alone = bool(of_texts) and max(of_texts) < min(tolerance, largest / 10)
        return Comparison(worst, found, tolerance, sum(move <= tolerance for move in moves), pictures_alone)


# ---- what a checkpoint gets ------------------------------------------------------------------------------------------


def record(scorer: Any) -> Contract | None:
    """The contract of a model, or None, which is said, where it gives no rewards (they overflow, say).

    scorer: a `RewardScorer`, in float32 and with separate rows: every other road is measured by that one.
    """
    questions = [q for q in QUESTIONS if q[1] is None or scorer.collator.chat.takes_images]
    looks = scorer.measure([_row(*question) for question in questions])
    refusals = [look for look in looks if isinstance(look, UserError)]
    examples = [look for look in looks if isinstance(look, Example)]
    try:
        with _watched_head(scorer.model) as sizes:
            rewards = [reward for row in scorer.score_batch(examples) for reward in row]
    except UserError as error:
        rewards, refusals = [], [error]
    for refusal in refusals:
        logger.warning("%s leaves out a conversation that this model does not take: %s", FILE, refusal)
    if not rewards:
        return None
    conversations: list[Conversation] = []
    kept = [question for question, look in zip(questions, looks, strict=True) if isinstance(look, Example)]
    for (prompt, picture, _), example in zip(kept, examples, strict=True):
        for answer, (text, ids) in zip(example.responses, _as_read(scorer, example), strict=True):
            reward = rewards[len(conversations)]
            conversations.append(Conversation(prompt, picture, answer, text, len(ids), _hash(ids), reward))
    versions = _versions() | ({"images": backend} if (backend := image_backend(scorer.processor)) else {})
    size = max(math.sqrt(sum(reward**2 for reward in rewards) / len(rewards)), sum(sizes) / len(sizes))
    return Contract(conversations, {number: share * size for number, share in TOLERANCES.items()}, versions)


@contextmanager
def _watched_head(model: Any) -> Iterator[list[float]]:
    """A list that grows by |w| |h| / sqrt(width) for each conversation: w is the head, h the hidden state it reads.

    A head that had nothing to do with the hidden states would give rewards of this size. It is that of rounding errors
    also where the rewards themselves happen to be small.
    """
    sizes: list[float] = []

    def watch(head: Any, inputs: tuple[torch.Tensor]) -> None:
        [hidden] = inputs  # (conversations, width)
        sizes.extend((head.weight.norm() * hidden.float().norm(dim=-1) / hidden.shape[-1] ** 0.5).tolist())

    # With an adapter there are two heads, of which only the trained one is called.
    heads = [m for name, m in model.named_modules() if "score" in name.split(".") and isinstance(m, torch.nn.Linear)]
    handles = [head.register_forward_pre_hook(watch) for head in heads]
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()


def _row(prompt: str, picture: str | None, answers: Sequence[str]) -> dict[str, Any]:
    return {"prompt": prompt, "responses": list(answers), "images": [drawn(picture)] if picture else []}


def drawn(picture: str) -> Image.Image:
    """The picture of a name such as "waves 224x160", which is its formula and its size: width x height, in pixels."""
    name = re.fullmatch(r"waves ([1-9]\d{0,3})x([1-9]\d{0,3})", picture)
    width, height = (int(name[1]), int(name[2])) if name else (0, 0)
    if not 0 < width * height <= PIXELS:
        raise ValueError(f"no picture is called {picture[:60]!r}")
    y, x = np.mgrid[0:height, 0:width]
    red, green, blue = 255 * x // width, 255 * y // height, 16 * ((x + 2 * y) % 16)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).astype(np.uint8))


def _as_read(scorer: Any, example: Example) -> list[tuple[str, list[int]]]:
    """Of each conversation of an example: its rendered text, and its token ids with those of images."""
    texts = scorer.collator.chat.conversations(example)
    images = [ref.open() for ref in example.images]
    batch = encode(scorer.processor, texts, [images] * len(texts))
    rows = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
    return list(zip(texts, [ids[mask].tolist() for ids, mask in rows], strict=True))


def _hash(ids: list[int]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


# ---- the check -------------------------------------------------------------------------------------------------------


def check(scorer: Any, contract: Contract | None, name: str, doubt: str = "") -> None:
    """Scores a contract's conversations and compares.

    Args:
        scorer: a `RewardScorer`.
        contract: from `read`; without one it is said that the rewards are unchecked.
        name: the checkpoint's, for messages.
        doubt: a reason that the caller knows why rewards may differ.

    Raises:
        UserError: where a reward differs by more than the tolerance, or a conversation is rendered or tokenised in
            another way. A 4-bit model, whose rewards are others by nature, gets a warning instead of the first.
    """
    if contract is None:
        logger.warning("%s holds no %s: rewards unchecked", name, FILE)
        return
    then, now = contract.versions.get("images"), image_backend(scorer.processor)
    if then and now and then != now:
        logger.warning(
            "%s: pictures were scaled by %s in training and are by %s here, to other pixels", name, then, now
        )
    changed = changed_reading(scorer, contract)
    try:
        rewards = contract.rewards_of(scorer)
    except UserError as error:
        raise UserError(f"{name}: a conversation of {FILE} cannot be scored: {changed or error}; {SKIP}") from error
    worst = contract.compare(rewards, numeric_type_of(scorer.model))
    if worst.agrees and not changed:
        return
    message = explained(worst, contract, numeric_type_of(scorer.model), changed or doubt)
    if worst.agrees:
        message = f"it reads a conversation of {FILE} in another way: {changed}"
    if getattr(scorer.model.config, "quantization_config", None) is not None and not changed:
        logger.warning("%s: %s; the model is quantized", name, message)
        return
    raise UserError(f"{name}: {message}; put back what was changed, or {SKIP}")


def explained(worst: Comparison, contract: Contract, number: str, reason: str = "", origin: str = FILE) -> str:
    """The numbers of a comparison, and the likely reason.

    Args:
        number: the numeric type of the rewards that were found.
        reason: one that is known; empty to guess.
        origin: where the expected rewards come from.
    """
    conversation = worst.conversation
    expected = f"{conversation.reward:.7g} is expected ({origin})"
    return (
        f"the reward of {conversation.answer[:30]!r} to {conversation.prompt[:40]!r} is {worst.found:.7g}, where "
        f"{expected}: a difference of {worst.difference:.3g}, and {number} may differ by {worst.tolerance:.3g} "
        f"({worst.right} of {len(contract.conversations)} agree). Likely reason: {reason or _reason(worst, contract)}"
    )


def _reason(worst: Comparison, contract: Contract) -> str:
    reason = "texts and token ids are the same, so these are other weights, or another config.json"
    if worst.pictures_alone:
        reason = "only rewards about a picture differ, so this is another image processor or vision tower"
    then = ", ".join(f"{library} {contract.versions.get(library)}" for library in LIBRARIES)
    now = _versions()
    if now.items() <= contract.versions.items():
        return reason
    return f"{reason}, or another version of a library (then {then}; now {', '.join(map(' '.join, now.items()))})"


def _versions() -> dict[str, str]:
    return {library: version(library) for library in LIBRARIES}


def changed_reading(scorer: Any, contract: Contract) -> str:
    """What differs before the model reads the conversations, chat template or token ids; empty where nothing does."""
    before = iter(contract.conversations)
    for look in scorer.measure(contract.rows()):
        if isinstance(look, UserError):
            return f"another chat template, processor or config.json, by which a conversation is refused ({look})"
        for text, ids in _as_read(scorer, look):
            conversation = next(before)
            if text != conversation.text:
                return f"another chat template ({_first_difference(conversation.text, text)})"
            if _hash(ids) != conversation.ids:
                return (
                    f"another tokenizer or image processor (the same text, {conversation.text[:60]!r}, became "
                    f"{conversation.tokens} token ids then and {len(ids)} others now)"
                )
    return ""


def _first_difference(one: str, other: str) -> str:
    same = len(os.path.commonprefix([one, other]))
    start = max(same - 20, 0)
    return f"it wrote {one[start : same + 40]!r} then, {other[start : same + 40]!r} now"


def numeric_type_of(model: Any) -> str:
    """The numeric type that decides how exact rewards are: the coarsest of the weights'."""
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if torch.bfloat16 in dtypes:
        return "bfloat16"
    # In float32 a GPU may multiply in TensorFloat-32, which has the 10 bits of float16.
    on_cpu = next(model.parameters()).device.type == "cpu"
    return "float32" if on_cpu and torch.float16 not in dtypes else "float16"


# ---- reading ---------------------------------------------------------------------------------------------------------


def read(name: str | os.PathLike) -> Contract | None:
    """The contract of a checkpoint's or an adapter's folder, or of a hub id; None where it has none. Raises UserError
    for a file that is broken."""
    path: str | None = os.path.join(name, FILE)
    if not os.path.isdir(name):
        path = cached_file(
            os.fspath(name),
            FILE,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    if path is None or not os.path.isfile(path):
        return None
    try:
        return _contract(read_json(Path(path)))
    except (UserError, ValueError, OverflowError) as error:  # the last of an integer with hundreds of digits
        reason = str(error).removeprefix(f"{path}: ").removesuffix("; copy it again")
        remedy = "copy it again, take a rovrm that reads it, or remove it, and the rewards are unchecked"
        raise UserError(f"{path} cannot be used: {reason}; {remedy}") from error


def _contract(content: dict[str, Any]) -> Contract:
    """The contract of a file's content. Raises ValueError for a content of another schema."""
    if content.get("schema") != SCHEMA:
        raise ValueError(f"its schema is {content.get('schema')!r:.40}, and this version of rovrm reads {SCHEMA}")
    conversations, tolerance, versions = (content.get(key) for key in ("conversations", "tolerance", "versions"))
    if not isinstance(conversations, list) or not conversations:
        raise ValueError("conversations is no list with entries")
    if not isinstance(tolerance, dict) or not all(is_number(tolerance.get(name)) for name in TOLERANCES):
        raise ValueError(f"tolerance holds no number for each of {', '.join(TOLERANCES)}")
    if not isinstance(versions, dict):
        raise ValueError("versions is no mapping")
    return Contract([_conversation(entry, i) for i, entry in enumerate(conversations)], tolerance, versions)


def _conversation(entry: Any, number: int) -> Conversation:
    names = [field.name for field in fields(Conversation)]
    if not isinstance(entry, dict) or set(entry) != set(names):
        raise ValueError(f"conversation {number} does not hold exactly {', '.join(names)}")
    conversation = Conversation(**entry)
    texts = (conversation.prompt, conversation.answer, conversation.text, conversation.ids)
    if not all(isinstance(text, str) for text in texts) or not isinstance(conversation.tokens, int):
        raise ValueError(f"conversation {number} holds values of wrong types")
    if not is_number(conversation.reward):
        raise ValueError(f"the reward of conversation {number} is no number")
    if conversation.picture is not None:
        drawn(str(conversation.picture))
    return conversation


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
