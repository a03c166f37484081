"""Per-example gradients of some linear layers, from one batched forward and backward, sketched to a fixed width.

    with GradientFeatures(model, lora_layers(model), width=4096, seed=0) as features:
        margins = model(**batch).logits ...                       # (examples,): chosen minus rejected reward
        rows = features(margins, owners)                          # (examples, 4096), float32

A forward hook keeps a layer's input a (rows, tokens, in); the gradient g of its output (rows, tokens, out) comes back
in the backward; the sum over tokens of g a' is the layer's gradient of each row by itself, since rows of a batch do
not meet. A layer that a forward uses twice, on prompts and then on answers, has the sum of both.

Where no weight trains, the backward ends at the lowest of the layers: the graph begins with its output.

The sketch is a sparse Johnson-Lindenstrauss transform with one entry a coordinate (Kane and Nelson 2014):
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
    is hooked again, but only tensors that a gradient reaches are counted. The reentrant kind needs inputs that ask for
    a gradient.

    Args:
        model: the module that the layers belong to.
        layers: linear layers without bias, by name.
        width: of a feature; 0 keeps every coordinate.
        seed: of the sketch.
        weigh: changes a layer's gradients (examples, out * in) before the sketch, for instance to precondition them; it
            gets the layer's name and the gradients.
        groups: by a layer's name the group it belongs to. Each example's gradients of a group are scaled to length 1
            before the groups are added, so that all groups count the same; None leaves lengths as they are.

    After a call, `lengths` (examples,) are the lengths of the gradients over all layers, before any scaling.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, nn.Linear],
        width: int,
        seed: int = 0,
        weigh: Callable[[str, Tensor], Tensor] | None = None,
        groups: dict[str, str] | None = None,
    ):
        if not layers:
            raise ValueError("no layers to take gradients of; give the model an adapter, or other layer names")
        biased = [name for name, layer in layers.items() if layer.bias is not None]
        if biased:
            raise ValueError(f"layer {biased[0]!r} has a bias; only linear layers without one are taken")
        self.model, self.layers, self.width, self.weigh, self.groups = model, layers, width, weigh, groups
        self.places = (
            {name: _places(name, layer.weight, width, seed) for name, layer in layers.items()} if width else {}
        )
        self.hooks: list[Any] = []
        self.uses: dict[str, int] = {}  # of each layer in the last forward
        self.expected: dict[str, int] = {}  # the same, without what a backward runs again
        # Of the backward that runs:
        self.taken: set[tuple[str, int]] = set()  # the uses of layers that came back
        self.gradients: dict[str, list[Tensor]] = {}  # of each use, (examples, out * in), until a layer's are complete
        self.parts: dict[str, Tensor] = {}  # each layer's part of the features
        self.squares: dict[str, Tensor] = {}  # (examples,) squared length of each layer's gradients
        self.lengths = torch.empty(0)
        self.owners: tuple[Tensor, ...] = ()
        self.examples = 0

    def __enter__(self) -> "GradientFeatures":
        self.hooks.append(self.model.register_forward_pre_hook(lambda *_: self.uses.clear()))
        for name, layer in self.layers.items():
            self.hooks.append(layer.register_forward_hook(self._watch(name)))
        return self

    def __exit__(self, *error: Any) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()

    def __call__(self, objective: Tensor, *owners: Tensor) -> Tensor:
        """The features of a batch, (examples, width). Weights get no gradient.

        Args:
            objective: (examples,), differentiable, of ONE forward of the model.
            owners: for each time that the forward uses the layers, (rows,): the example that each row belongs to.
        """
        if not objective.requires_grad:
            raise ValueError("the objective has no gradient; compute it with gradients on, of an adapter that trains")
        for owner in owners:
            if len(owner) and not 0 <= int(owner.min()) <= int(owner.max()) < len(objective):
                raise ValueError(f"owner names examples {int(owner.min())} to {int(owner.max())} of {len(objective)}")
        self.taken.clear()
        self.gradients.clear()
        self.parts.clear()
        self.squares.clear()
        self.owners, self.examples = owners, len(objective)
        self.expected = dict(self.uses)
        try:
            objective.sum().backward()  # not autograd.grad, which reentrant checkpointing refuses
        finally:
            self.model.zero_grad(set_to_none=True)
        for name in list(self.gradients):  # of layers of which some use has no part in the objective
            self._finish(name)
        silent = [name for name in self.layers if name not in self.parts]
        if silent:
            raise ValueError(f"no gradient reaches layer {silent[0]!r}; leave it out of the layers")
        self.lengths = torch.stack([self.squares[name] for name in self.layers]).sum(0).sqrt()
        if self.groups:
            self._balance(self.groups)
        parts = [self.parts[name] for name in self.layers]
        return torch.stack(parts).sum(0) if self.width else torch.cat(parts, 1)

    def _balance(self, groups: dict[str, str]) -> None:
        """Scales the parts of each group of layers to length 1, the length being that before the sketch. A group that
        an example has no gradient in stays zero."""
        of_group: dict[str, Tensor] = {}
        for name in self.layers:
            of_group[groups[name]] = of_group.get(groups[name], 0) + self.squares[name]
        for name in self.layers:
            length = of_group[groups[name]].sqrt()
            self.parts[name] = self.parts[name] / length.clamp_min(torch.finfo(length.dtype).tiny)[:, None]

    def _watch(self, name: str) -> Callable:
        """A forward hook that keeps the layer's input until the gradient of its output is there."""

        def forward(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if torch.is_grad_enabled() and not output.requires_grad:
                output.requires_grad_()  # nothing below asks for a gradient: the graph begins here
            if output.requires_grad:
                kept, use = inputs[0].detach(), self.uses.get(name, 0)
                self.uses[name] = use + 1
                output.register_hook(lambda gradient: self._take(name, use, kept, gradient))

        return forward

    def _take(self, name: str, use: int, kept: Tensor, gradient: Tensor) -> None:
        """Adds up a layer's gradients, from its input and the gradient of its output in one use of it."""
        if (name, use) in self.taken:
            raise RuntimeError(
                f"layer {name!r} is in two forwards of the objective: their gradients would be mixed up; run all rows "
                "in one forward"
            )
        self.taken.add((name, use))
        if use >= len(self.owners):
            raise ValueError(
                f"layer {name!r} is used {use + 1} times in a forward; give the owners of the rows of each, not of "
                f"{len(self.owners)}"
            )
        owner = self.owners[use].long()
        if len(gradient) != len(owner):
            raise ValueError(
                f"owner has {len(owner)} entries, but layer {name!r} saw {len(gradient)} rows; one for each"
            )
        outputs = gradient.float().reshape(len(gradient), -1, gradient.shape[-1])  # (rows, tokens, out)
        inputs = kept.float().reshape(len(kept), -1, kept.shape[-1])  # (rows, tokens, in)
        rows = torch.einsum("bto,bti->boi", outputs, inputs).flatten(1)  # (rows, out * in)
        examples = rows.new_zeros(self.examples, rows.shape[1]).index_add_(0, owner.to(rows.device), rows)
        self.gradients.setdefault(name, []).append(examples)
        if len(self.gradients[name]) == self.expected.get(name):
            self._finish(name)

    def _finish(self, name: str) -> None:
        """Makes a layer's part of the features from its gradients, which are not needed any longer."""
        examples = torch.stack(self.gradients.pop(name)).sum(0)
        examples = self.weigh(name, examples) if self.weigh else examples
        self.squares[name] = examples.square().sum(1)
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
