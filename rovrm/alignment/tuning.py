"""How `rovrm.dpo` differs from `rovrm.train`: a language model is trained, against a reference, and written as one."""

import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rovrm.alignment.objectives import Objective
from rovrm.alignment.reference import reference_logps, set_reference
from rovrm.alignment.trainer import PolicyTrainer
from rovrm.common.errors import UserError
from rovrm.common.files import saving, write_json
from rovrm.common.intervals import share_in_words
from rovrm.model.adapters import ADAPTER, brings_head, has_adapter, load_adapter, processor_of
from rovrm.model.answer_collator import AnswerCollator
from rovrm.model.likelihood import likelihood_class, load_policy_model
from rovrm.model.loading import load_config, load_processor
from rovrm.settings.keys import DpoConfig
from rovrm.settings.phases import Phase
from rovrm.training.callbacks import LogFile
from rovrm.training.outputs import FULL, write_scores
from rovrm.training.phase_data import PhaseData
from rovrm.training.plan import start_of
from rovrm.training.run import Task
from rovrm.training.setup import Parts, model_parts
from rovrm.training.sharding import whole_weights
from rovrm.training.trainer import RewardConfig


class PolicyTask(Task):
    """What `rovrm.dpo` trains."""

    what = "policy"
    collator_class = AnswerCollator

    def parts(self, config: DpoConfig, first: Phase) -> Parts:  # type: ignore[override]
        likelihood_class(config.model, load_config(config.model, config.trust_remote_code))
        parts = model_parts(config, first, policy=True)
        start = start_of(config, first)
        if has_adapter(start) and brings_head(Path(start)):
            raise UserError(
                f"init_from={config.init_from!r} is the adapter of a reward model; give one that rovrm.dpo wrote, or "
                "leave it out"
            )
        return parts

    def load(self, config: DpoConfig, name: str, dtype: torch.dtype) -> Any:  # type: ignore[override]
        return load_policy_model(name, dtype, config.tuning == "qlora", config.trust_remote_code)

    def trainer(  # type: ignore[override]
        self, config: DpoConfig, phase: Phase, model: Any, arguments: RewardConfig, data: PhaseData, processor: Any
    ) -> PolicyTrainer:
        objective = Objective(config.loss_type, config.beta, config.gamma, config.sft_weight)
        log = LogFile(phase.folder(config.out) / "trainer_log.jsonl")
        trainer = PolicyTrainer(
            model, arguments, data.train, data.held_out, processor, callbacks=[log], objective=objective
        )
        collator: Any = trainer.collator
        for example in trainer.train_examples[:1]:
            collator.check_answers(example)
        if objective.uses_reference:
            start = start_of(config, phase)
            if config.reference == "base" and start != config.model:
                model = self.load(config, config.model, next(model.parameters()).dtype)
            examples = [*trainer.train_examples, *trainer.eval_examples]
            set_reference(examples, reference_logps(config, phase, model, collator, examples))
        return trainer

    def describe(self, config: DpoConfig) -> str:  # type: ignore[override]
        against = f", reference={config.reference}" if Objective(config.loss_type).uses_reference else ""
        return f"policy: loss_type={config.loss_type}, beta={config.beta:g}{against}"

    def record(self, metrics: dict[str, float]) -> dict[str, Any]:
        return {key: metrics[f"eval_{key}"] for key in ("logps_chosen", "logps_rejected")}

    def write(  # type: ignore[override]
        self, config: DpoConfig, phase: Phase, trainer: PolicyTrainer, record: dict[str, Any], last: bool
    ) -> None:
        _write_phase(config, phase, trainer, record, last)

    def what_next(self, folder: str) -> str:
        return f"sample from it: python -m rovrm.bon policy={folder}, or load it with AutoModelForImageTextToText"


# ---- what a phase leaves -------------------------------------------------------------------------------------------


def _write_phase(config: DpoConfig, phase: Phase, trainer: PolicyTrainer, record: dict[str, Any], last: bool) -> None:
    """A phase's folder: the processor as it was, scores.jsonl, adapter or full checkpoint; phase.json last, as the sign
    that the phase is done. The last phase of a run gets the whole language model."""
    folder = phase.folder(config.out)
    trainer.accelerator.wait_for_everyone()
    weights = whole_weights(trainer)  # every process takes part where weights are sharded
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    if config.tuning == "full" and weights is None:
        trainer.save_model(str(folder / FULL))
    if not trainer.is_world_process_zero():
        return
    processor = _own_processor(config, phase)
    with saving(folder) as partial:
        processor.save_pretrained(partial)
    write_scores(folder / "scores.jsonl", trainer)
    if config.tuning == "full":
        if weights is not None:
            model.save_pretrained(folder / FULL, state_dict=weights)
        written = load_policy_model(str(folder / FULL), torch.float32, trust_remote_code=config.trust_remote_code)
        _save(written, folder, config, phase, record, config.save_dtype if last else "float32")
        shutil.rmtree(folder / FULL)
    else:
        with saving(folder) as partial:
            model.save_pretrained(partial / ADAPTER, state_dict=weights)
            processor.save_pretrained(partial / ADAPTER)
        if last:
            base = model.peft_config["default"].base_model_name_or_path
            # In float32 whatever the base was trained in: bfloat16 loses small updates when they are merged.
            plain = load_policy_model(base, torch.float32, trust_remote_code=config.trust_remote_code)
            merged = load_adapter(plain, str(folder / ADAPTER), trainable=False).merge_and_unload()
            _save(merged, folder, config, phase, record, config.save_dtype)
    write_json(folder / "phase.json", record)


def _own_processor(config: DpoConfig, phase: Phase) -> Any:
    """The processor of what the phase starts from, with its chat template as it is: what a policy is saved with."""
    start = start_of(config, phase)
    place = processor_of(Path(start), config.model) if has_adapter(start) else start
    model_config = load_config(config.model, config.trust_remote_code)
    return load_processor(place, config.chat_template, config.trust_remote_code, model_config)


def _save(model: Any, folder: Path, config: DpoConfig, phase: Phase, record: dict[str, Any], save_dtype: str) -> None:
    """Writes a whole language model into the folder."""
    if save_dtype == "bfloat16":
        model = model.to(torch.bfloat16)
    with saving(folder) as partial:
        model.save_pretrained(partial)
        (partial / "README.md").write_text(_card(config, phase, record))


def _card(config: DpoConfig, phase: Phase, record: dict[str, Any]) -> str:
    sources = [f"- {used.name}: {', '.join(config.section(used).data)}" for used in config.phases if used <= phase]
    trained = "\n".join(sources)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    base = os.path.basename(config.model.rstrip("/"))
    return f"""---
library_name: transformers
base_model: {config.model}
tags: [dpo, rovrm]
---
# {base}, trained on preferences

Made with rovrm from `{config.model}` ({config.tuning}, loss {config.loss_type}, beta {config.beta:g}, reference
{config.reference}), last phase: {phase.name}. It loads as the plain language model.

On held-out pairs the better answer's log-ratio is higher in {share_in_words(record["accuracy"], record["n_held_out"])}
with its 95 % interval; loss {record["loss"]:.3f}, mean log-probability of better answers {record["logps_chosen"]:.1f}
and of worse ones {record["logps_rejected"]:.1f}.

Preference data of the phases trained in this run:
{trained}

Versions: {versions}.
"""
