"""Partial answers that go on from the state of their prompts: what search over answers samples from.

    beams = Beams.of_prompts(policy, examples)      # one run of the prompts, images included
    beams = beams.select([0, 0, 0, 1, 1, 1])        # three copies of each of two prompts
    beams.append(tokens, live)                      # a token to each row that is live, (rows,)
    beams.logits                                    # (rows, vocabulary) float32: what each row is followed by

Rows grow by different numbers of tokens. A row that has stopped while others grow gets masked holes behind its tokens;
`select` closes them, so that it is contiguous again, padded on the left, and may go on. So a row's logits are those of
a forward of its tokens alone, whatever its neighbours do, sliding windows included.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.model.policy import Policy

RECURRENT = {"linear_attention", "conv", "chunked_attention"}  # layers whose state has no entry for each token

ROOM = 64  # tokens that a row may grow by before its state is copied


@dataclass
class Beams:
    """Rows of tokens and the model's state behind them; see the module's docstring.

    Args:
        model: a language model of transformers, in eval mode.
        cache: keys and values of all rows.
        mask: (rows, tokens in the cache), 1 for tokens.
        positions: (rows,) of each row's next token; in families with three axes that of all of them.
        logits: (rows, vocabulary), float32.
        axes: 3 for families whose positions have three axes (M-RoPE), else 1.
    """

    model: Any
    cache: Any
    mask: Tensor
    positions: Tensor
    logits: Tensor
    axes: int
    stopped: Tensor | None = None  # (rows,) bool, since the last select

    @classmethod
    @torch.inference_mode()
    def of_prompts(cls, policy: Policy, examples: Sequence[Example]) -> "Beams":
        """A row for each prompt, run once. Raises UserError for a family whose state cannot be cut into tokens."""
        config = policy.model.config.get_text_config()
        others = RECURRENT & set(getattr(config, "layer_types", None) or [])
        if others or policy.model.config.model_type == "mllama":
            what = ", ".join(sorted(others)) or "cross-attention"
            raise UserError(
                f"the policy has layers with {what}, which search sentence by sentence cannot go on from yet; take a "
                "policy with attention alone"
            )
        inputs = policy.inputs(examples)
        mask = inputs["attention_mask"]
        backbone: Any = getattr(policy.model, "model", None)
        axes = 3 if hasattr(backbone, "get_rope_index") else 1
        positions = mask.cumsum(1) - 1
        if axes == 1:  # the other families find their own, by where the images are
            inputs["position_ids"] = positions.clamp_min(0)
        cache = DynamicCache()  # without the config: sliding layers keep all tokens, their masks are the model's own
        output = policy.model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
        following = positions[:, -1] + 1
        if axes == 3:
            following = following + backbone.rope_deltas.flatten()  # positions less tokens
        return cls(policy.model, cache, mask, following, output.logits[:, -1].float(), axes)

    def __len__(self) -> int:
        return len(self.mask)

    @torch.inference_mode()
    def append(self, tokens: Tensor, live: Tensor) -> None:
        """Appends a token to each live row; the others stay as they are. tokens: (rows,); live: (rows,) bool.

        Raises ValueError for a row that lives again before a `select`: windows would count its holes."""
        if self.stopped is not None and bool((live & self.stopped).any()):
            raise ValueError("a row that has stopped may go on after select() alone")
        self.stopped = ~live
        self.mask = torch.cat([self.mask, live[:, None].to(self.mask)], dim=1)
        positions = self.positions[:, None]
        output = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=positions if self.axes == 1 else positions.expand(self.axes, -1, -1),
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits = torch.where(live[:, None], output.logits[:, -1].float(), self.logits)
        self.positions = self.positions + live.to(self.positions)

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> "Beams":
        """These rows, in this order and as often as they are named, without holes."""
        chosen = torch.tensor(rows, dtype=torch.long, device=self.mask.device)
        mask = self.mask[chosen]
        order = mask.sort(dim=1, stable=True).indices  # padding and holes first, then the tokens in their order
        order = order[:, mask.shape[1] - int(mask.sum(1).max()) :]
        in_order = bool((order.diff(dim=1) == 1).all()) and bool((order[:, :1] == order[0, 0]).all())
        cache = copy.copy(self.cache)
        cache.layers = []
        for layer in self.cache.layers:
            parts = []
            for states in (layer.keys, layer.values):  # (rows, heads, tokens, size)
                if in_order:
                    parts.append(states[:, :, int(order[0, 0]) :][chosen])
                else:
                    states = states[chosen]
                    parts.append(
                        states.gather(2, order[:, None, :, None].expand(*states.shape[:2], -1, states.shape[3]))
                    )
            cache.layers.append(_RoomyLayer(*parts))
        mask = mask.gather(1, order)
        return Beams(self.model, cache, mask, self.positions[chosen], self.logits[chosen], self.axes)


class _RoomyLayer(DynamicLayer):
    """A layer with room behind its keys and values: tokens are written into it, where its base copies all that is
    there for each of them.

    Args:
        keys, values: (rows, heads, tokens, size) that are there.
    """

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.buffers = [keys, values]  # with the room; keys and values are views of them
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        for number, states in enumerate((key_states, value_states)):
            buffer = self.buffers[number]
            if end > buffer.shape[2]:
                rows, heads, _, size = buffer.shape
                larger = buffer.new_empty(rows, heads, end + ROOM, size)
                larger[:, :, :start] = buffer[:, :, :start]
                self.buffers[number] = buffer = larger
            buffer[:, :, start:end] = states
        keys, values = (buffer[:, :, :end] for buffer in self.buffers)
        self.keys, self.values = keys, values
        return keys, values
