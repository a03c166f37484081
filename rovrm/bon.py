"""Best-of-n: n answers per prompt, sampled from a policy or read from a file; a reward model keeps the best.

    python -m rovrm.bon --n 8                          # the tiny policy of the world and the demo's reward model
    python -m rovrm.bon --n 8 model=runs/mine/phase3-visual policy=llava-hf/llava-1.5-7b-hf data=prompts.jsonl out=bon
    python -m rovrm.bon model=runs/mine/phase3-visual candidates=answers.jsonl out=bon

`data` holds `prompt` and, where there are any, `image` or `images`; answers in it are not read, and a policy must be
named for it. The prompt of all candidates is run once, equal texts are scored once. Writes into `out`:
config.yaml, bon.jsonl, summary.json and curve.svg (what smaller n would give, from the same candidates; --n
1,2,4,8,16,32 names the points). A line of bon.jsonl:

- `id, prompt, images` (paths; images without a file are written to out/images), `candidates, scores, seed`;
- `best`, an index, the first of equal scores, of one with text where there is any (allow_empty=true: of any); `empty`
  and `repeated`, the indices of candidates without text and of those that repeat an earlier one (scored like others);
- sampled ones: `logprobs` (sums over tokens), `tokens`, `cut` (the indices of those that max_new_tokens cut off, scored
  like others too), `greedy` (text, score, log-probability, whether it is cut); from a file: `names`;
- a prompt that cannot be used (an image is missing or broken, it is too long) has `error` in place of all but id,
  prompt and images.

With the world's own pictures the truth is known: then the summary counts hallucinations, and report.html shows the
pictures with their answers. The same command goes on where it was stopped.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rovrm.common.disk import room_for
from rovrm.common.errors import UserError
from rovrm.settings.command_line import parse, run
from rovrm.settings.keys import BonConfig

if TYPE_CHECKING:
    from rovrm.data.example import Example
    from rovrm.model.policy import Policy
    from rovrm.model.scorer import RewardScorer


WORLD = "world:visual?split=test&questions=describe&n=800"
AT_ONCE_TINY, AT_ONCE = 320, 32  # candidates sampled at once: by the shipped tiny policy, by others


def bon(argv: list[str]) -> None:
    config = _with_defaults(parse(BonConfig, argv, "python -m rovrm.bon"))

    from rovrm.best_of_n.folder import check_folder
    from rovrm.common.files import lock_folder

    with lock_folder(config.out):
        check_folder(config)  # before the slow imports
        answer(config)


def answer(config: BonConfig) -> None:
    """The run, in a folder that nobody else writes into."""
    from tqdm.auto import tqdm

    from rovrm.best_of_n.choose import best_of_n
    from rovrm.best_of_n.folder import RECORDS, bytes_needed, prompts_done, read_records
    from rovrm.best_of_n.report import summarise_choices

    examples, names = _prompts(config)
    path, size = Path(config.out) / RECORDS, config.batch_size or 1
    done = prompts_done(path, size, examples, candidates_given=bool(config.candidates))
    batches = range(done, len(examples), size)
    with room_for(config.out, bytes_needed(config, examples[done:]), "the answers"):
        if batches:
            scorer, policy = _models(config)
            if done:
                print(f"{done} of {len(examples)} prompts are in {path} already; going on behind them")
            with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:  # half an emoji in a text
                for start in tqdm(batches, desc="best of n"):
                    for record in best_of_n(scorer, examples[start : start + size], config, policy, start):
                        if record["id"] in names:
                            record["names"] = names[record["id"]]
                        file.write(json.dumps(record, ensure_ascii=False) + "\n")
                    file.flush()
        summarise_choices(config, examples, read_records(path, config.allow_empty))


def _with_defaults(config: BonConfig) -> BonConfig:
    """The settings with their defaults filled in. Raises UserError for those that exclude each other."""
    if config.candidates and config.policy:
        raise UserError("policy and candidates are both given; answers are sampled from the one or read from the other")
    n = sorted(set(config.n))
    if config.candidates:
        at_once = AT_ONCE
        data = config.data
    else:
        at_once = AT_ONCE if config.policy else AT_ONCE_TINY
        if config.data and not config.policy:
            _check_world(config.data)
        n = n or [8]
        data = config.data or [WORLD]
    batch_size = config.batch_size or max(1, at_once // max(n, default=1))
    return replace(config, n=n, batch_size=batch_size, data=data)


def _check_world(data: Sequence[str]) -> None:
    """Raises UserError for data of which the shipped policy, which knows the world alone, would say noise."""
    from rovrm.data.sources import WORLD as PREFIX
    from rovrm.data.sources import parse_sources

    for source in parse_sources(data):
        if not source.name.startswith(PREFIX):
            raise UserError(
                f"data={source.text!r} without policy: the shipped tiny policy knows pictures of the world alone; give "
                "policy=FOLDER_OR_HUB_ID, or candidates=FILE of answers in place of data"
            )


def _prompts(config: BonConfig) -> tuple[list["Example"], dict[str, list[str]]]:
    """The prompts, with the candidates of a file; and by prompt id, where they are known, the names of who gave the
    candidates."""
    from rovrm.data.prompts import check_images, load_prompts

    if not config.candidates:
        return load_prompts(config.data, config.image_root), {}

    from rovrm.best_of_n.candidates import load_candidates

    pools = load_candidates(config.candidates, config.data, config.image_root, max(config.n, default=0))
    examples = [pool.example for pool in pools]
    check_images(examples)
    return examples, {pool.example.id: pool.names for pool in pools if any(pool.names)}


def _models(config: BonConfig) -> tuple["RewardScorer", "Policy | None"]:
    """The reward model, and the policy unless the candidates are given."""
    from rovrm.model.policy import Policy
    from rovrm.model.scorer import RewardScorer
    from rovrm.world.default import BASE

    if config.model == BonConfig.model and not os.path.isdir(config.model):
        raise UserError(f"model={config.model!r} is not there yet; train it with python -m rovrm.train, or give model=")
    device, remote = config.device, config.trust_remote_code
    scorer = RewardScorer.from_pretrained(
        config.model,
        device=device or None,
        dtype=config.dtype,
        rows=config.rows,
        trust_remote_code=remote,
        verify=config.verify,
    )
    scorer.max_pixels = config.max_pixels
    if config.candidates:
        return scorer, None
    policy = Policy.from_pretrained(config.policy or BASE, device=device, dtype=config.dtype, trust_remote_code=remote)
    return scorer, policy


def main(argv: list[str] | None = None) -> int:
    return run(bon, sys.argv[1:] if argv is None else argv, "rovrm.bon")


if __name__ == "__main__":
    sys.exit(main())
