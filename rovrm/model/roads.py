"""All roads to the scores of one checkpoint, for `rovrm.check`: each scores the conversations of the score contract.

for road in compare_roads(CheckConfig(model="runs/demo/phase3-visual")):
    print(road.name, road.difference, road.tolerance, road.agrees)
"""

import base64
import inspect
import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import AutoModelForSequenceClassification
from transformers.utils.hub import cached_file

from rovrm.common.errors import UserError, first_line
from rovrm.model import contract, modeling
from rovrm.model.adapters import Loaded, adapted_base, adapter_folder, base_of, has_adapter, load_to_score
from rovrm.model.chat import encode
from rovrm.model.collator import why_not_shared
from rovrm.model.contract import Contract, numeric_type_of
from rovrm.model.loading import load_config, load_processor, loading
from rovrm.model.scorer import RewardScorer
from rovrm.settings.keys import CheckConfig

PATIENCE = 60  # seconds for a reply of the server
Rewards = list[float]  # of each of the contract's conversations


class Road(NamedTuple):
    """A road and how it compares. agrees: None where it was not run. remark: why not, or what is wrong."""

    name: str
    difference: float | None
    tolerance: float | None
    agrees: bool | None
    remark: str


class NotRun(Exception):
    """A road does not apply to this checkpoint; the message says why."""


class Checked(NamedTuple):
    """What the roads have in common."""

    config: CheckConfig
    loaded: Loaded
    scorer: RewardScorer  # with separate rows
    expected: Contract
    promised: bool  # whether the checkpoint holds them; else they are of separate rows


def compare_roads(config: CheckConfig) -> list[Road]:
    """Every road, also those that were not run. Raises UserError where the checkpoint itself cannot be loaded."""
    device, dtype = config.device or None, config.dtype
    loaded = load_to_score(config.model, config.adapter or None, device, dtype, config.trust_remote_code)
    scorer = RewardScorer(loaded.model, loaded.processor, rows="separate")
    promised = contract.read(loaded.place)
    expected = promised or contract.record(scorer)
    if expected is None:
        raise UserError(f"{loaded.place}: the model gives no rewards; score with dtype=float32, or train it again")
    checked = Checked(config, loaded, scorer, expected, promised is not None)
    reading = contract.changed_reading(scorer, expected) if promised else ""
    roads = [Road("texts and token ids", None, None, not reading, f"likely reason: {reading}")]
    if promised is None:
        contract.check(scorer, None, loaded.place)  # says so
        roads = [Road("texts and token ids", None, None, None, f"no {contract.FILE}; separate rows stand for it")]
    common = reading or loaded.doubt
    for name, run, reason in ROADS:
        roads.append(_compared(name, run, checked, common or reason))
        if run is _separate and roads[-1].agrees is False:
            common = common or "the same as of separate rows"
    return roads


def _compared(name: str, run: Callable[[Checked], tuple[Rewards, str]], checked: Checked, reason: str) -> Road:
    """Runs a road. reason: the likely one, where its rewards are others."""
    try:
        rewards, number = run(checked)
        worst = checked.expected.compare(rewards, number)
    except NotRun as error:
        return Road(name, None, None, None, str(error))
    except UserError as error:
        return Road(name, None, None, False, str(error))
    origin = contract.FILE if checked.promised else "separate rows"
    remark = "" if worst.agrees else contract.explained(worst, checked.expected, number, reason, origin)
    return Road(name, worst.difference, worst.tolerance, worst.agrees, remark)


# ---- our own model ---------------------------------------------------------------------------------------------------


def _scored(model: Any, processor: Any, expected: Contract, rows: str = "separate") -> tuple[Rewards, str]:
    return expected.rewards_of(RewardScorer(model, processor, rows=rows)), numeric_type_of(model)


def _separate(checked: Checked) -> tuple[Rewards, str]:
    return _scored(checked.loaded.model, checked.loaded.processor, checked.expected)


