"""What other tools call our settings: hints for keys that are typed by habit."""

import difflib
from collections.abc import Collection, Mapping

# What TRL, transformers, ms-swift and LLaMA-Factory call a setting, and what it may be called here. A command has some
# of our keys only, so the hint is the first of these that it has.
DATA = ("visual.data (text.data and caption.data for the other phases)", "data", "in")
ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("model_name_or_path", "model_name", "model_path", "model_id", "reward_model"), ("model",)),
    **dict.fromkeys(("dataset", "datasets", "dataset_name", "dataset_path", "dataset_dir", "data_path"), DATA),
    **dict.fromkeys(("train_file", "train_data", "train_dataset", "input", "input_file", "data_files"), DATA),
    **dict.fromkeys(
        ("eval_dataset", "eval_file", "val_dataset", "validation_file", "test_file"), ("visual.eval_data",)
    ),
    **dict.fromkeys(
        ("dataset_config", "dataset_config_name"), ("visual.data=NAME?config=CONFIG", "data=NAME?config=CONFIG")
    ),
    **dict.fromkeys(
        ("dataset_train_split", "dataset_split", "split"), ("visual.data=NAME?split=SPLIT", "data=NAME?split=SPLIT")
    ),
    **dict.fromkeys(("max_samples", "max_train_samples", "num_samples"), ("visual.n",)),
    **dict.fromkeys(("image_folder", "image_dir", "media_dir", "images_root"), ("image_root",)),
    **dict.fromkeys(("output", "output_dir", "output_file", "save_dir"), ("out",)),
    **dict.fromkeys(("num_train_epochs", "num_epochs"), ("visual.epochs", "epochs")),
    **dict.fromkeys(("lr",), ("visual.learning_rate", "learning_rate")),
    **dict.fromkeys(("max_seq_length", "max_seq_len", "cutoff_len", "model_max_length"), ("max_length",)),
    **dict.fromkeys(("max_completion_length", "max_tokens"), ("max_new_tokens", "max_length")),
    **dict.fromkeys(("num_generations", "num_return_sequences", "best_of"), ("n",)),
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "train_batch_size", "micro_batch_size"),
        ("batch_size (prompts) and batch_tokens", "batch_tokens"),
    ),
    **dict.fromkeys(("use_peft", "use_lora", "finetuning_type", "train_type", "tuner_type"), ("tuning=lora|full",)),
    **dict.fromkeys(("load_in_4bit", "quantization_bit", "quant_bits"), ("tuning=qlora",)),
    "lora_rank": ("lora_r",),
    "lora_dropout_p": ("lora_dropout",),
    **dict.fromkeys(("bf16", "fp16", "torch_dtype"), ("dtype=bfloat16",)),
    **dict.fromkeys(("adapter_name_or_path", "adapters", "resume_from_adapter"), ("init_from",)),
    **dict.fromkeys(("dataloader_num_workers", "dataset_num_proc", "preprocessing_num_workers"), ("workers",)),
    **dict.fromkeys(("template", "chat_template_path"), ("chat_template=FILE",)),
    **dict.fromkeys(("config", "config_file"), ("recipe=FILE",)),
}
# Fields of transformers.TrainingArguments that people write without `trainer.`
TRAINER = (
    *("gradient_accumulation_steps", "gradient_checkpointing", "warmup_steps", "warmup_ratio", "weight_decay"),
    *("logging_steps", "logging_dir", "save_steps", "save_strategy", "save_total_limit", "eval_steps", "eval_strategy"),
    *("max_steps", "max_grad_norm", "lr_scheduler_type", "optim", "report_to", "run_name", "deepspeed", "fsdp"),
    *("ddp_timeout", "torch_compile", "push_to_hub", "hub_model_id", "use_cpu", "tf32", "adam_beta1", "adam_beta2"),
)


def right_key(key: str, known: Collection[str]) -> str:
    """What to write instead of an unknown key, as the end of a sentence.

    Args:
        key: the unknown key, with `_` for `-`.
        known: the keys of the command.
    """
    near = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    if not near:
        ours = _ours(key, known)
        if ours:
            return f"here it is {ours}"
        near = difflib.get_close_matches(key, known, n=3)
    return f"did you mean {' or '.join(near[:3])}?" if near else "--help lists the keys"


def _ours(key: str, known: Collection[str]) -> str:
    """What a key of another tool is called here, or "" where the command has nothing like it."""
    for name in ELSEWHERE.get(key, ()):
        first_word = name.split("=")[0].split(" ")[0]  # `tuning` of `tuning=qlora`
        if first_word in known or name == "recipe=FILE":
            return name
    return f"trainer.{key}" if key in TRAINER and "trainer" in known else ""
