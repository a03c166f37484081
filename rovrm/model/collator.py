"""Shared-prefix rows: one row `[prefix | r_1 | ... | r_k]` for a prompt with k responses, the image encoded once.

The prefix is the longest common *token* prefix of the k full conversations, so no tokenizer boundary makes it inexact.
Positions restart after it for every response, and each response sees the prefix and itself (the mask is built on the
device: `rovrm.model.modeling.shared_prefix_mask`). Causal attention then gives every token the same keys at the same
distances as in its own conversation, so the rewards are those of k separate rows.

`RewardCollator` turns examples into batches, shared or separate. Separate rows are the processor's own batch of the k
conversations, image repeated: the fallback for families where sharing is not exact, and the oracle of the tests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.model.chat import ChatTemplate, encode, has_bos

# Families (and language-model backbones) that tests/test_rows.py proves equal to separate rows.
SHARED_FAMILIES = {
    "llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm", "internvl",
    "llama", "mistral", "qwen2", "qwen3",
}  # fmt: skip
SHARED_BACKBONES = {"llama", "mistral", "qwen2", "qwen3", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"}


def why_not_shared(config: Any) -> str | None:
    """The reason why this model's config needs separate rows, None where shared rows are exact."""
    text = config.get_text_config()
    if config.model_type not in SHARED_FAMILIES:
        return f"family {config.model_type!r} is not proved equal"
    if text.model_type not in SHARED_BACKBONES:
        return f"backbone {text.model_type!r} is not proved equal"
    layers = set(getattr(text, "layer_types", None) or ["full_attention"])
    if layers != {"full_attention"}:
        return f"layers of type {', '.join(sorted(layers - {'full_attention'}))}"
    if getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        return f"sliding_window={text.sliding_window}"
    return None


def use_shared_rows(config: Any, rows: str) -> bool:
    """Decides `rows: auto | shared | separate` for a model. Raises UserError where shared was asked and is inexact."""
    reason = why_not_shared(config)
    if rows == "shared" and reason:
        raise UserError(f"rows=shared is inexact for this model ({reason}); set rows=auto or rows=separate")
    return rows != "separate" and reason is None


# What a processor returns per token; the collator builds its own. Everything else belongs to the images.
TOKEN_KEYS = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}


@dataclass(slots=True)
class Row:
    """One shared-prefix row. All lists have the row's number of tokens, but `reward_positions` and `responses`: k."""

    input_ids: list[int]
    segment_ids: list[int]  # 0 the prefix, 1..k the responses
    position_ids: Tensor  # (axes, tokens): 1 axis, or 3 for M-RoPE
    reward_positions: list[int]  # the index of each response's last token
    responses: list[int]  # which of the example's responses these are


def shared_prefix_length(conversations: Sequence[Sequence[int]]) -> int:
    """Tokens that all conversations begin with, at most one fewer than the shortest has: every response keeps one."""
    shortest = min(len(ids) for ids in conversations)
    first = conversations[0]
    length = 0
    while length < shortest - 1 and all(ids[length] == first[length] for ids in conversations):
        length += 1
    return length


def build_row(
    conversations: list[list[int]], responses: list[int], positions: Callable[[list[int]], Tensor], prefix: int
) -> Row:
    """Lays out the conversations numbered `responses`, which share `prefix` tokens, as one row.

    positions: token ids of a full conversation -> its position ids (axes, tokens).
    """
    per_conversation = [positions(conversations[j]) for j in responses]
    input_ids = conversations[responses[0]][:prefix]
    segment_ids = [0] * prefix
    pieces = [per_conversation[0][:, :prefix]]
    reward_positions = []
    for segment, (j, position) in enumerate(zip(responses, per_conversation, strict=True), start=1):
        own = conversations[j][prefix:]
        input_ids = input_ids + own
        segment_ids = segment_ids + [segment] * len(own)
        pieces.append(position[:, prefix:])
        reward_positions.append(len(input_ids) - 1)
    return Row(input_ids, segment_ids, torch.cat(pieces, dim=1), reward_positions, responses)