def _shared(checked: Checked) -> tuple[Rewards, str]:
    if reason := why_not_shared(checked.loaded.model.config):
        raise NotRun(f"this model has separate rows alone ({reason})")
    return _scored(checked.loaded.model, checked.loaded.processor, checked.expected, "shared")


def _padded_left(checked: Checked) -> tuple[Rewards, str]:
    return _padded(checked, "left")


def _padded_right(checked: Checked) -> tuple[Rewards, str]:
    return _padded(checked, "right")


def _padded(checked: Checked, side: str) -> tuple[Rewards, str]:
    """The processor's own batch of all conversations about a prompt."""
    scorer, rewards = checked.scorer, []
    for example in scorer.measure(checked.expected.rows()):
        if isinstance(example, UserError):
            raise example
        texts = scorer.collator.chat.conversations(example)
        images = [ref.open() for ref in example.images]
        batch = encode(scorer.processor, texts, [images] * len(texts), padding_side=side)
        rewards += _forward(scorer.model, batch)
    return rewards, numeric_type_of(scorer.model)


@torch.inference_mode()
def _forward(model: Any, batch: Any) -> list[float]:
    device = next(model.parameters()).device
    return model(**{key: value.to(device) for key, value in batch.items()}).logits[:, 0].tolist()


# ---- transformers alone ----------------------------------------------------------------------------------------------


def _plain(checked: Checked) -> tuple[Rewards, str]:
    """As the model's card does it: one conversation at a time, by the processor's own call."""
    name, config = checked.config.model, checked.config
    if has_adapter(checked.loaded.place):
        raise NotRun("an adapter is no folder that transformers loads; python -m rovrm.merge makes one")
    _check_code(name, config.trust_remote_code)
    device, dtype = checked.loaded.model.device, checked.loaded.model.dtype
    with loading("with transformers alone model", name, ("config.json", "modeling.py")):
        model = AutoModelForSequenceClassification.from_pretrained(name, dtype=dtype, trust_remote_code=True)
    model = model.eval().to(device)
    processor = load_processor(name, "", config.trust_remote_code, model.config)
    special = not checked.scorer.collator.chat.has_bos()
    rewards = []
    for conversation in checked.expected.conversations:
        text = _rendered(processor, conversation)
        options: dict[str, Any] = {"return_tensors": "pt", "add_special_tokens": special}
        if conversation.picture:
            batch = processor(text=[text], images=[[contract.drawn(conversation.picture)]], **options)
        else:
            batch = encode(processor, [text], [[]], padding=False)  # a tokenizer may have no padding token
        batch.pop("labels", None)
        rewards += _forward(model, batch)
    return rewards, numeric_type_of(model)


def _check_code(name: str, trusted: bool) -> None:
    """Raises NotRun unless the checkpoint's modeling.py is this version's, or is trusted."""
    path: str | None = os.path.join(name, "modeling.py")
    if not os.path.isdir(name):
        path = cached_file(name, "modeling.py", _raise_exceptions_for_missing_entries=False)
    if path is None or not os.path.isfile(path):
        raise NotRun("the checkpoint holds no modeling.py, which transformers would need")
    if not trusted and Path(path).read_bytes() != Path(inspect.getfile(modeling)).read_bytes():
        raise NotRun("its modeling.py is not that of this version; trust_remote_code=true runs it")


def _rendered(processor: Any, conversation: contract.Conversation) -> str:
    """The conversation by the processor's own template, with content as blocks or as strings: some take but one."""
    pictures = [{"type": "image"}] if conversation.picture else []
    blocks = [
        [*pictures, {"type": "text", "text": conversation.prompt}],
        [{"type": "text", "text": conversation.answer}],
    ]
    forms: list[list[Any]] = [blocks, [conversation.prompt, conversation.answer], [blocks[0], conversation.answer]]
    for question, answer in forms:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        try:
            text = processor.apply_chat_template(messages, tokenize=False)
        except Exception:  # templates raise what they like at a form that they do not take
            continue
        if text == conversation.text:
            return text
    raise UserError(f"apply_chat_template does not write {conversation.text[:80]!r}; is it another chat template?")


