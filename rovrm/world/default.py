"""What `python -m rovrm.train` and `python -m rovrm.bon` do when no model is given: the shipped base in its world.

Rates and sizes are the better of the few runs made, one seed each, by the held-out pairs of the phases. The pairs are
descriptions, which is what best-of-n then chooses among; short answers the reward head has not learned yet (README).
"""

from pathlib import Path
from typing import Any

BASE = str(Path(__file__).parent / "tiny-llava")
SETTINGS: dict[str, Any] = {"eval_fraction": 0.05, "batch_size": 32, "tuning": "full"}
PAIRS = "families=faithful&questions=describe"
SECTIONS: dict[str, dict[str, Any]] = {
    "text": {"data": [f"world:text?n=3072&{PAIRS}"], "learning_rate": 3e-4, "epochs": 1.0},
    "caption": {"data": [f"world:caption?n=3072&{PAIRS}"], "learning_rate": 3e-4, "epochs": 1.0},
    "visual": {"data": [f"world:visual?n=2048&{PAIRS}"], "learning_rate": 3e-4, "epochs": 2.0},
}
