"""The table of trained phases, which rovrm.train prints in the end, and rovrm.bon for the model that it chooses by."""

from typing import Any

from rovrm.common.intervals import share_in_words


def print_phases(records: dict[str, dict[str, Any]]) -> None:
    """Prints what summary.json of a training holds, by phase; accuracy with its 95 % interval and the number of
    held-out examples."""
    counts = f"{'trained on':>11}{'skipped':>10}{'too long':>10}"
    print(f"\n{'phase':<16}{counts}{'held-out accuracy':>34}{'loss':>8}{'pairs/s':>9}")
    for name, record in records.items():
        counts = f"{record['n_train']:>11}{record['n_skipped']:>10}{record.get('n_long', 0):>10}"
        accuracy = share_in_words(record["accuracy"], record["n_held_out"])
        print(f"{name:<16}{counts}{accuracy:>34}{record['loss']:>8.3f}{record['pairs_per_second']:>9.1f}")
