"""Memory of a training step: measured on a few rows before the first step, and settings under which it fits.

What a forward keeps for its backward grows with the tokens of its batch (`Cost.tokens`) and is most of a step's peak.
So two rows tell what the largest planned batch takes, for any family, adapter and arithmetic:

    peak = weights + gradients and Adam's moments + (kept by two rows / their tokens) * tokens of the largest batch

Under activation checkpointing a layer keeps its input, and of the prompts its keys and values, and one layer at a time
computes the rest anew.
"""

import ctypes
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from rovrm.common.disk import in_units
from rovrm.common.files import read_json, write_json
from rovrm.data.example import Example
from rovrm.model.batches import plan_batches, split_batch
from rovrm.model.collator import RewardCollator
from rovrm.model.modeling import PrefixCache
from rovrm.training.trainer import RewardConfig, RewardTrainer

NOTE = "memory.json"  # in a phase's folder: the settings that were made to fit, for the run that resumes
ADAM = 12  # bytes of a trained number beside itself, all float32: its gradient and two moments
BRIEF = 0.03  # of what is kept: what a step allocates for a moment (measured: .02)
CHECKPOINTING = {"activation_checkpointing", "gradient_checkpointing"}  # one key, by its new and its old name
FILLED = 0.9  # of the free memory: allocators leave gaps
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's keys: see `return_freed_memory`
LARGE_BLOCK = 1_000_000  # bytes
ROW_ANSWERS = 2  # of each row that is measured


class StepMemory(NamedTuple):
    """The bytes of a training step, beside the weights, on one device."""

    fixed: int  # gradients, Adam's moments, and what autocast keeps of the weights in another type
    token: float  # kept for the backward, for each token of the batch
    checkpointed: float  # the same under activation checkpointing; as much where the model cannot

    def peak(self, tokens: int, checkpointing: bool) -> float:
        """Of a batch of so many tokens."""
        return self.fixed + tokens * self._of_a_token(checkpointing)

    def tokens(self, room: float, checkpointing: bool) -> int:
        """The tokens of the largest batch whose peak is `room` bytes."""
        return int((room - self.fixed) / self._of_a_token(checkpointing))

    def _of_a_token(self, checkpointing: bool) -> float:
        return (1 + BRIEF) * (self.checkpointed if checkpointing else self.token)


# ---- fitting a run ---------------------------------------------------------------------------------------------------


def adapt_to_memory(trainer: RewardTrainer, folder: Path, resumed: bool, given: Collection[str]) -> None:
    """Says what the largest batch of a training takes. Where that is more than there is, switches on activation
    checkpointing, which changes no result, and where that is not enough lowers `batch_tokens`.

    What the user has set is left as it is: activation checkpointing, on or off, and a `batch_tokens` other than the
    default.

    Args:
        trainer: ready to train; its arguments are changed.
        folder: keeps the changes, which a resumed run takes over: its batches must be those of its checkpoint.
        resumed: whether it goes on from a checkpoint.
        given: the keys of TrainingArguments that the user has set.
    """
    arguments, note = trainer.config, folder / NOTE
    if resumed:
        changes = read_json(note) if note.is_file() else {}
        for key, value in changes.items():
            setattr(arguments, key, value)
        if changes:
            return_freed_memory(arguments.device)
        return
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return  # weights, gradients and moments are spread over the processes
    examples, collator = trainer.train_examples, trainer.collator
    with trainer.accelerator.autocast():
        memory = step_memory(trainer.model, collator, examples, arguments.device)
    free = _least_over_processes(trainer, free_memory(arguments.device))
    settled = not CHECKPOINTING.isdisjoint(given)
    changes = _changes(memory, arguments, collator, examples, FILLED * free, settled)
    if trainer.is_world_process_zero():
        tokens = largest_batch(examples, collator, arguments, arguments.batch_tokens)
        checkpointing = bool(arguments.activation_checkpointing)
        print(f"  {in_words(memory, tokens, checkpointing)}; {in_units(free)} are free")
        if changes:
            print(f"  that does not fit: {_in_words(changes, arguments)}")
        elif memory.peak(tokens, checkpointing) > FILLED * free:
            print("  that may not fit: lower batch_tokens, or set trainer.activation_checkpointing=true")
        write_json(note, changes)
    for key, value in changes.items():
        setattr(arguments, key, value)
    if changes:
        return_freed_memory(arguments.device)


