"""Trains a policy on preferences in up to three phases: DPO, and RoDPO (RoVRM, arXiv 2408.12109, section 4.3).

    python -m rovrm.dpo phase=3 model=llava-hf/llava-1.5-7b-hf visual.data=pairs.jsonl out=runs/mine     # plain DPO
    python -m rovrm.dpo recipe=recipes/llava-1.5-7b-rodpo.yaml                                           # three phases
    python -m rovrm.dpo loss_type=simpo                                                # the embedded tiny default

`model` is the language model that is aligned. Keys, data, phases, selection, held-out rows, resuming and the run's
folder are those of `rovrm.train`; DPO is that training with another reward, beta (log pi - log pi_ref), and a ranked
list is Plackett-Luce DPO. The prompt, with its image, is run once for all answers. Each phase also has reference/, the
reference's log-probabilities of its answers, computed once before it. trainer_log.jsonl holds `loss`, `accuracy`,
`margin`, `logps_chosen` and `logps_rejected`. The last phase's folder loads as the plain language model
(`AutoModelForImageTextToText`).

Departures from the paper: (1) by default LoRA instead of full fine-tuning; (2) a phase's reference is its own start, as
in the authors' script, where the paper says the SFT model: `reference=base`.
"""

import sys

from rovrm.settings.command_line import parse, run
from rovrm.settings.keys import DpoConfig
from rovrm.settings.trainer_keys import check_trainer_keys

PROG = "python -m rovrm.dpo"


def dpo(argv: list[str]) -> None:
    config = parse(DpoConfig, argv, PROG)
    check_trainer_keys(config.trainer)

    from rovrm.alignment.tuning import PolicyTask
    from rovrm.train import train_phases

    train_phases(config, argv, PROG, PolicyTask())


def main(argv: list[str] | None = None) -> int:
    return run(dpo, sys.argv[1:] if argv is None else argv, "rovrm.dpo")


if __name__ == "__main__":
    sys.exit(main())
