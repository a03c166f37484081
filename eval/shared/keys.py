"""The settings of the measurements that take two files: a light one that parses, and one that measures."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class SpeedConfig:
    size: Literal["tiny", "7b"] = "tiny"  # a small LLaVA, or the shapes of LLaVA-1.5-7B
    device: str = "cpu"  # device, such as cpu or cuda
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the frozen weights and the arithmetic
    pairs: int = 8  # pairs trained on in one repeat
    responses: int = 8  # responses per prompt when scoring
    batch_tokens: int = 3000  # padded tokens of one forward, at most, on both sides
    checkpointing: bool = False  # gradient checkpointing, on both sides
    repeats: int = 7  # alternated repeats
    trl: bool = True  # also compare with TRL's RewardTrainer on text pairs
    text_steps: int = 12  # optimizer steps of that comparison
    seed: int = 0  # seed of weights and texts


@dataclass
class ExtractionConfig:
    size: Literal["tiny", "7b"] = "tiny"  # a small LLaVA, or the shapes of LLaVA-1.5-7B
    device: str = "cpu"  # device, such as cpu or cuda
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the frozen weights and the arithmetic
    pairs: int = 8  # pairs of one repeat
    images: bool = True  # pairs about an image, or text alone
    batch_tokens: int = 3000  # padded tokens of one batch of extraction and training, at most
    checkpointing: bool = False  # gradient checkpointing, on all sides
    repeats: int = 7  # alternated repeats
    width: int = 4096  # of a feature
    lora_r: int = 8  # rank of the adapter
    matrix_gb: float = 4.0  # the largest projection that the loop keeps in memory
    seed: int = 0  # seed of weights, texts and projections
