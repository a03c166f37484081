"""FSDP: every GPU keeps a part of the weights (`trainer.fsdp=true`). What Trainer and accelerate leave to be seen to.

Only FSDP2, torch's `fully_shard`, is supported. Each layer is sharded by itself: those that activation checkpointing
knows, because accelerate stops at the families' `_no_split_modules`, which name classes that no reward model has.
"""

from typing import Any

import torch
from accelerate.utils import DistributedType, parse_flag_from_env
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from rovrm.common.errors import UserError


def check_sharding(args: Any) -> None:
    """Raises UserError for what FSDP would do wrong, where TrainingArguments or accelerate's launcher ask for it.

    On CPUs accelerate would not shard, but copy the whole model to each process without a word.
    """
    if not (args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")):
        return
    kind = args.distributed_state.distributed_type
    if kind in (DistributedType.NO, DistributedType.MULTI_CPU):
        where = "this is a single process" if kind == DistributedType.NO else "these processes run on the CPU"
        asked = f"trainer.fsdp={args.fsdp}" if args.fsdp else "ACCELERATE_USE_FSDP=true"
        raise UserError(
            f"{asked} shards the weights over several GPUs, and {where}; launch it on GPUs (torchrun "
            "--nproc_per_node 8 -m rovrm.train ...), or leave it out"
        )
    settings = args.fsdp_plugin_args or {}
    _check_settings(settings.get("fsdp_version", 2), settings.get("activation_checkpointing", False))


def _check_settings(version: int, activation_checkpointing: bool) -> None:
    if version != 2:
        raise UserError(f"trainer.fsdp_config: version={version} is not supported; leave it out, which is version 2")
    if activation_checkpointing:
        # Layers that run again draw another dropout, and an adapter is not restored from a sharded checkpoint.
        raise UserError(
            "trainer.fsdp_config: activation_checkpointing would give wrong gradients under dropout; set "
            "trainer.activation_checkpointing=true in its place"
        )


def prepare_sharding(accelerator: Any, model: Any) -> None:
    """Before accelerate shards a model: names its layers; rewards and sums of gradients are to stay in float32. Raises
    UserError as `check_sharding`."""
    plugin = accelerator.state.fsdp_plugin
    _check_settings(plugin.fsdp_version, plugin.activation_checkpointing)  # those of accelerate's launcher
    plugin.transformer_cls_names_to_wrap = plugin.transformer_cls_names_to_wrap or layer_classes(model)
    if plugin.mixed_precision_policy is not None:
        # accelerate's own also rounds what the model returns, the rewards, and sums gradients in bfloat16.
        dtype = plugin.mixed_precision_policy.param_dtype
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for name, module in model.named_modules():
        if name.split(".")[-1] == "score":
            fully_shard(module)  # a group of its own, which no policy rounds


def layer_classes(model: Any) -> list[str]:
    """The names of the classes of a model's layers."""
    return sorted(
        {type(module).__name__ for module in model.modules() if isinstance(module, GradientCheckpointingLayer)}
    )


def whole_weights(trainer: Any) -> dict[str, Any] | None:
    """Under FSDP every weight, gathered on the main process, in which all take part; None without FSDP."""
    return trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
