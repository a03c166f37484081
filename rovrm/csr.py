"""Calibrated self-rewarding (CSR, Zhou et al., NeurIPS 2024, arXiv 2405.14622): a policy learns from its own answers.

    python -m rovrm.csr policy=llava-hf/llava-1.5-7b-hf data=prompts.jsonl model=runs/mine/phase3-visual out=runs/csr
    python -m rovrm.csr iterations=1 'steps.delimiters=[",", " and", "."]'       # the tiny policy of the world

The policy answers step by step (a sentence; `steps.delimiters`): `steps.n` candidates are sampled for every partial
answer, a calibrator that looks at the image corrects their likelihood, and the best and the worst are gone on with. The
best and the worst whole answer of a prompt become a pair, DPO is trained on the pairs (`rovrm.dpo`, with LoRA), and the
next iteration starts from the result. Prompt and image are run once; partial answers are copies of their state.

Writes into `out`: config.yaml, report.json, report.html, curves.svg, and for each iteration

- `iter1/candidates.jsonl`: a line per prompt, `id, prompt, images, nodes`; of a node `id parent depth text tokens
  logprob image_score scores reward kept ended` (delimiter, eos or cap; the parent of first steps is -1);
- `iter1/pairs.jsonl`: TRL's preference form; it trains in rovrm.dpo and in TRL unchanged;
- `iter1/summary.json`: `prompts pairs no_final one_text below_margin`, which add up; means of chosen and rejected;
- `iter1/dpo/`, the run of rovrm.dpo, and `iter1/merged/`, its policy, which loads by AutoModelForImageTextToText.

A finished stage is not run again; the search goes on behind the prompts that are done.

Departures from the released code: (1) candidates are sampled, not drawn by diverse beam search, and their
log-probability is the policy's own; (2) search=calibrated keeps steps by the calibrated reward, as the paper writes,
where the code keeps them by likelihood alone (search=released); (3) an answer ends with its end of sequence, and
nothing follows it.
"""

import sys

from rovrm.settings.command_line import parse, run
from rovrm.settings.keys import CsrConfig

PROG = "python -m rovrm.csr"


def csr(argv: list[str]) -> None:
    config = parse(CsrConfig, argv, PROG)

    from rovrm.alignment.calibrators import make_calibrators
    from rovrm.alignment.self_rewarding import check_run, run_iterations
    from rovrm.common.files import lock_folder
    from rovrm.dpo import main as dpo

    with lock_folder(config.out):
        config = check_run(config)
        run_iterations(config, dpo, make_calibrators)


def main(argv: list[str] | None = None) -> int:
    return run(csr, sys.argv[1:] if argv is None else argv, "rovrm.csr")


if __name__ == "__main__":
    sys.exit(main())