def _changes(
    memory: StepMemory,
    arguments: RewardConfig,
    collator: RewardCollator,
    examples: list[Example],
    room: float,
    settled: bool,
) -> dict[str, Any]:
    """The arguments to change so that the largest batch fits; empty where it does, or where nothing may be changed.

    Args:
        room: bytes that may be filled.
        settled: whether the user has chosen activation checkpointing, or none.
    """
    tokens = arguments.batch_tokens
    largest = largest_batch(examples, collator, arguments, tokens)
    checkpointing = bool(arguments.activation_checkpointing)
    if memory.peak(largest, checkpointing) <= room:
        return {}
    changes: dict[str, Any] = {}
    if not checkpointing and not settled and memory.checkpointed < memory.token:
        checkpointing = changes["activation_checkpointing"] = True
    default = RewardConfig.__dataclass_fields__["batch_tokens"].default
    if memory.peak(largest, checkpointing) > room and tokens == default:
        longest = max(collator.cost(example.lengths).tokens for example in examples if example.lengths)
        changes["batch_tokens"] = max(longest, memory.tokens(room, checkpointing))
    return changes


def _in_words(changes: dict[str, Any], arguments: RewardConfig) -> str:
    words = []
    if "activation_checkpointing" in changes:
        words.append("activation checkpointing is on, which computes each layer twice")
    if "batch_tokens" in changes:
        words.append(f"batch_tokens is {changes['batch_tokens']} and not {arguments.batch_tokens}")
    return "; ".join(words)


def in_words(memory: StepMemory, tokens: int, checkpointing: bool) -> str:
    """The peak of the largest batch."""
    peak, batch = memory.peak(tokens, checkpointing), memory.peak(tokens, checkpointing) - memory.fixed
    how = " with activation checkpointing" if checkpointing else ""
    return (
        f"memory of a step beside the weights: {in_units(peak)} ({in_units(batch)} of them for a batch of {tokens} "
        f"tokens{how}, the largest)"
    )


def largest_batch(
    examples: Sequence[Example], collator: RewardCollator, arguments: RewardConfig, batch_tokens: int
) -> int:
    """The tokens of the largest batch that is planned under this limit."""
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    largest = 0
    for batch in plan_batches(examples, collator, batch_tokens, arguments.per_device_train_batch_size, seed):
        cost = collator.cost(examples[batch[0]].lengths)  # type: ignore[arg-type]
        for number in batch[1:]:
            cost = cost.joined(collator.cost(examples[number].lengths))  # type: ignore[arg-type]
        largest = max(largest, cost.tokens)
    return largest


# ---- measuring -------------------------------------------------------------------------------------------------------


def step_memory(model: Any, collator: RewardCollator, examples: Sequence[Example], device: Any) -> StepMemory:
    """Measures the memory of a training step with two of the examples; nothing trains, no random number is drawn.

    Args:
        model: on the device, with what trains set up (`rovrm.model.adapters.set_trainable`).
        collator: of the run.
        examples: measured ones.
        device: where the model is.
    """
    rows = _measured_rows(examples, collator)
    cost = collator.cost(rows[0].lengths).joined(collator.cost(rows[1].lengths))  # type: ignore[arg-type]
    inputs, _ = split_batch(collator(rows))
    inputs = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in inputs.items()}
    training = model.training
    devices = [device] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices), _watched(model) as kept:
        model.train()
        outputs = model(**inputs)
        whole, checkpointed = kept.bytes()
        del outputs  # here, inside: what they keep is let go
    model.train(training)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return StepMemory(ADAM * trained + kept.casts, whole / cost.tokens, checkpointed / cost.tokens)


