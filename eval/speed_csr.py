"""Speed of CSR's search: `rovrm.csr` against the way of the released code, in one run.

    python -m eval.speed_csr                                                    # a small LLaVA with real lengths, CPU
    python -m eval.speed_csr size=7b device=cuda dtype=bfloat16 prompts=8 repeats=3                         # one GPU

The released code takes one prompt at a time and calls `generate` for every partial answer and every step, on the image,
the prompt and the answer so far; so each of them is encoded again, once for each of `n` candidates. rovrm runs image
and prompt once and goes on from copies of their state, `prompts` at a time. The same weights, prompts, candidates,
partial answers that are kept (1 best and 2 worst by likelihood) and tokens on both sides: as the weights are random,
steps end at `tokens`, and an answer has `steps`. Candidates are sampled on both sides; no calibrator is asked. The
released side keeps its partial answers as tokens, where the code renders and encodes the text anew. First both must
write the same greedy answer with the same log-probability. Lengths are LLaVA-1.5's: 576 image tokens, 48 of prompt.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rovrm.settings.command_line import parse, run
from rovrm.settings.fields import ABOVE_ZERO, limited

LIMIT = 1e-3  # nats by which the two sides' log-probabilities of an answer may differ
KEPT = 3  # partial answers of a prompt


@dataclass
class CsrSpeedConfig:
    size: Literal["tiny", "7b"] = "tiny"  # a small LLaVA, or the shapes of LLaVA-1.5-7B
    device: str = "cpu"  # device, such as cpu or cuda
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights and the arithmetic
    prompts: int = limited(8, ABOVE_ZERO)  # with an image each; rovrm.csr's batch_size
    n: int = limited(5, ABOVE_ZERO)  # candidates behind each partial answer
    steps: int = limited(7, ABOVE_ZERO)  # of an answer; sentences of LLaVA's descriptions
    tokens: int = limited(18, ABOVE_ZERO)  # of a step
    repeats: int = limited(3, ABOVE_ZERO)  # alternated repeats
    seed: int = 0  # seed of weights and texts


def speed_csr(argv: list[str]) -> None:
    config = parse(CsrSpeedConfig, argv, "python -m eval.speed_csr")

    import torch

    from eval.shared.made_up import make_examples, write_policy
    from eval.shared.timing import alternate, print_rates
    from rovrm.model.policy import Policy

    torch.manual_seed(config.seed)
    with tempfile.TemporaryDirectory() as folder:
        write_policy(folder, config.size, config.dtype)
        policy = Policy.from_pretrained(folder, device=config.device, dtype=config.dtype)
    policy.model.generation_config.eos_token_id = len(policy.tokenizer)  # no answer ends before its steps
    examples = make_examples(config.prompts, 0, config.seed)
    _check_answers(config, policy, examples[:2])
    sides = {
        "released": lambda: [_released(config, policy, example, config.n) for example in examples],
        "rovrm": lambda: _rovrm(config, policy, examples, config.n),
    }
    seconds = alternate(sides, config.repeats, config.device, warm_up=1)  # type: ignore[arg-type]
    print(f"\nsearch: {config.n} candidates, {KEPT} kept, {config.steps} steps of {config.tokens} tokens")
    print_rates("prompts", config.prompts, seconds)


def _rovrm(config: CsrSpeedConfig, policy: Any, examples: Sequence[Any], n: int) -> list[list[dict[str, Any]]]:
    """The trees; with n=1 they are greedy answers."""
    from rovrm.alignment.search import search
    from rovrm.settings.keys import CsrConfig, StepsConfig

    steps = StepsConfig([], tokens=config.tokens, n=n, max=config.steps, top_p=1.0 if n > 1 else 1e-9)
    return search(policy, {}, examples, CsrConfig(steps=steps, search="released"), config.seed)


def _released(config: CsrSpeedConfig, policy: Any, example: Any, n: int) -> list[tuple[list[int], float]]:
    """(tokens, sum of the steps' mean log-probabilities) of the answers in the end; with n=1 the greedy one."""
    import torch

    from rovrm.model.policy import GREEDY

    sampled = {"do_sample": True, "top_k": 0, "num_return_sequences": n}
    sampled["suppress_tokens"] = [policy.model.config.image_token_index]  # generate takes it for another image
    options = sampled if n > 1 else GREEDY
    options = options | {"max_new_tokens": config.tokens, "pad_token_id": policy.tokenizer.pad_token_id}
    kept: list[tuple[list[int], float]] = [([], 0.0)]
    for _ in range(config.steps):
        children = []
        for tokens, total in kept:
            inputs = policy.inputs([example])
            more = torch.tensor([tokens], dtype=torch.long, device=policy.model.device)
            inputs["input_ids"] = torch.cat([inputs["input_ids"], more], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            with torch.inference_mode():
                output = policy.model.generate(**inputs, **options, output_logits=True, return_dict_in_generate=True)
            new = output.sequences[:, inputs["input_ids"].shape[1] :]
            logps = torch.stack(output.logits, 1).float().log_softmax(-1).gather(2, new[:, :, None])[:, :, 0].mean(1)
            children += [(tokens + row.tolist(), total + logp.item()) for row, logp in zip(new, logps, strict=True)]
        children.sort(key=lambda child: -child[1])
        kept = children if len(children) <= KEPT else [children[0], *children[-2:]]
    return kept


def _check_answers(config: CsrSpeedConfig, policy: Any, examples: Sequence[Any]) -> None:
    """Raises AssertionError where the two sides' greedy answers differ."""
    for example, tree in zip(examples, _rovrm(config, policy, examples, 1), strict=True):
        [(tokens, logp)] = _released(config, policy, example, 1)
        text = policy.tokenizer.decode(tokens, skip_special_tokens=True)
        ours = sum(node["logprob"] / node["tokens"] for node in tree)
        assert "".join(node["text"] for node in tree) == text, "the two searches write different greedy answers"
        assert sum(node["tokens"] for node in tree) == len(tokens) and abs(ours - logp) < LIMIT, (ours, logp)
    print(f"both write the same greedy answers of {len(tokens)} tokens")


def main(argv: list[str] | None = None) -> int:
    return run(speed_csr, sys.argv[1:] if argv is None else argv, "eval.speed_csr")


if __name__ == "__main__":
    sys.exit(main())
