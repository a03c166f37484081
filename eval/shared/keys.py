"""The settings of the measurements that take two files: a light one that parses, and one that measures."""

from dataclasses import dataclass
from typing import Literal

from rovrm.settings.fields import ABOVE_ZERO, Limit, limited, limited_list

EACH_ABOVE_ZERO = Limit("of numbers above 0", lambda numbers: all(number > 0 for number in numbers))


@dataclass
class SpeedConfig:
    size: Literal["tiny", "7b"] = "tiny"  # a small LLaVA, or the shapes of LLaVA-1.5-7B
    device: str = "cpu"  # device, such as cpu or cuda
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the frozen weights and the arithmetic
    pairs: int = limited(8, ABOVE_ZERO)  # pairs trained on in one repeat
    responses: list[int] = limited_list([8, 32], EACH_ABOVE_ZERO)  # responses per prompt when scoring, each by itself
    response_length: int = limited(110, ABOVE_ZERO)  # tokens of a response, about; RLAIF-V's 110, LLaVA's own 330
    batch_tokens: int = 3000  # padded tokens of one forward, at most, on both sides
    checkpointing: bool = False  # gradient checkpointing, on both sides
    repeats: int = limited(7, ABOVE_ZERO)  # alternated repeats
    trl: bool = True  # also compare with TRL's RewardTrainer on text pairs
    text_steps: int = 12  # optimizer steps of that comparison
    seed: int = 0  # seed of weights and texts


@dataclass
class ExtractionConfig:
    size: Literal["tiny", "7b"] = "tiny"  # a small LLaVA, or the shapes of LLaVA-1.5-7B
    device: str = "cpu"  # device, such as cpu or cuda
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the frozen weights and the arithmetic
    pairs: int = limited(8, ABOVE_ZERO)  # pairs of one repeat
    images: bool = True  # pairs about an image, or text alone
    batch_tokens: int = 3000  # padded tokens of one batch of extraction and training, at most
    checkpointing: bool = False  # gradient checkpointing, on all sides
    repeats: int = limited(7, ABOVE_ZERO)  # alternated repeats
    width: int = 4096  # of a feature
    layers: str = "last=0.25"  # LoRA layers whose gradients are taken, as in selection.layers
    lora_r: int = 8  # rank of the adapter
    matrix_gb: float = 4.0  # the largest projection that the loop keeps in memory
    seed: int = 0  # seed of weights, texts and projections
