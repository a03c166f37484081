"""`RewardTrainer`: transformers.Trainer with shared prompts, token-budget batches and the ranking loss.

    trainer = RewardTrainer(model, RewardConfig(output_dir="out"), train_dataset, eval_dataset, processor, peft_config)
    trainer.train()

Data sets are lists of `Example`, or anything in TRL's preference format. The main loop is Trainer's own;
this subclass gives it batches (`get_train_dataloader`), the loss (`compute_loss`) and metrics (`log`, `evaluate`).
Where it departs from Trainer: evaluation scores every list once and computes its metrics from the gathered rewards, so
they depend neither on batching nor on the number of processes.
"""

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from rovrm.common.errors import UserError
from rovrm.common.intervals import wilson95
from rovrm.data.example import Example
from rovrm.data.loading import as_examples
from rovrm.model.batches import batch_loader, collect_rewards, fitting_into_memory, plan_batches, split_batch
from rovrm.model.chat import prepare_template
from rovrm.model.collator import RewardCollator
from rovrm.model.loading import is_reward_model, load_processor, load_reward_model
from rovrm.settings.trainer_keys import WITHOUT_EFFECT
from rovrm.training.callbacks import LiveBar, TimedCheckpoints
from rovrm.training.checks import check_examples
from rovrm.training.losses import Comparisons, batch_sums, compare, preference_loss, ranking_metrics
from rovrm.training.sharding import check_sharding, prepare_sharding

logger = logging.getLogger(__name__)


@dataclass
class RewardConfig(TrainingArguments):
    """TrainingArguments, where `per_device_train_batch_size` counts prompts of one forward at most, and these:"""

    rows: str = field(default="auto", metadata={"help": "auto, shared (a prompt is run once for all) or separate"})
    batch_tokens: int = field(default=16384, metadata={"help": "padded tokens of one forward per device, at most"})
    max_length: int = field(
        default=2048, metadata={"help": "tokens of the longest conversation; longer rows are refused"}
    )
    center_rewards_coefficient: float = field(default=0.0, metadata={"help": "pulls the mean reward towards 0"})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "prompts of one forward per device, at most"})
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "prompts of one evaluation forward, at most"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "the collator needs every column"})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "a loss that is not finite stops the run"})
    first_checkpoint_minutes: float = field(default=0.0, metadata={"help": "from the start, at most; 0 = off"})
    checkpoint_minutes: float = field(default=0.0, metadata={"help": "from one to the next, at most; 0 = off"})

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """transformers', but a share of the steps never takes all of them: a run of one step would have a rate of 0."""
        steps = super().get_warmup_steps(num_training_steps)
        return min(steps, num_training_steps - 1) if self.warmup_steps < 1 else steps

    def __post_init__(self):
        super().__post_init__()
        if self.remove_unused_columns:
            raise UserError("remove_unused_columns=True would drop the images; leave it False")
        for argument in fields(self):
            if argument.name in WITHOUT_EFFECT and getattr(self, argument.name) != argument.default:
                raise UserError(f"{argument.name} would do nothing: {WITHOUT_EFFECT[argument.name]}")
        check_sharding(self)


