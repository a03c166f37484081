"""What `python -m rovrm.train` and `python -m rovrm.bon` do when no model is given: the shipped base in its world."""

from pathlib import Path
from typing import Any

BASE = str(Path(__file__).parent / "tiny-llava")
EVAL_FRACTION = 0.05
SECTIONS: dict[str, dict[str, Any]] = {
    "text": {"data": ["world:text?n=8192&families=faithful+complete"], "learning_rate": 1e-3, "epochs": 1.0},
    "caption": {"data": ["world:caption?n=8192&families=faithful"], "learning_rate": 1e-3, "epochs": 1.0},
    "visual": {"data": ["world:visual?n=2048"], "learning_rate": 5e-4, "epochs": 2.0},
}
