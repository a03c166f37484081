"""Processors of families that also take videos, where torchvision is not installed: it reads videos alone, which no
reward model here does, but transformers asks for it as soon as such a processor is loaded.

    with without_video():
        processor = AutoProcessor.from_pretrained("Qwen/Qwen2.5-VL-7B-Instruct")
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

from transformers import processing_utils
from transformers.models.smolvlm import processing_smolvlm
from transformers.video_processing_utils import VideoProcessorMixin

_loading = threading.Lock()


class AbsentVideoProcessor(VideoProcessorMixin):
    """Stands for a video processor: keeps its settings, so that they are saved again, and refuses every video."""

    num_frames = fps = temporal_patch_size = None  # what processors look at when they are built or read a text
    merge_size = 2

    def __init__(self, **settings: Any):
        super().__init__()
        self.settings = settings

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> "AbsentVideoProcessor":  # type: ignore[override]
        try:
            settings, _ = cls.get_video_processor_dict(pretrained_model_name_or_path, **options)
        except OSError:  # a checkpoint that brings none
            settings = {}
        return cls(**settings)

    def __call__(self, videos: Any, **options: Any) -> Any:
        raise ValueError("video cannot be scored, only images")

    def to_dict(self) -> dict[str, Any]:
        return dict(self.settings)


@contextmanager
def without_video() -> Iterator[None]:
    """Lets processors load without their video half inside. Beside torchvision nothing changes."""
    if find_spec("torchvision") is not None:
        yield
        return
    names = processing_utils.MODALITY_TO_AUTOPROCESSOR_MAPPING._MAPPING_NAMES
    where = {"video_processor": (AbsentVideoProcessor.__module__, AbsentVideoProcessor.__name__)}
    # SmolVLM spells the number of a video's frames with num2words, and asks for that package, too.
    spell = getattr(processing_smolvlm, "num2words", None) or str
    base = {"VideoProcessorMixin": VideoProcessorMixin}  # by this name transformers looks for the class, and has none
    with (
        _loading,
        patch.dict(names, where),
        patch.dict(processing_utils.transformers_module.__dict__, base),
        patch.object(processing_smolvlm, "num2words", spell),
    ):
        yield


def image_backend(processor: Any) -> str:
    """The library that a processor scales pictures with, PIL or torchvision, which give other pixels; empty for a
    tokenizer."""
    image_processor = getattr(processor, "image_processor", None)
    if image_processor is None:
        return ""
    names = " ".join(kind.__name__ for kind in type(image_processor).__mro__)
    return "torchvision" if "Torchvision" in names or "Fast" in names else "PIL"