class RewardTrainer(Trainer):
    """Trains a reward model (`rovrm.model.modeling`) on ranked lists; see the module's docstring.

    model: a reward model, or the name of a checkpoint; every weight that requires a gradient trains, in float32
    (`rovrm.model.adapters.set_trainable` leaves the vision tower out). processing_class: its processor;
    loaded when model is a name; on a language model its chat template is prepared (`chat.prepare_template`).
    peft_config: a PEFT config, for instance of `rovrm.model.adapters.lora_config`, put on the model here; whatever
    its task type, the head is trained and saved with it.
    """

    collator_class: type[RewardCollator] = RewardCollator
    load_model = staticmethod(load_reward_model)

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: RewardConfig,
        train_dataset: Sequence[Example] | Any = None,
        eval_dataset: Sequence[Example] | Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: list[TrainerCallback] | None = None,
    ):
        if args.n_gpu > 1:
            raise UserError(
                "one process would drive several GPUs: use accelerate launch, or set CUDA_VISIBLE_DEVICES=0"
            )
        if isinstance(model, str):
            processing_class = processing_class or load_processor(model)
            model = self.load_model(model)
        if peft_config is not None:
            from peft import get_peft_model

            model = cast(PreTrainedModel, get_peft_model(model, _with_head(peft_config, model)))
        for parameter in model.parameters():  # bfloat16 would round small updates away
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.data = parameter.data.float()
        if processing_class is None:
            raise UserError("RewardTrainer needs processing_class, the model's processor")
        if not is_reward_model(model.config):
            prepare_template(processing_class)
        collator = self.collator_class(processing_class, model.config, args.rows)
        model.config.get_text_config().pad_token_id = collator.tokenizer.pad_token_id
        self.config, self.collator = args, collator
        self.train_examples = _measured(train_dataset, collator, args)
        self.eval_examples = _measured(eval_dataset, collator, args)
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=self.train_examples or None,  # type: ignore[arg-type]
            eval_dataset=self.eval_examples or None,  # type: ignore[arg-type]
            processing_class=processing_class,
            callbacks=callbacks,
        )
        if self.is_fsdp_enabled:
            prepare_sharding(self.accelerator, model)
        self._loss_shifts_labels = False  # labels are ranks: of a language model Trainer would leave the first out
        self.model_accepts_loss_kwargs = True  # the loss is divided by num_items_in_batch, the responses of all devices
        self.eval_rewards: list[list[float]] = []  # of the last evaluation, one list per example
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(LiveBar())
        if args.first_checkpoint_minutes or args.checkpoint_minutes:
            self.add_callback(TimedCheckpoints(args.first_checkpoint_minutes, args.checkpoint_minutes))
        self._reset_metrics()

    # ---- batches -----------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        if not self.train_examples:
            raise UserError("RewardTrainer has no train_dataset to train on")
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return self._loader(self.train_examples, self.args.per_device_train_batch_size, seed)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        examples = self.eval_examples if eval_dataset is None else _measured(eval_dataset, self.collator, self.config)
        return self._loader(examples, self.args.per_device_eval_batch_size, None)

    def _loader(self, examples: Sequence[Example], batch_size: int, seed: int | None) -> DataLoader:
        plan = plan_batches(examples, self.collator, self.config.batch_tokens, batch_size, seed)
        loader = batch_loader(
            examples,
            plan,
            self.collator,
            workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            multiple_of=self.args.world_size,
            seed=seed,
        )
        return self.accelerator.prepare(loader)

    # ---- checkpoints -------------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Every weight, by the names of the checkpoint. Trainer compares a saved file's names with the model's own, but
        `save_pretrained` writes those of the base family: of a whole model it would load nothing but the head."""
        if not self._saves_a_whole_model():
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        target: Any = self.model if model is None else model
        target.load_state_dict(self.load_model(resume_from_checkpoint).state_dict())

    def _load_best_model(self) -> None:
        if not self._saves_a_whole_model():
            return super()._load_best_model()
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _saves_a_whole_model(self) -> bool:
        """Not an adapter, and not in FSDP's or DeepSpeed's own format."""
        return isinstance(self.model, PreTrainedModel) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def num_examples(self, dataloader: DataLoader) -> int:
        return len(getattr(dataloader.dataset, "examples", dataloader.dataset))  # type: ignore[arg-type]

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.args.auto_find_batch_size:  # which goes by torch's own error
            return super().training_step(model, inputs, num_items_in_batch)
        with fitting_into_memory(len(inputs["labels"])):
            return super().training_step(model, inputs, num_items_in_batch)

    # ---- loss --------------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mean loss per response: of the whole optimizer step where Trainer counts it, else of this batch."""
        model_inputs, ours = split_batch(inputs)
        outputs = model(**model_inputs)
        pairs = compare(self.rewards(outputs, ours), ours["labels"], ours["list_ids"])
        loss = self.summed_loss(pairs, outputs, ours)
        if num_items_in_batch is None:
            loss = loss / max(len(pairs.rewards), 1)
        else:  # DistributedDataParallel averages gradients over the processes: undo it where the items are of all
            everywhere = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss = loss / num_items_in_batch * everywhere
        if model.training:
            self._count(pairs, model_inputs)
        return (loss, outputs) if return_outputs else loss

    def rewards(self, outputs: Any, ours: dict[str, Tensor]) -> Tensor:
        """(conversations,) the rewards of a batch, from what the model returned and the batch's LOSS_KEYS."""
        return outputs.logits[:, 0]

    def summed_loss(self, pairs: Comparisons, outputs: Any, ours: dict[str, Tensor]) -> Tensor:
        """The batch's loss, of which each list counts once per response (`losses.preference_loss`)."""
        return preference_loss(pairs, ours["margins"], self.config.center_rewards_coefficient)

    # ---- metrics -----------------------------------------------------------------------------------------------------

    def _reset_metrics(self) -> None:
        self._sums = torch.zeros(6, dtype=torch.float64, device=self.args.device)
        self._extremes = torch.tensor([math.inf, -math.inf], dtype=torch.float64, device=self.args.device)
        self._since = time.perf_counter()

    def _count(self, pairs: Any, model_inputs: dict[str, Tensor]) -> None:
        masks = [model_inputs[name] for name in ("attention_mask", "answer_attention_mask") if name in model_inputs]
        tokens = torch.stack([mask.sum() for mask in masks]).sum()
        if len(pairs.rewards):
            self._sums += torch.cat([batch_sums(pairs), tokens.double()[None]])
            low, high = pairs.rewards.detach().double().aminmax()
            self._extremes = torch.stack([self._extremes[0].minimum(low), self._extremes[1].maximum(high)])

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's, without `train_loss`: after a resume that is the mean of the resumed steps alone."""
        logs = {key: value for key, value in logs.items() if key != "train_loss"}
        if "loss" in logs:
            logs = logs | self._training_metrics()
            if not math.isfinite(logs["loss"]):
                raise UserError(
                    f"the loss is {logs['loss']} at step {self.state.global_step}; lower the learning rate, "
                    "or look for broken weights in the base model"
                )
        super().log(logs, start_time)

    def _training_metrics(self) -> dict[str, float]:
        """TRL's metric names, over all processes since the last log."""
        lists, accuracy, margin, responses, reward, tokens = self._over_processes(self._sums).sum(dim=0).tolist()
        extremes = self._over_processes(self._extremes)  # (processes, 2)
        seconds = time.perf_counter() - self._since
        self._reset_metrics()
        if not lists:
            return {}
        return {
            "accuracy": accuracy / lists,
            "margin": margin / lists,
            "mean_reward": reward / responses,
            "min_reward": extremes[:, 0].min().item(),
            "max_reward": extremes[:, 1].max().item(),
            "num_tokens": tokens,
            "pairs_per_second": lists / seconds,
        }

    def _over_processes(self, values: Tensor) -> Tensor:
        """(n,) of every process -> (processes, n)"""
        return self.accelerator.gather(values[None])  # type: ignore[return-value]

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Scores every list once; metrics of `ranking_metrics`, from rewards gathered over all processes."""
        examples = self.eval_examples if eval_dataset is None else _measured(eval_dataset, self.collator, self.config)
        if not examples:
            raise UserError("RewardTrainer has no eval_dataset to evaluate on")
        started = time.perf_counter()
        self.eval_rewards = self.predict_rewards(examples)
        if not all(math.isfinite(reward) for rewards in self.eval_rewards for reward in rewards):
            raise UserError(
                f"rewards are not finite after step {self.state.global_step}: the model is broken; lower the learning "
                "rate, or look for broken weights in the base model"
            )
        metrics = self.metrics(examples)
        metrics["accuracy_low"], metrics["accuracy_high"] = wilson95(metrics["accuracy"], len(examples))
        metrics["examples"] = len(examples)
        metrics["pairs_per_second"] = len(examples) / (time.perf_counter() - started)
        named = {f"{metric_key_prefix}_{key}": value for key, value in metrics.items()}
        self.log(named)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        self._since += time.perf_counter() - started  # pairs_per_second of training leaves evaluation out
        return named

    def metrics(self, examples: Sequence[Example]) -> dict[str, float]:
        """Of the examples whose rewards are `eval_rewards`."""
        return ranking_metrics(self.eval_rewards, [e.ranks for e in examples], [e.margin for e in examples])

    def predict_rewards(self, examples: Sequence[Example]) -> list[list[float]]:
        """The rewards of every response of every measured example, the same on every process."""
        return self._predict(examples, self.rewards)

    def _predict(
        self, examples: Sequence[Example], of_batch: Callable[[Any, dict[str, Tensor]], Tensor]
    ) -> list[list[float]]:
        """A number for every response of every measured example, the same on every process.

        of_batch: (conversations,) those of a batch, from what the model returned and the batch's LOSS_KEYS.
        """
        self._of_batch = of_batch
        self._predicted: dict[int, dict[int, float]] = {}  # of this process, by example and response
        self.evaluation_loop(self._loader(examples, self.args.per_device_eval_batch_size, None), "Evaluation", True)
        merged: dict[int, dict[int, float]] = {}
        for part in gather_object([self._predicted]) if self.args.world_size > 1 else [self._predicted]:
            merged.update(part)
        return [[merged[i][j] for j in range(len(e.responses))] for i, e in enumerate(examples)]

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """One evaluation forward; what it gives is kept for `_predict`, nothing is returned to be averaged."""
        model_inputs, ours = split_batch(self._prepare_inputs(inputs))  # type: ignore[arg-type]
        with torch.no_grad(), fitting_into_memory(len(ours["labels"])):
            collect_rewards(ours, self._of_batch(model(**model_inputs), ours), self._predicted)
        return None, None, None


def _with_head(peft_config: Any, model: Any) -> Any:
    """The PEFT config with the task type for which PEFT trains and saves a reward model's head."""
    if hasattr(model, "score") and peft_config.task_type != "SEQ_CLS":
        logger.info("task_type=SEQ_CLS in place of %s, so that the head is trained and saved", peft_config.task_type)
        peft_config = copy.deepcopy(peft_config)
        peft_config.task_type = "SEQ_CLS"
    return peft_config


def _measured(dataset: Any, collator: RewardCollator, args: RewardConfig) -> list[Example]:
    """The data set as examples with their lengths; those that come without are looked at here, and a bad one stops."""
    if dataset is None:
        return []
    examples = as_examples(dataset, say=args.process_index == 0)
    if all(example.lengths is not None for example in examples):
        return examples
    checked = check_examples(examples, collator, args.max_length, args.dataloader_num_workers)
    if checked.skipped:
        first = checked.skipped[0]
        raise UserError(
            f"{len(checked.skipped)} of {len(examples)} rows cannot be trained on; the first, "
            f"{first['location'] or first['id']}: "
            f"{first['field']} = {first['value']!r}: {first['reason']}"
        )
    return checked.examples