def split_responses(prefix: int, lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Splits k responses into rows of at most `row_tokens` tokens, prefix included; a row holds at least one."""
    parts: list[list[int]] = []
    used = 0
    for j, length in enumerate(lengths):
        if not parts or used + length > row_tokens:
            parts.append([])
            used = prefix
        parts[-1].append(j)
        used += length
    return parts


def pad_rows(rows: list[Row], pad_token_id: int, padding_side: str = "right") -> dict[str, Tensor]:
    """Stacks rows: input_ids, segment_ids (rows, tokens), position_ids (rows, tokens) or (3, rows, tokens),
    reward_positions (rows, k), -1 where a row has fewer than k responses."""
    tokens = max(len(row.input_ids) for row in rows)
    k = max(len(row.responses) for row in rows)
    axes = rows[0].position_ids.shape[0]
    input_ids = torch.full((len(rows), tokens), pad_token_id)
    segment_ids = torch.full((len(rows), tokens), -1)
    position_ids = torch.zeros((axes, len(rows), tokens), dtype=torch.long)
    reward_positions = torch.full((len(rows), k), -1)
    for i, row in enumerate(rows):
        start = tokens - len(row.input_ids) if padding_side == "left" else 0
        where = slice(start, start + len(row.input_ids))
        input_ids[i, where] = torch.tensor(row.input_ids)
        segment_ids[i, where] = torch.tensor(row.segment_ids)
        position_ids[:, i, where] = row.position_ids
        reward_positions[i, : len(row.responses)] = torch.tensor(row.reward_positions) + start
    return {
        "input_ids": input_ids,
        "segment_ids": segment_ids,
        "position_ids": position_ids if axes > 1 else position_ids[0],
        "reward_positions": reward_positions,
    }


# ---- from examples to batches ----------------------------------------------------------------------------------------


class RewardCollator:
    """Turns examples into one batch for `XForSequenceClassification.forward` and the loss.

        collator = RewardCollator(processor, model.config)
        batch = collator(examples)                                    # dict of tensors

    Besides the model's inputs the batch holds, for the loss,
        list_ids (rows,): which example of the batch a row belongs to,
        response_ids, labels (rows, k): the response's number in its example and its rank (0 best); -100 for absent,
        margins (examples,): float32, 0 where the example has none.

    Args:
        processor: the model's processor (or tokenizer, for text models) with a chat template.
        config: the model's config.
        rows: auto | shared | separate.
        row_tokens: a shared row longer than this is split into several (each encodes the image again).
        padding_side: of shared rows; separate rows are padded as the processor does.
    """

    def __init__(
        self,
        processor: Any,
        config: Any,
        rows: str = "auto",
        row_tokens: int = 16384,
        padding_side: str = "right",
    ):
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.shared = use_shared_rows(config, rows)
        self.row_tokens = row_tokens
        self.padding_side = padding_side
        self.image_token_id = -1  # of a text model
        for name in ("image_token_index", "image_token_id"):  # families differ in the name
            if getattr(config, name, None) is not None:
                self.image_token_id: int = getattr(config, name)
        self._extra_tokens: dict[tuple[tuple[int, int], ...], int] = {}
        self._rope_index = _rope_index(config) if self.shared else None
        if self.tokenizer.pad_token_id is None:  # padding is masked by attention, so eos may double as pad
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.chat = ChatTemplate(processor)

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        texts = [self.chat.conversations(example) for example in examples]
        images = [[ref.open() for ref in example.images] for example in examples]
        batch = self._shared(texts, images) if self.shared else self._separate(texts, images)
        ranks = torch.full((len(examples), max(len(e.responses) for e in examples)), -100)  # (examples, k)
        for i, example in enumerate(examples):
            ranks[i, : len(example.ranks)] = torch.tensor(example.ranks)
        # From ranks by example to labels by row: a row may hold some of an example's responses only.
        labels = ranks[batch["list_ids"][:, None], batch["response_ids"].clamp(min=0)]  # (rows, k)
        batch["labels"] = labels.masked_fill(batch["response_ids"] < 0, -100)
        batch["margins"] = torch.tensor([example.margin or 0.0 for example in examples])
        return batch

    def lengths(self, example: Example, images: list[Any]) -> tuple[int, list[int]]:
        """An example's lengths: tokens of the prefix that its conversations share, image tokens included, and of each
        response behind it.

        How many tokens images take depends on their sizes alone, so with shared rows, where nothing else can go wrong
        in the processor, images of known sizes are not processed again.

        Args:
            images: the example's images, opened.
        """
        texts = self.chat.conversations(example)
        plain = self._tokenized(texts)
        sizes = tuple(image.size for image in images)
        if self.shared:
            self._check_placeholders(plain, len(images))
        if not self.shared or sizes not in self._extra_tokens:
            ids = encode(self.processor, texts[:1], [images])["input_ids"] if images else [plain[0]]
            self._extra_tokens[sizes] = len(ids[0]) - len(plain[0])
        prefix = shared_prefix_length(plain)
        return prefix + self._extra_tokens[sizes], [len(ids) - prefix for ids in plain]

    def same_tokens(self, example: Example) -> tuple[int, int] | None:
        """The numbers of two responses that differ in rank but not in tokens, which no model can tell apart; None where
        there are none."""
        firsts: dict[tuple[int, ...], int] = {}
        for j, ids in enumerate(self._tokenized(self.chat.conversations(example))):
            i = firsts.setdefault(tuple(ids), j)
            if example.ranks[i] != example.ranks[j]:
                return i, j
        return None

    def cost(self, lengths: tuple[int, list[int]]) -> tuple[int, int]:
        """(rows, tokens of the longest row) that an example of these lengths takes."""
        prefix, responses = lengths
        if not self.shared:
            return len(responses), prefix + max(responses)
        parts = split_responses(prefix, responses, self.row_tokens)
        return len(parts), prefix + max(sum(responses[j] for j in part) for part in parts)

    def _shared(self, texts: list[list[str]], images: list[list[Any]]) -> dict[str, Tensor]:
        conversations, inputs = self._conversations(texts, images)
        prefixes = [shared_prefix_length(c) for c in conversations]
        parts = [
            split_responses(prefix, [len(ids) - prefix for ids in c], self.row_tokens)
            for prefix, c in zip(prefixes, conversations, strict=True)
        ]
        owners = [i for i, split in enumerate(parts) for _ in split]
        if len(owners) > len(texts):  # every row encodes its own image: ask the processor for one set per row
            _, inputs = self._conversations([texts[i][:1] for i in owners], [images[i] for i in owners])
        grids = _per_example(inputs.get("image_grid_thw"), [len(images[i]) for i in owners])
        rows = [
            build_row(conversations[i], part, self._positions(grid), prefixes[i])
            for i, part, grid in zip(owners, [part for split in parts for part in split], grids, strict=True)
        ]
        batch = inputs | pad_rows(rows, self.tokenizer.pad_token_id, self.padding_side)
        response_ids = torch.full(batch["reward_positions"].shape, -1)
        for i, row in enumerate(rows):
            response_ids[i, : len(row.responses)] = torch.tensor(row.responses)
        return batch | {"list_ids": torch.tensor(owners), "response_ids": response_ids}

    def _conversations(
        self, texts: list[list[str]], images: list[list[Any]]
    ) -> tuple[list[list[list[int]]], dict[str, Tensor]]:
        """Token ids of every full conversation, image tokens expanded, and the image tensors, once per example.

        Only the first conversation of an example goes through the processor with its images. The others have the same
        text up to the last image, and the image token splits the tokenizer's input, so their ids are the first's up to
        there and their own behind it; that the first itself obeys this is checked every time.
        """
        plain = [self._tokenized(conversations) for conversations in texts]
        with_images = [i for i, pictures in enumerate(images) if pictures]
        for i, ids in enumerate(plain):
            self._check_placeholders(ids, len(images[i]))
        if not with_images:
            return plain, {}
        batch = encode(self.processor, [texts[i][0] for i in with_images], [images[i] for i in with_images])
        keep = batch["attention_mask"].bool()
        expanded = {i: batch["input_ids"][row][keep[row]].tolist() for row, i in enumerate(with_images)}
        conversations = [self._expand(ids, expanded[i]) if i in expanded else ids for i, ids in enumerate(plain)]
        return conversations, {key: value for key, value in batch.items() if key not in TOKEN_KEYS}

    def _expand(self, plain: list[list[int]], first: list[int]) -> list[list[int]]:
        """Replaces the image placeholders of `plain` conversations, given the expanded ids of the first one."""
        cuts = [len(ids) - ids[::-1].index(self.image_token_id) for ids in plain]
        tail = len(plain[0]) - cuts[0]
        head = first[: len(first) - tail]
        same_head = all(ids[:cut] == plain[0][: cuts[0]] for ids, cut in zip(plain, cuts, strict=True))
        if not same_head or first[len(head) :] != plain[0][cuts[0] :]:
            raise UserError("this processor changes the text behind an image when it expands it; set rows=separate")
        return [head + ids[cut:] for ids, cut in zip(plain, cuts, strict=True)]

    def _tokenized(self, texts: list[str]) -> list[list[int]]:
        """Token ids of rendered conversations, an image as one token."""
        return self.tokenizer(list(texts), add_special_tokens=not has_bos(self.tokenizer, texts[0]))["input_ids"]

    def _check_placeholders(self, plain: list[list[int]], count: int) -> None:
        found = [ids.count(self.image_token_id) for ids in plain]
        if any(n != count for n in found):
            token = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
            remedy = "remove it from the text" if max(found) > count else "does the chat template drop images?"
            raise UserError(f"text with {max(found)} image tokens {token!r} for {count} images; {remedy}")

    def _positions(self, grid: Tensor | None) -> Callable[[list[int]], Tensor]:
        """Token ids of a full conversation -> position ids (axes, tokens): the model's own index where it has one."""

        def index(ids: list[int]) -> Tensor:
            if self._rope_index is None:
                return torch.arange(len(ids))[None]
            if grid is None:
                return torch.arange(len(ids)).expand(3, -1)
            tokens = torch.tensor([ids])
            types = (tokens == self.image_token_id).int()
            return self._rope_index(tokens, mm_token_type_ids=types, image_grid_thw=grid)[0][:, 0]

        return index

    def _separate(self, texts: list[list[str]], images: list[list[Any]]) -> dict[str, Tensor]:
        flat = [text for conversations in texts for text in conversations]
        repeated = [images[i] for i, conversations in enumerate(texts) for _ in conversations]
        if any(repeated) and not all(repeated):
            raise ValueError("a batch of separate rows cannot mix rows with and without images: plan them apart")
        batch = encode(self.processor, flat, repeated)
        owners = [i for i, conversations in enumerate(texts) for _ in conversations]
        numbers = [[j] for conversations in texts for j in range(len(conversations))]
        return batch | {"list_ids": torch.tensor(owners), "response_ids": torch.tensor(numbers)}


def _rope_index(config: Any) -> Callable | None:
    """The family's own M-RoPE index function (Qwen-VL), bound to a model without weights; None for 1-D positions."""
    from transformers import AutoModel

    with torch.device("meta"):
        backbone = AutoModel.from_config(config)
    return getattr(backbone, "get_rope_index", None)


def _per_example(values: Tensor | None, counts: list[int]) -> list[Tensor | None]:
    """Splits a per-image tensor by the number of images of each row; None for rows without."""
    if values is None:
        return [None] * len(counts)
    return [part if len(part) else None for part in values.split(counts)]
