"""Batches of a reward model: what the answers to one prompt have in common is a row of its own, run once.

The common prefix is the longest common *token* prefix of the k full conversations, so that no tokenizer boundary makes
it inexact. The model runs it, images included, and hangs the k remainders on its state
(`rovrm.model.modeling.PrefixCache`). Each token sees what it sees in its own conversation, so the rewards are the same.

`RewardCollator` turns examples into batches, shared or separate. Separate rows are the processor's own batch of the k
conversations, image repeated: the fallback for families where sharing is not proved exact, and the oracle of the tests.
"""

import functools
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.model.chat import IMAGE_MARK, ChatTemplate, encode, has_bos

# Families, language-model backbones and kinds of their layers that tests/test_prefix_states.py proves equal to
# separate rows.
SHARED_FAMILIES = {
    "llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5",
    "qwen3_5_moe", "idefics3", "smolvlm", "internvl", "gemma3", "gemma4", "mllama", "mistral3", "glm4v", "glm4v_moe",
    "glm46v", "lfm2_vl", "aya_vision", "cohere2_vision", "ovis2", "deepseek_vl", "deepseek_vl_hybrid", "llama",
    "mistral", "ministral", "ministral3", "mixtral", "qwen2", "qwen3", "qwen3_moe", "qwen3_next", "qwen3_5_text",
    "qwen3_5_moe_text", "gemma", "gemma2", "gemma3_text", "gemma4_text", "lfm2", "smollm3", "olmo2", "olmo3", "phi3",
    "cohere2",
}  # fmt: skip
SHARED_BACKBONES = {
    "llama", "mistral", "ministral", "ministral3", "mixtral", "qwen2", "qwen3", "qwen3_moe", "qwen3_next",
    "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text", "qwen3_5_text", "qwen3_5_moe_text",
    "gemma", "gemma2", "gemma3_text", "gemma4_text", "mllama_text_model", "glm4v_text", "glm4v_moe_text", "lfm2",
    "smollm3", "olmo2", "olmo3", "phi3", "cohere2",
}  # fmt: skip
SHARED_LAYERS = {"full_attention", "sliding_attention", "linear_attention", "conv"}
NOT_SHARED = {
    "paligemma": "its whole input sees both ways",
    "llama4_text": "its chunked attention counts the padding before a prompt",
    "idefics2": "its processor puts a space behind an image, which may change the tokens there",
}
CROSS_ATTENTION = {"mllama"}  # whose processors take no batch in which some prompts have images and others none


def why_not_shared(config: Any) -> str | None:
    """The reason why this model's config needs separate rows, None where shared rows are exact."""
    text = config.get_text_config()
    if config.model_type not in SHARED_FAMILIES:
        return f"family {config.model_type!r}: {NOT_SHARED.get(config.model_type, 'not proved equal')}"
    if text.model_type not in SHARED_BACKBONES:
        return f"backbone {text.model_type!r}: {NOT_SHARED.get(text.model_type, 'not proved equal')}"
    others = set(getattr(text, "layer_types", None) or []) - SHARED_LAYERS
    return f"layers of type {', '.join(sorted(others))}" if others else None


def use_shared_rows(config: Any, rows: str) -> bool:
    """Decides `rows: auto | shared | separate` for a model. Raises UserError where shared was asked and is inexact."""
    reason = why_not_shared(config)
    if rows == "shared" and reason:
        raise UserError(f"rows=shared is inexact for this model ({reason}); set rows=auto or rows=separate")
    return rows != "separate" and reason is None


# What a processor returns per token; the collator builds its own. Everything else belongs to the images.
CROSS_MASK = "cross_attention_mask"  # of Mllama: (rows, tokens, images, tiles)
TOKEN_KEYS = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", CROSS_MASK}

# So many copied tokens of a prefix weigh as one token of a batch: an answer has copies of its prompt's keys and values,
# 2 vectors in each layer, where a token that is computed leaves 16 or more for the backward.
COPIES = 8


