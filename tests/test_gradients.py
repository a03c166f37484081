"""Features against gradients taken one by one, and the sketch against its theory."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForSequenceClassification

from data_selection.gradients import GradientFeatures, _places, lora_layers, sketch

TOKENS, LISTS = 12, 5


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_labels=1,
        pad_token_id=0,
    )
    adapted = get_peft_model(
        LlamaForSequenceClassification(config),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS"),
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return adapted.eval()


def margins(model, ids: torch.Tensor) -> torch.Tensor:
    """(lists,): the reward of the first of two rows of each list minus that of the second."""
    rewards = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0]
    return rewards[0::2] - rewards[1::2]


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(1, 50, (2 * LISTS, TOKENS), generator=torch.Generator().manual_seed(1))
    return ids, torch.arange(LISTS).repeat_interleave(2)


def one_by_one(model, ids: torch.Tensor) -> torch.Tensor:
    found = []
    for i in range(LISTS):
        model.zero_grad()
        margins(model, ids[2 * i : 2 * i + 2]).sum().backward()
        found.append(torch.cat([layer.weight.grad.flatten() for layer in lora_layers(model).values()]))
    model.zero_grad()
    return torch.stack(found)


def in_order(model, features: GradientFeatures, ids: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
    """Unsketched features, the layers in the order of `lora_layers`."""
    return features(margins(model, ids), owner)


@pytest.mark.parametrize("checkpointing", (None, False, True))
def test_batched_gradients_are_those_of_one_by_one(model, checkpointing):
    ids, owner = rows()
    twin = one_by_one(model, ids)
    if checkpointing is not None:
        model.train()  # checkpointing is off in eval mode; this model has no dropout
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    with GradientFeatures(model, lora_layers(model), width=0) as features:
        found = in_order(model, features, ids, owner)
    assert (found - twin).norm() < 1e-5 * twin.norm()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_sketched_features_are_the_sketch_of_the_gradients(model):
    ids, owner = rows()
    twin = one_by_one(model, ids)
    layers = lora_layers(model)
    with GradientFeatures(model, layers, width=256, seed=3) as features:
        found = features(margins(model, ids), owner)
    parts = twin.split([layer.weight.numel() for layer in layers.values()], dim=1)
    want = sum(
        sketch(part, _places(name, layer.weight, 256, 3), 256)
        for part, (name, layer) in zip(parts, layers.items(), strict=True)
    )
    assert torch.allclose(found, want, rtol=1e-4, atol=1e-6)


def test_a_subset_of_layers_and_weights_of_ones_own(model):
    ids, owner = rows()
    layers = lora_layers(model, lambda name: ".1." in name and "lora_B" in name)
    assert len(layers) == 2
    with GradientFeatures(model, layers, width=0) as features:
        plain = features(margins(model, ids), owner)
    with GradientFeatures(model, layers, width=0, weigh=lambda name, g: 2 * g) as features:
        assert torch.equal(features(margins(model, ids), owner), 2 * plain)


@pytest.mark.parametrize("checkpointing", (False, True))
def test_the_backward_ends_at_the_lowest_layer_that_counts(model, checkpointing):
    """No weight and no input asks for a gradient; what is found is what training would find, and the layer below is
    never reached."""
    ids, owner = rows()
    upper = lora_layers(model, lambda name: ".1." in name)
    twin = one_by_one(model, ids)
    sizes = [layer.weight.numel() for layer in lora_layers(model).values()]
    parts = dict(zip(lora_layers(model), twin.split(sizes, dim=1), strict=True))
    model.requires_grad_(False)
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.disable_input_require_grads()
    below = []
    lower = next(layer for name, layer in lora_layers(model).items() if ".0." in name)
    lower.register_forward_hook(lambda layer, inputs, output: below.append(output.requires_grad))
    with GradientFeatures(model, upper, width=0) as features:
        found = in_order(model, features, ids, owner)
    want = torch.cat([parts[name] for name in upper], 1)
    assert (found - want).norm() < 1e-5 * want.norm()
    assert below and not any(below)


@pytest.mark.parametrize("width", (0, 4096))
def test_groups_of_layers_count_the_same(model, width):
    ids, owner = rows()
    layers = lora_layers(model)
    groups = {name: f"{'A' if 'lora_A' in name else 'B'}{'.1.' in name}" for name in layers}
    with GradientFeatures(model, layers, width=0) as features:
        raw = features(margins(model, ids), owner)
    with GradientFeatures(model, layers, width, groups=groups) as features:
        found = features(margins(model, ids), owner)
        assert torch.allclose(features.lengths, raw.norm(dim=1), rtol=1e-5)
    parts = dict(zip(layers, raw.split([layer.weight.numel() for layer in layers.values()], dim=1), strict=True))
    for group in set(groups.values()):
        of_group = [name for name in layers if groups[name] == group]
        length = torch.cat([parts[name] for name in of_group], 1).norm(dim=1, keepdim=True)
        for name in of_group:
            parts[name] = parts[name] / length
    if width:
        want = sum(sketch(part, _places(name, layers[name].weight, width, 0), width) for name, part in parts.items())
    else:
        want = torch.cat(list(parts.values()), 1)
    assert torch.allclose(found, want, rtol=1e-4, atol=1e-6)


def test_no_warm_up_is_noticed(model):
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    ids, owner = rows()
    with GradientFeatures(model, lora_layers(model, lambda name: "lora_A" in name), width=0) as features:
        assert not features(margins(model, ids), owner).any()


@pytest.mark.parametrize("width", (512, 2048))
def test_inner_products_survive_the_sketch(width: int):
    generator = torch.Generator().manual_seed(0)
    values = torch.nn.functional.normalize(torch.randn(40, 20_000, generator=generator), dim=1)
    exact = values @ values.T
    errors = []
    for seed in range(20):
        small = sketch(values, _places("a", torch.empty(200, 100), width, seed), width)
        errors.append((small @ small.T - exact)[torch.triu(torch.ones(40, 40), 1) > 0])
    error = torch.stack(errors)
    assert error.pow(2).mean().sqrt().item() == pytest.approx(width**-0.5, rel=0.1)
    assert abs(error.mean().item()) < 4 * width**-0.5 / error.numel() ** 0.5


def test_places_depend_on_seed_name_and_shape():
    weight = torch.empty(8, 8)
    same = _places("a", weight, 64, 0)
    assert torch.equal(same, _places("a", weight, 64, 0))
    for other in (_places("b", weight, 64, 0), _places("a", weight, 64, 1), _places("a", torch.empty(4, 16), 64, 0)):
        assert not torch.equal(same, other)


def test_errors(model):
    with pytest.raises(ValueError, match="no layers"):
        GradientFeatures(model, {}, 16)
    with pytest.raises(ValueError, match="has a bias"):
        GradientFeatures(model, {"one": torch.nn.Linear(2, 2)}, 16)
    with GradientFeatures(model, {"idle": torch.nn.Linear(2, 2, bias=False)}, 16) as features:
        with pytest.raises(ValueError, match="no gradient reaches layer 'idle'"):
            features(margins(model, rows()[0]), rows()[1])
    ids, owner = rows()
    with GradientFeatures(model, lora_layers(model), 16) as features:
        for wrong, told in (
            (torch.arange(LISTS), "owner has 5 entries, but layer .* saw 10 rows"),
            (owner + 1, "owner names examples 1 to 5 of 5"),
        ):
            with pytest.raises(ValueError, match=told):
                features(margins(model, ids), wrong)
        with torch.no_grad(), pytest.raises(ValueError, match="the objective has no gradient"):
            features(margins(model, ids), owner)
        twice = margins(model, ids) - margins(model, ids.flip(1))
        with pytest.raises(RuntimeError, match="run all rows in one forward"):
            features(twice, owner)
        assert all(parameter.grad is None for parameter in model.parameters())
        assert torch.equal(features(margins(model, ids), owner.int()), features(margins(model, ids), owner))


class Twice(torch.nn.Module):
    """Uses `both` on prompts and then on answers, and `first` on prompts alone."""

    def __init__(self):
        super().__init__()
        self.first, self.both = torch.nn.Linear(3, 3, bias=False), torch.nn.Linear(3, 2, bias=False)

    def forward(self, prompts, answers, owners):
        state = self.both(self.first(prompts))
        return (self.both(answers) * state[owners]).sum(dim=(1, 2))


@pytest.mark.parametrize("weigh", [None, lambda name, gradients: gradients.square()])
def test_a_layer_that_a_forward_uses_twice(weigh):
    """The rows of each use have owners of their own, and an example has the sum, weighed as a whole."""
    model, owners = Twice(), torch.tensor([0, 0, 1, 1, 1])
    prompts, answers = torch.randn(2, 4, 3), torch.randn(5, 4, 3)
    layers = {"first": model.first, "both": model.both}
    with GradientFeatures(model, layers, 0, weigh=weigh) as features:
        objective = torch.zeros(2).index_add(0, owners, model(prompts, answers, owners))
        found = features(objective, torch.arange(2), owners)
        objective = torch.zeros(2).index_add(0, owners, model(prompts, answers, owners))
        with pytest.raises(ValueError, match="'both' is used 2 times in a forward; give the owners"):
            features(objective, torch.arange(2))
    for i in range(2):
        model.zero_grad()
        alone = owners == i
        model(prompts[i : i + 1], answers[alone], owners[alone] * 0).sum().backward()
        gradient = torch.cat([layer.weight.grad.flatten() for layer in layers.values()])
        torch.testing.assert_close(found[i], gradient if weigh is None else gradient.square(), rtol=1e-4, atol=1e-5)


def test_layers_without_a_dimension_of_tokens():
    """A head sees one vector a row."""
    layer = torch.nn.Linear(3, 2, bias=False)
    inputs = torch.randn(4, 3)
    with GradientFeatures(layer, {"head": layer}, 0) as features:
        found = features(layer(inputs.requires_grad_()).square().sum(1), torch.arange(4))
    for i in range(4):
        layer.zero_grad()
        layer(inputs[i]).square().sum().backward()
        assert torch.allclose(found[i], layer.weight.grad.flatten(), atol=1e-6)
