"""Per-example gradients of some linear layers, from one batched forward and backward, sketched to a fixed width.

    with GradientFeatures(model, lora_layers(model), width=4096, seed=0) as features:
        margins = model(**batch).logits ...                       # (examples,): chosen minus rejected reward
        rows = features(margins, owner)                           # (examples, 4096), float32

A forward hook keeps a layer's input a (rows, tokens, in); the gradient g of its output (rows, tokens, out) comes back
in the backward; the sum over tokens of g a' is the layer's gradient of each row by itself, since rows of a batch do
not meet. The sketch is a sparse Johnson-Lindenstrauss transform with one entry a coordinate (Kane and Nelson 2014):
every coordinate is added, with a random sign, to a random place; inner products are kept without bias, with an error
of about 1 / sqrt(width). It depends on the seed and the layers' names and shapes only, so pool and target share it.

Differentiate the reward *margin* rather than its loss: -log sigmoid(margin) has the same direction and a factor that
underflows for pairs the model is sure of. Plain gradients, not Adam's: LESS adds the optimizer's momentum to every
example, so examples with small gradients collapse onto one direction, the momentum's.
"""

import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def lora_layers(model: nn.Module, counts: Callable[[str], bool] = lambda name: True) -> dict[str, nn.Linear]:
    """The A and B matrices of a PEFT model's LoRA adapters of linear layers, by name; not those of convolutions and
    embeddings. counts: whether a layer of this name is one of them."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (".lora_A." in name or ".lora_B." in name) and counts(name):
            layers[name] = module
    return layers


class GradientFeatures:
    """Hooks on a model's layers, from which each backward gives the features of a batch.

    Dropout must be off (`model.eval()`), or features are noise. Works with gradient checkpointing: a recomputed forward
    is hooked again, but only tensors that a gradient reaches are counted, and each layer once a backward.

    Args:
        model: the module that the layers belong to.
        layers: linear layers without bias, by name.
        width: of a feature; 0 keeps every coordinate.
        seed: of the sketch.
        weigh: changes a layer's gradients (examples, out * in) before the sketch, for instance to precondition them; it
            gets the layer's name and the gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, nn.Linear],
        width: int,
        seed: int = 0,
        weigh: Callable[[str, Tensor], Tensor] | None = None,
    ):
        if not layers:
            raise ValueError("no layers to take gradients of; give the model an adapter, or other layer names")
        biased = [name for name, layer in layers.items() if layer.bias is not None]
        if biased:
            raise ValueError(f"layer {biased[0]!r} has a bias; only linear layers without one are taken")
        self.model, self.layers, self.width, self.weigh = model, layers, width, weigh
        self.places = (
            {name: _places(name, layer.weight, width, seed) for name, layer in layers.items()} if width else {}
        )
        self.hooks: list[Any] = []
        # Of the backward that runs: each layer's part of the features, and which example a row belongs to.
        self.parts: dict[str, Tensor] = {}
        self.owner: Tensor | None = None
        self.rows = 0

    def __enter__(self) -> "GradientFeatures":
        for name, layer in self.layers.items():
            self.hooks.append(layer.register_forward_hook(self._watch(name)))
        return self

    def __exit__(self, *error: Any) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()

    def __call__(self, objective: Tensor, owner: Tensor) -> Tensor:
        """The features of a batch, (examples, width). Weights get no gradient.

        Args:
            objective: (examples,), differentiable, of ONE forward of all rows.
            owner: (rows,), the example that each row of the batch belongs to.
        """
        if not objective.requires_grad:
            raise ValueError("the objective has no gradient; compute it with gradients on, of an adapter that trains")
        if len(owner) and not 0 <= int(owner.min()) <= int(owner.max()) < len(objective):
            raise ValueError(f"owner names examples {int(owner.min())} to {int(owner.max())} of {len(objective)}")
        self.parts.clear()
        owner = owner.long()
        # A gradient comes back for each row; an example's is the sum over its rows.
        one_row_each = torch.equal(owner, torch.arange(len(objective), device=owner.device))
        self.owner = None if one_row_each else torch.nn.functional.one_hot(owner, len(objective)).T  # (examples, rows)
        self.rows = len(owner)
        try:
            objective.sum().backward()  # not autograd.grad, which reentrant checkpointing refuses
        finally:
            self.model.zero_grad(set_to_none=True)
        silent = [name for name in self.layers if name not in self.parts]
        if silent:
            raise ValueError(f"no gradient reaches layer {silent[0]!r}; leave it out of the layers")
        parts = list(self.parts.values())
        return torch.stack(parts).sum(0) if self.width else torch.cat(parts, 1)

    def _watch(self, name: str) -> Callable:
        """A forward hook that keeps the layer's input until the gradient of its output is there."""

        def forward(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                kept = inputs[0].detach()
                output.register_hook(lambda gradient: self._take(name, kept, gradient))

        return forward

    def _take(self, name: str, kept: Tensor, gradient: Tensor) -> None:
        """Makes a layer's part of the features from its input and the gradient of its output."""
        if name in self.parts:
            raise RuntimeError(
                f"layer {name!r} is used twice: its gradients would be mixed up; run all rows in one forward"
            )
        if len(gradient) != self.rows:
            raise ValueError(
                f"owner has {self.rows} entries, but layer {name!r} saw {len(gradient)} rows; one for each"
            )
        outputs = gradient.float().reshape(len(gradient), -1, gradient.shape[-1])  # (rows, tokens, out)
        inputs = kept.float().reshape(len(kept), -1, kept.shape[-1])  # (rows, tokens, in)
        rows = torch.einsum("bto,bti->boi", outputs, inputs).flatten(1)  # (rows, out * in)
        examples = rows if self.owner is None else self.owner.to(rows) @ rows
        examples = self.weigh(name, examples) if self.weigh else examples
        self.parts[name] = sketch(examples, self.places[name], self.width) if self.width else examples


def sketch(rows: Tensor, places: Tensor, width: int) -> Tensor:
    """(rows, width): coordinate i of (rows, p) added at places[i], or taken off at places[i] - width. On CUDA the order
    of the sums is free, and so are their last digits; `torch.use_deterministic_algorithms(True)` fixes it."""
    signed = torch.zeros(len(rows), 2 * width, dtype=rows.dtype, device=rows.device)
    signed.index_add_(1, places.to(rows.device), rows)
    return signed[:, :width] - signed[:, width:]


def _places(name: str, weight: Tensor, width: int, seed: int) -> Tensor:
    """(p,) random places below 2 * width: the second half stands for a minus sign."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}:{tuple(weight.shape)}".encode()))
    return torch.randint(2 * width, (weight.numel(),), generator=generator, dtype=torch.int32).to(weight.device)
