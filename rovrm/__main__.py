"""The commands, one after the other: `rovrm NAME ...` is the same as `python -m rovrm.NAME ...`.

For instance:

    rovrm train phase=1..3
    rovrm train --help
"""

import difflib
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version

from rovrm.common.errors import UserError
from rovrm.settings.command_line import run

COMMANDS = {
    "train": "train a reward model in up to three phases: text, caption, visual",
    "select": "choose a phase's rows by their gradients (train does it too)",
    "dpo": "train a policy on preferences: DPO, in up to three phases",
    "csr": "calibrated self-rewarding: search step by step, pairs, DPO, and again",
    "score": "score a file of prompts, images and answers",
    "serve": "score over HTTP",
    "bon": "best-of-n: sample or read n answers for each prompt, keep the best",
    "rank": "make preference pairs or ranked lists of scored answers",
    "check": "compare all ways to score with a checkpoint",
    "merge": "merge an adapter into a checkpoint that loads without rovrm",
    "convert": "make a checkpoint of another project's reward model",
    "world": "write, train or measure: the synthetic world as files, its tiny base",
}


def listing() -> str:
    lines = "\n".join(f"  {name:<9}{what}" for name, what in COMMANDS.items())
    return f"usage: rovrm COMMAND [key=value | --key value] ...\n\n{lines}\n\nrovrm COMMAND --help lists its keys"


def command(name: str) -> Callable[[list[str]], int]:
    """The `main` of a command. Raises UserError, with the nearest name, for one that is not there."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name.lower(), COMMANDS, n=1)
        remedy = f"did you mean {near[0]}?" if near else "rovrm --help lists the commands"
        raise UserError(f"no command {name!r}: {remedy}")
    return import_module("rovrm.world.__main__" if name == "world" else f"rovrm.{name}").main


def rovrm(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(listing())
        return 0
    if argv[0] == "--version":
        print(f"rovrm {version('rovrm')}")
        return 0
    return command(argv[0])(argv[1:])


def main(argv: list[str] | None = None) -> int:
    return run(rovrm, sys.argv[1:] if argv is None else argv, "rovrm")


if __name__ == "__main__":
    sys.exit(main())
