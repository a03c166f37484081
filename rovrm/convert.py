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
name files of its own folder alone. Writes `out`: weights, config, processor, modeling.py, a README card. It is
loaded again, which adds the rewards that it promises from now on (expected_rewards.json) and prints them. Where a step
fails, `out` is left as it was. Where the result departs from the original:

1. Our head has no bias. Theirs adds the same number to every reward, so the order is the same: it is printed, and kept
   in the config as `value_head_bias`. It is no `reward_mean`: normalize=True means the mean of held-out rewards.
2. The authors' code cuts a conversation after 512 text tokens; ours is not cut.
3. It gives a row without a picture an all-zero one behind `<image>`. Without a picture our prompt has neither; a
   picture of the one colour (123, 117, 104), the mean of CLIP's pixels, comes near to theirs.
4. Its training (not its scoring) also strips the letters of `USER:` and `ASSISTANT:` off both ends of the question.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rovrm.common.errors import UserError
from rovrm.common.files import check_new, new_folder
from rovrm.settings.command_line import parse, run
from rovrm.settings.keys import ConvertConfig

if TYPE_CHECKING:
    from rovrm.conversion.layouts import ForeignModel
    from rovrm.model.contract import Contract


def convert(argv: list[str]) -> None:
    config = parse(ConvertConfig, argv, "python -m rovrm.convert")
    folder, out = Path(config.input), Path(config.output)
    check_new(out)
    if not folder.is_dir():
        raise UserError(f"in={config.input!r} is no folder; download the model: hf download ID --local-dir FOLDER")

    from rovrm.conversion.build import build_model, build_processor
    from rovrm.conversion.layouts import read_foreign_model
    from rovrm.model.contract import numeric_type_of
    from rovrm.model.loading import CONFIG, PROCESSOR, loading
    from rovrm.model.saving import expected_rewards

    foreign = read_foreign_model(folder, config.base)
    print(f"{folder}: {foreign.layout}")
    with loading("the processor of", foreign.processor, PROCESSOR):
        processor = build_processor(foreign, config.chat_template)
    with loading("the model of", foreign.config, CONFIG):
        model = build_model(folder, foreign)
    print(*foreign.notes, sep="\n")
    with _scoring(folder, foreign):
        before, number = expected_rewards(model, processor), numeric_type_of(model)
    with new_folder(out) as new:
        model.save_pretrained(new)  # weights keep their numeric type
        del model  # it is loaded again from the folder
        (new / "README.md").write_text(_conversion_card(config, foreign, processor))
        with _scoring(folder, foreign):
            processor.save_pretrained(new)
            read_back(new, before, number)
    print(f"wrote {out}")


@contextmanager
def _scoring(folder: Path, foreign: "ForeignModel") -> Iterator[None]:
    """Around the first scoring. Raises UserError that names the files at fault."""
    from rovrm.model.loading import PROCESSOR, damaged, of_damage

    try:
        yield
    except BaseException as error:
        # A damaged tokenizer or config may show no earlier than here, in any error: in a UserError, which names a row
        # but not what made the model fail at it, or in a panic of Rust's, which is no Exception. An OSError is about
        # the disk.
        if isinstance(error, OSError) or not of_damage(error):
            raise
        what = f"no rewards from the weights of {str(folder)!r} with the processor of"
        raise damaged(what, foreign.processor, PROCESSOR, error) from error


def read_back(folder: Path, before: "Contract | None", number: str) -> None:
    """Loads the folder as any user would, adds its expected rewards, and prints them.

    Args:
        folder: the converted model's.
        before: its rewards as they were in memory. number: the numeric type that gave them.

    Raises:
        UserError: the rewards have changed on the way through the folder.
    """
    from rovrm.model.contract import explained, record
    from rovrm.model.scorer import RewardScorer

    options = {"device": "cpu", "dtype": "float32", "rows": "separate", "verify": False}
    scorer = RewardScorer.from_pretrained(folder, **options)
    expected = record(scorer)
    if expected is None:  # which is said
        return
    expected.write(folder)
    if before is not None:
        worst = expected.compare(before.rewards(), number)
        if not worst.agrees:
            reason = "the weights did not come back from the folder as they were"
            raise UserError(f"converted and read back, {explained(worst, expected, number, reason)}")
    print("read back; its rewards:")
    for conversation in expected.conversations:
        print(f"  {conversation.reward:10.4f}  {conversation.prompt[:40]:<42} {conversation.answer[:40]!r}")


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