# ---- adapters --------------------------------------------------------------------------------------------------------


def _merged(checked: Checked) -> tuple[Rewards, str]:
    """The adapter's rewards where the checkpoint is the merged model, and the other way round."""
    config, loaded = checked.config, checked.loaded
    if has_adapter(loaded.place):
        base = config.model if config.adapter else base_of(Path(loaded.place))
        merged = adapted_base(base, loaded.place, config.trust_remote_code).merge_and_unload()
        return _scored(merged, loaded.processor, checked.expected)
    try:
        folder = adapter_folder(config.model)
        base_of(folder)
    except UserError as error:
        raise NotRun(str(error) if has_adapter(Path(config.model) / "adapter") else "no adapter is there") from error
    adapted = load_to_score(str(folder), None, config.device or None, config.dtype, config.trust_remote_code)
    rewards, number = _scored(adapted.model, adapted.processor, checked.expected)
    # The checkpoint may have been rounded when it was saved.
    stored = str(load_config(config.model, config.trust_remote_code).dtype).removeprefix("torch.")
    return rewards, stored if stored in contract.TOLERANCES and number == "float32" else number


# ---- a server --------------------------------------------------------------------------------------------------------


def _served(checked: Checked) -> tuple[Rewards, str]:
    """What a running rovrm.serve replies."""
    config, scorer = checked.config, checked.scorer
    if not config.url:
        raise NotRun("no url= of a running rovrm.serve was given")
    if not config.url.startswith(("http://", "https://")):
        raise UserError(f"url={config.url!r} is no address; give it as http://127.0.0.1:8000")
    health = _ask(config, "health")
    mean, std = 0.0, 1.0
    if health.get("normalize"):
        scorer.require_stats()
        mean, std = scorer.mean or 0.0, scorer.std or 1.0
    rewards = []
    for row in checked.expected.rows():
        images = [_in_base64(image) for image in row["images"]]
        reply = _ask(config, "score", {"prompt": row["prompt"], "responses": row["responses"], "images": images})
        scores = reply.get("scores")
        if not isinstance(scores, list) or [*map(contract.is_number, scores)] != [True] * len(row["responses"]):
            raise UserError(f"{config.url} replies {str(reply)[:80]!r}, and no scores; is it a rovrm.serve?")
        rewards += [score * std + mean for score in scores]
    number = health.get("precision", "")
    return rewards, number if number in contract.TOLERANCES else numeric_type_of(scorer.model)


def _ask(config: CheckConfig, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    if config.token:
        headers["Authorization"] = f"Bearer {config.token}"
    url = f"{config.url.rstrip('/')}/{path}"
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=PATIENCE) as reply:
            return dict(json.load(reply))
    except urllib.error.HTTPError as error:
        raise UserError(f"{url} replies {error.code}: {error.read()[:300].decode(errors='replace')}") from error
    except (OSError, ValueError, TypeError) as error:  # no answer, or one that is no JSON object
        raise UserError(f"{url} gives no reply ({first_line(error)}); is it the address of a rovrm.serve?") from error


def _in_base64(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


# What a road is called, how it is taken, and the likely reason where it alone gives other rewards.
ROADS: tuple[tuple[str, Callable[[Checked], tuple[Rewards, str]], str], ...] = (
    ("separate rows", _separate, ""),
    ("shared rows", _shared, "sharing is not exact for this model; set rows=separate"),
    ("padded left", _padded_left, "the model takes padding on the left for text"),
    ("padded right", _padded_right, "the model takes padding on the right for text"),
    ("transformers alone", _plain, "the folder's modeling.py or processor is not the one that the rewards came from"),
    ("adapter against merged", _merged, "the adapter and the merged weights are not of the same training"),
    ("server", _served, "another model, or another version of it, is behind the url"),
)
