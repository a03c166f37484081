"""Compares all roads to a score of one checkpoint: each must give the rewards that the checkpoint promises.

    python -m rovrm.check model=runs/demo/phase3-visual
    python -m rovrm.check model=runs/mine/phase2-caption url=http://127.0.0.1:8000

The roads: separate rows and shared rows, padding on the left and on the right, transformers alone
(`AutoModelForSequenceClassification` with the folder's own modeling.py and its processor), the adapter against the
merged model, and a running `rovrm.serve`. Prints a table with the greatest difference of each from the rewards in
expected_rewards.json, and the tolerance; a road that does not apply is named, with the reason. A checkpoint without
that file is compared with its own separate rows. Exits with status 1 where a road is out of tolerance.

The modeling.py of a folder is run where it is the one of this version; another one only with trust_remote_code=true.
"""

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from rovrm.settings.command_line import parse, run
from rovrm.settings.keys import CheckConfig

if TYPE_CHECKING:
    from rovrm.model.roads import Road


def check(argv: list[str]) -> int:
    config = parse(CheckConfig, argv, "python -m rovrm.check")
    config = replace(config, token=config.token or os.environ.get("ROVRM_TOKEN", ""))

    from rovrm.model.roads import compare_roads

    roads = compare_roads(config)
    print(f"{'road':<24} {'greatest difference':>19} {'tolerance':>10}  ok")
    for road in roads:
        print(_line(road))
    wrong = [road for road in roads if road.agrees is False]
    for road in wrong:
        print(f"\n{road.name}: {road.remark}")
    return 1 if wrong else 0


def _line(road: "Road") -> str:
    if road.agrees is None:
        return f"{road.name:<24} {'not run:':>19} {road.remark}"
    numbers = ("-", "-") if road.difference is None else (f"{road.difference:.1e}", f"{road.tolerance:.1e}")
    return f"{road.name:<24} {numbers[0]:>19} {numbers[1]:>10}  {'yes' if road.agrees else 'NO'}"


def main(argv: list[str] | None = None) -> int:
    return run(check, sys.argv[1:] if argv is None else argv, "rovrm.check")


if __name__ == "__main__":
    sys.exit(main())
