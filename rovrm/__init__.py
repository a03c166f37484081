"""Trains visual reward models: a vision-language model with one scalar head that scores (images, prompt, response).

    from rovrm import RewardScorer
    scorer = RewardScorer.from_pretrained("runs/demo/phase3-visual")
    scorer.score("What is on the table?", ["A cup.", "A dog."], images="photo.jpg")

The commands are modules: `python -m rovrm.train --help`. `import rovrm` alone loads neither torch nor transformers; the
names below load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rovrm.common.errors import broken_torchvision

if TYPE_CHECKING:
    from rovrm.model.scorer import RewardScorer
    from rovrm.training.trainer import RewardConfig, RewardTrainer

__version__ = "0.1.0"
__all__ = ["RewardConfig", "RewardScorer", "RewardTrainer", "__version__"]

_HOME = {
    "RewardScorer": "rovrm.model.scorer",
    "RewardTrainer": "rovrm.training.trainer",
    "RewardConfig": "rovrm.training.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rovrm' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOME[name]), name)
    except Exception as error:
        if broken := broken_torchvision(error):
            raise broken from error
        raise


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
