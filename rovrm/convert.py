"""Converts reward models of other projects into an ordinary checkpoint folder, which everything here loads.

    python -m rovrm.convert in=robust_visual_reward_model base=llava-hf/llava-1.5-7b-hf out=runs/release
    python -m rovrm.convert in=Skywork-VL-Reward-7B out=runs/skywork

The layout is found from the files:

1. The RoVRM release, and what its authors' code saves for LLaVA (NiuTrans/Vision-LLM-Alignment, `ViRewardModel`): keys
   `rwtranrsformer.*` (sic) for the LLaVA and `v_head.weight` for the head, whole or in shards. Neither a config of the
   whole model nor a processor is in it: `base` names the LLaVA that it was trained from (its weights are not read). The
   chat template that is written is the authors' `llava` prompt.
2. LLaMA-Factory, ms-swift, Skywork-VL-Reward: a language-model folder and `value_head.safetensors` (or .bin) with
   `v_head.summary.weight` and `.bias`. Processor and chat template stay the folder's own.

Both read the reward at the last token that is not padding, as our models do. Weights keep their numeric type, the head
becomes float32, every key must find its place. A pickle (.bin) is read as tensors alone, never as code; an index may
name files of its own folder alone. Writes `out`: weights, config, processor, modeling.py, a README card; loads it again
and prints its rewards of fixed short answers. Where a step fails, `out` is left as it was. Where the result departs
from the original:

1. Our head has no bias. Theirs adds the same number to every reward, so the order is the same: it is printed, and kept
   in the config as `value_head_bias`. It is no `reward_mean`: normalize=True means the mean of held-out rewards.
2. The authors' code cuts a conversation after 512 text tokens; ours is not cut.
3. It gives a row without a picture an all-zero one behind `<image>`. Without a picture our prompt has neither; a
   picture of the one colour (123, 117, 104), the mean of CLIP's pixels, comes near to theirs.
4. Its training (not its scoring) also strips the letters of `USER:` and `ASSISTANT:` off both ends of the question.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rovrm.common.errors import UserError
from rovrm.common.files import check_new, new_folder
from rovrm.settings.command_line import parse, run
from rovrm.settings.keys import ConvertConfig

if TYPE_CHECKING:
    from rovrm.conversion.layouts import ForeignModel


def convert(argv: list[str]) -> None:
    config = parse(ConvertConfig, argv, "python -m rovrm.convert")
    folder, out = Path(config.input), Path(config.output)
    check_new(out)
    if not folder.is_dir():
        raise UserError(f"in={config.input!r} is no folder; download the model: hf download ID --local-dir FOLDER")

    from rovrm.conversion.build import build_model, build_processor
    from rovrm.conversion.layouts import read_foreign_model
    from rovrm.model.loading import CONFIG, PROCESSOR, loading
    from rovrm.model.saving import save_merged

    foreign = read_foreign_model(folder, config.base)
    print(f"{folder}: {foreign.layout}")
    with loading("the processor of", foreign.processor, PROCESSOR):
        processor = build_processor(foreign, config.chat_template)
    with loading("the model of", foreign.config, CONFIG):
        model = build_model(folder, foreign)
    print(*foreign.notes, sep="\n")
    with new_folder(out) as new:
        card = _conversion_card(config, foreign, processor)
        save_merged(model, processor, new, "float32", {}, card)  # "float32" casts nothing: weights keep their type
        del model  # it is loaded again from the folder
        _save_and_try(processor, new, folder, foreign)
    print(f"wrote {out}")


def _save_and_try(processor: Any, new: Path, folder: Path, foreign: "ForeignModel") -> None:
    """Saves the processor and scores with the new folder. Raises UserError that names the files at fault."""
    from rovrm.model.loading import PROCESSOR, damaged, of_damage

    try:
        processor.save_pretrained(new)
        print_rewards(new)
    except BaseException as error:
        # A damaged tokenizer or config may show no earlier than here, in any error: in a UserError, which names a row
        # but not what made the model fail at it, or in a panic of Rust's, which is no Exception. An OSError is about
        # the disk.
        if isinstance(error, OSError) or not of_damage(error):
            raise
        what = f"no rewards from the weights of {str(folder)!r} with the processor of"
        raise damaged(what, foreign.processor, PROCESSOR, error) from error


def print_rewards(folder: Path) -> None:
    """Loads the folder as any user would and prints its rewards of a few fixed short answers."""
    from rovrm.model.saving import ANSWERS, QUESTIONS, sample_rewards
    from rovrm.model.scorer import RewardScorer

    scorer = RewardScorer.from_pretrained(folder)
    rewards = sample_rewards(scorer.model, scorer.processor)  # (questions * answers,), question by question
    print("read back; its rewards of", *(f"{answer!r}" for answer in ANSWERS))
    for i, question in enumerate(QUESTIONS):
        row = rewards[i * len(ANSWERS) : (i + 1) * len(ANSWERS)]
        print(f"  {question:<30}", *(f"{reward:10.4f}" for reward in row))


def _conversion_card(config: ConvertConfig, foreign: "ForeignModel", processor: Any) -> str:
    from rovrm.model.saving import quick_start

    origin = f", config and processor from `{config.base}`" if config.base else ""
    notes = "\n".join(f"- {note}" for note in foreign.notes)
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, rovrm]
---
# Reward model

One scalar reward for a response to a prompt (about an image); higher is better. Converted by rovrm from
`{config.input}`: {foreign.layout}{origin}.

{notes}

```python
{quick_start(processor)}
```
With rovrm: `RewardScorer.from_pretrained(folder).score(prompt, answers, images="photo.jpg")`.
"""


def main(argv: list[str] | None = None) -> int:
    return run(convert, sys.argv[1:] if argv is None else argv, "rovrm.convert")


if __name__ == "__main__":
    sys.exit(main())
