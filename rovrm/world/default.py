"""What `python -m rovrm.train` and `python -m rovrm.bon` do when no model is given: the shipped base in its world.

Rates and sizes were chosen by held-out pairs of the training split; README.md beside this file has the figures and
their seeds. Two thirds of the visual pairs are descriptions, because that is what best-of-n then chooses among.
"""

from pathlib import Path
from typing import Any

# BASE is the model; SETTINGS and SECTIONS are like a recipe's keys, below whatever a command line or a recipe gives.
BASE = str(Path(__file__).parent / "tiny-llava")
SETTINGS: dict[str, Any] = {
    "eval_fraction": 0.05,
    "batch_size": 32,
    "tuning": "full",
    "lora_r": 16,  # of the adapter that a selection warms up
    "lora_alpha": 32,
}
SECTIONS: dict[str, dict[str, Any]] = {
    "text": {"data": ["world:text?n=6144&families=faithful"], "learning_rate": 3e-4, "epochs": 1.0},
    "caption": {"data": ["world:caption?n=6144&families=faithful"], "learning_rate": 3e-4, "epochs": 1.0},
    "visual": {
        "data": ["world:visual?n=2048", "world:visual?n=4096&seed=1&questions=describe"],
        "learning_rate": 3e-4,
        "epochs": 2.0,
    },
    "selection": {"warmup_pool": 1024, "warmup_target": 1024, "learning_rate": 1e-3, "width": 2048},
}
# Of a policy (`python -m rovrm.dpo`): the same pairs.
POLICY_SECTIONS: dict[str, dict[str, Any]] = {
    "text": SECTIONS["text"] | {"learning_rate": 1e-4},
    "caption": SECTIONS["caption"] | {"learning_rate": 1e-4},
    "visual": SECTIONS["visual"] | {"learning_rate": 1e-4, "epochs": 1.0},
    "selection": SECTIONS["selection"],
}