class Cost(NamedTuple):
    """What examples take of a batch, padding included."""

    prompts: int  # rows of common prefixes; 0 where every answer has a row of its own
    prefix: int  # tokens of the longest
    answers: int  # rows of answers
    answer: int  # tokens of the longest

    def joined(self, other: "Cost") -> "Cost":
        """The cost of both in one batch."""
        prompts, answers = self.prompts + other.prompts, self.answers + other.answers
        return Cost(prompts, max(self.prefix, other.prefix), answers, max(self.answer, other.answer))

    @property
    def tokens(self) -> int:
        """Padded tokens, and what the copies of prefixes weigh."""
        return self.prompts * self.prefix + self.answers * (self.answer + self.prefix // COPIES)


def common_prefix_length(conversations: Sequence[Sequence[int]]) -> int:
    """Tokens that all conversations begin with, at most two fewer than the shortest has: every response keeps two.

    Behind a state, linear attention takes one token on another path, whose CUDA kernels have no backward.
    """
    shortest = min(len(ids) for ids in conversations)
    first = conversations[0]
    length = 0
    while length < shortest - 2 and all(ids[length] == first[length] for ids in conversations):
        length += 1
    return length


# ---- from examples to batches ----------------------------------------------------------------------------------------


class RewardCollator:
    """Turns examples into one batch for `XForSequenceClassification.forward` and the loss.

        collator = RewardCollator(processor, model.config)
        batch = collator(examples)                                    # dict of tensors

    Besides the model's inputs the batch holds, for the loss, of each conversation
        list_ids (conversations,): the number of its example in the batch,
        response_ids (conversations,): the number of its response in the example,
        labels (conversations,): the response's rank (0 best), -100 for none,
    and of each example
        margins (examples,): float32, 0 where it has none.

    Args:
        processor: the model's processor (or tokenizer, for text models) with a chat template.
        config: the model's config.
        rows: auto | shared | separate.
    """

    def __init__(self, processor: Any, config: Any, rows: str = "auto"):
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.shared = use_shared_rows(config, rows)
        self.image_token_id = -1  # of a text model
        for name in ("image_token_index", "image_token_id"):  # families differ in the name
            if getattr(config, name, None) is not None:
                self.image_token_id: int = getattr(config, name)
        self._extra_tokens: dict[tuple[tuple[int, int], ...], int] = {}
        self._backbone: Any = _empty_backbone(config) if self.shared else None
        parameters = inspect.signature(self._backbone.forward).parameters if self.shared else ()
        self._image_marks = [name for name in ("token_type_ids", "mm_token_type_ids") if name in parameters]
        give_pad_token(self.tokenizer)
        self.chat = ChatTemplate(processor)
        # Processors refuse a batch of separate rows in which some have images and others none; Mllama's always.
        self.mixes_images = self.shared and config.model_type not in CROSS_ATTENTION

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        texts = [self.chat.conversations(example) for example in examples]
        images = [[ref.open() for ref in example.images] for example in examples]
        if any(images) and not all(images) and not self.mixes_images:
            raise ValueError("this batch cannot mix examples with and without images: plan them apart")
        batch = self._shared(texts, images) if self.shared else self._separate(texts, images)
        numbers = [(i, j) for i, example in enumerate(examples) for j in range(len(example.responses))]
        return batch | {
            "list_ids": torch.tensor([i for i, _ in numbers]),
            "response_ids": torch.tensor([j for _, j in numbers]),
            "labels": torch.tensor([rank for example in examples for rank in example.ranks]),
            "margins": torch.tensor([example.margin or 0.0 for example in examples]),
        }

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
        prefix = common_prefix_length(plain)
        if self.shared and not prefix:
            raise UserError("the conversations about this prompt share no token; write a prompt, or set rows=separate")
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

    def cost(self, lengths: tuple[int, list[int]]) -> Cost:
        """What an example of these lengths takes of a batch."""
        prefix, responses = lengths
        if self.shared:
            return Cost(1, prefix, len(responses), max(responses))
        return Cost(0, 0, len(responses), prefix + max(responses))

    def split(self, lengths: tuple[int, list[int]], batch_tokens: int) -> list[list[int]]:
        """The numbers of an example's responses in groups that fit into a batch each; a group has at least one."""
        prefix, responses = lengths
        groups: list[list[int]] = []
        cost = Cost(0, 0, 0, 0)
        for number, response in enumerate(responses):
            alone = self.cost((prefix, [response]))
            cost = cost.joined(alone)._replace(prompts=alone.prompts)  # they share the prompt
            if not groups or cost.tokens > batch_tokens:
                groups.append([])
                cost = alone
            groups[-1].append(number)
        return groups

    def _shared(self, texts: list[list[str]], images: list[list[Any]]) -> dict[str, Tensor]:
        conversations, inputs = self._conversations(texts, images)
        grids = _per_example(inputs.get("image_grid_thw"), [len(pictures) for pictures in images])
        prompts, prompt_positions, answers, answer_positions = [], [], [], []
        for of_example, grid in zip(conversations, grids, strict=True):
            prefix = common_prefix_length(of_example)
            prompts.append(of_example[0][:prefix])
            for ids in of_example:
                positions = self._positions(ids, grid)  # (axes, tokens), of the whole conversation
                answers.append(ids[prefix:])
                answer_positions.append(positions[:, prefix:])
            prompt_positions.append(positions[:, :prefix])
        pad = self.tokenizer.pad_token_id
        batch = inputs | _padded(prompts, prompt_positions, pad, "left")
        for name in self._image_marks:
            batch[name] = (batch["input_ids"] == self.image_token_id).long()
        if CROSS_MASK in inputs:
            masks = [mask[: len(ids)] for mask, ids in zip(inputs[CROSS_MASK], prompts, strict=True)]
            batch[CROSS_MASK] = pad_sequence(masks, True, 0, "left")
        padded = _padded(answers, answer_positions, pad, "right")
        batch |= {f"answer_{name}": value for name, value in padded.items()}
        owners = [i for i, of_example in enumerate(conversations) for _ in of_example]
        return batch | {"owners": torch.tensor(owners)}

    def _conversations(
        self, texts: list[list[str]], images: list[list[Any]]
    ) -> tuple[list[list[list[int]]], dict[str, Any]]:
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
        conversations = list(plain)
        for row, i in enumerate(with_images):
            conversations[i] = self._expand(plain[i], batch["input_ids"][row][keep[row]].tolist())
        inputs = {key: value for key, value in batch.items() if key not in TOKEN_KEYS}
        if CROSS_MASK in batch:  # per token, too: without padding, as the ids
            inputs[CROSS_MASK] = [mask[kept] for mask, kept in zip(batch[CROSS_MASK], keep, strict=True)]
        return conversations, inputs

    def _expand(self, plain: list[list[int]], first: list[int]) -> list[list[int]]:
        """Replaces the image placeholders of `plain` conversations, given the expanded ids of the first one."""
        cuts = [len(ids) - ids[::-1].index(self.placeholder_id) for ids in plain]
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
        found = [ids.count(self.placeholder_id) for ids in plain]
        if any(n != count for n in found):
            token = self.tokenizer.convert_ids_to_tokens(self.placeholder_id)
            remedy = "remove it from the text" if max(found) > count else "does the chat template drop images?"
            raise UserError(f"text with {max(found)} image tokens {token!r} for {count} images; {remedy}")

    @functools.cached_property
    def placeholder_id(self) -> int:
        """The token that stands for an image until the processor expands it. It is the model's image token, but where
        the processor writes a sequence for another word (Gemma 3); -1 for a text model."""
        if self.image_token_id < 0:
            return -1
        ids = self._tokenized([self.chat.image_text()])[0]
        special = [i for i in ids if i in self.tokenizer.added_tokens_decoder and i != self.tokenizer.bos_token_id]
        return special[0] if len(special) == 1 else self.image_token_id

    def _positions(self, ids: list[int], grid: Tensor | None) -> Tensor:
        """The position ids (axes, tokens) of a full conversation: the model's own index where it has one.

        grid: (images, 3), of the families whose images have rows and columns.
        """
        index = getattr(self._backbone, "get_rope_index", None)
        if index is None:
            return torch.arange(len(ids))[None]
        if grid is None:
            return torch.arange(len(ids)).expand(3, -1)
        tokens = torch.tensor([ids])
        types = (tokens == self.image_token_id).int()
        return index(tokens, mm_token_type_ids=types, image_grid_thw=grid)[0][:, 0]

    def _separate(self, texts: list[list[str]], images: list[list[Any]]) -> dict[str, Tensor]:
        flat = [text for conversations in texts for text in conversations]
        repeated = [images[i] for i, conversations in enumerate(texts) for _ in conversations]
        # On the right, whatever the processor's side: positions count no padding, and no reward depends on the batch.
        return encode(self.processor, flat, repeated, padding_side="right")


def give_pad_token(tokenizer: Any) -> None:
    """Gives a tokenizer without a padding token one that ends no conversation. With eos as padding, transformers' own
    classes read the reward of a checkpoint in front of it."""
    if tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        return
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    others = [token for token in special if token != tokenizer.eos_token and not IMAGE_MARK.fullmatch(token)]
    for part in ("pad", "reserved", "unk", ""):  # the last one: any that is there
        if token := next((token for token in others if part in token), ""):
            tokenizer.pad_token = token
            return
    tokenizer.pad_token = tokenizer.eos_token  # masked by attention


def _empty_backbone(config: Any) -> Any:
    """The family's backbone without weights: what its forward takes, and its own index of positions (Qwen-VL)."""
    from transformers import AutoModel

    with torch.device("meta"):
        return AutoModel.from_config(config)


def _per_example(values: Tensor | None, counts: list[int]) -> list[Tensor | None]:
    """Splits a per-image tensor by the number of images of each example; None for examples without."""
    if values is None:
        return [None] * len(counts)
    return [part if len(part) else None for part in values.split(counts)]


def _padded(rows: list[list[int]], positions: list[Tensor], pad_token_id: int, side: str) -> dict[str, Tensor]:
    """Rows as a batch: input_ids, attention_mask (rows, tokens), position_ids (rows, tokens) or (3, rows, tokens).

    Args:
        positions: of each row, (axes, tokens of the row).
        side: left or right, where the padding goes.
    """
    input_ids = pad_sequence([torch.tensor(ids) for ids in rows], True, pad_token_id, side)
    attention_mask = pad_sequence([torch.ones(len(ids), dtype=torch.long) for ids in rows], True, 0, side)
    position_ids = pad_sequence([position.T for position in positions], True, 0, side)  # (rows, tokens, axes)
    position_ids = position_ids.permute(2, 0, 1)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": position_ids if len(position_ids) > 1 else position_ids[0],
    }