def _measured_rows(examples: Sequence[Example], collator: RewardCollator) -> list[Example]:
    """Two short rows, with images where there are any; two, because masks are made where rows are padded."""
    pictured = [example for example in examples if example.images] or list(examples)
    ordered = sorted(pictured, key=lambda example: collator.cost(example.lengths).tokens)  # type: ignore[arg-type]
    number = len(ordered) // 10
    rows = []
    for example in (ordered[number], ordered[max(number - 1, 0)]):
        prefix, answers = example.lengths  # type: ignore[misc]
        cut = slice(ROW_ANSWERS)
        reference = example.reference_logps[cut] if example.reference_logps else example.reference_logps
        rows.append(
            replace(
                example,
                responses=example.responses[cut],
                ranks=example.ranks[cut],
                lengths=(prefix, answers[cut]),
                reference_logps=reference,
            )
        )
    return rows


class _Kept:
    """What forwards keep for the backward while they are watched."""

    def __init__(self, model: Any):
        self.weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        self.shapes = {tuple(sorted(weight.shape)) for weight in model.parameters() if weight.dim() == 2}
        self.casts = 0  # bytes of weights in autocast's type
        self.storages: dict[int, torch.UntypedStorage] = {}
        self.layers: set[int] = set()
        self.inputs = 0  # bytes of the layers' inputs
        self.state: PrefixCache | None = None

    def saved(self, tensor: Tensor) -> Tensor:
        """For torch's hooks on saved tensors: counts each storage once, however many tensors lie in it."""
        storage = tensor.untyped_storage()
        pointer = storage.data_ptr()
        if pointer in self.weights:
            return tensor
        if tensor.dtype != torch.float32 and tuple(sorted(tensor.shape)) in self.shapes:
            self.weights.add(pointer)
            self.casts += storage.nbytes()
        else:
            self.storages[pointer] = storage
        return tensor

    def entered(self, layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """For the layers' hooks."""
        self.layers.add(id(layer))
        hidden = args[0] if args else kwargs["hidden_states"]
        self.inputs += hidden.nbytes
        for value in kwargs.values():
            if isinstance(value, PrefixCache):
                self.state = value

    def bytes(self) -> tuple[int, float]:
        """(all that is kept, what would be kept under activation checkpointing)."""
        whole = sum(storage.nbytes() for storage in self.storages.values())
        if not self.layers:
            return whole, whole
        state = self.state.nbytes if self.state is not None else 0
        return whole, self.inputs + state + whole / len(self.layers)


@contextmanager
def _watched(model: Any) -> Iterator[_Kept]:
    kept = _Kept(model)
    layers = [layer for layer in model.get_decoder().modules() if isinstance(layer, GradientCheckpointingLayer)]
    hooks = [layer.register_forward_pre_hook(kept.entered, with_kwargs=True) for layer in layers]
    try:
        with torch.autograd.graph.saved_tensors_hooks(kept.saved, lambda tensor: tensor):
            yield kept
    finally:
        for hook in hooks:
            hook.remove()


# ---- what there is ---------------------------------------------------------------------------------------------------


def free_memory(device: torch.device | str) -> float:
    """The bytes that a process may still fill on its device."""
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    free = min(psutil.virtual_memory().available, _group_memory())
    return free / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def return_freed_memory(device: torch.device | str) -> None:
    """Makes the C library of a process that computes on the CPU give back what is freed, which takes time.

    By default glibc keeps freed blocks of up to 32 MB for later ones, which leaves gaps. SmolLM2-135M, after a step
    without and then with activation checkpointing: 2.5 GB resident with this call, 6.6 without; where the limits are
    set from the start, steps take 31 s and 21.
    """
    libc = ctypes.CDLL(None)
    if torch.device(device).type != "cpu" or not hasattr(libc, "malloc_trim"):
        return
    for key in (TRIM_THRESHOLD, MMAP_THRESHOLD):
        libc.mallopt(key, LARGE_BLOCK)
    libc.malloc_trim(0)


def _group_memory(group: Path = Path("/sys/fs/cgroup")) -> float:
    """What the control group of a container or a batch job leaves; files that are only cached do not count."""
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return float("inf")
    return float("inf") if limit == "max" else int(limit) - used + int(statistics.get("inactive_file", 0))


def _least_over_processes(trainer: RewardTrainer, value: float) -> float:
    values = torch.tensor([value], dtype=torch.float64, device=trainer.args.device)
    return trainer.accelerator.gather(values).min().item()  # type: ignore[union-attr]
