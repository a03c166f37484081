"""Settings of the commands: typed dataclasses with one comment per field, which `--help` prints.

    python -m rovrm.train recipe=recipes/llava-1.5-7b.yaml text.n=1000 --batch-tokens 8192 --dry-run

How a command line and a recipe become one of these is in rovrm/settings/command_line.py.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rovrm.common.errors import UserError
from rovrm.settings.fields import ABOVE_ZERO, FRACTION, FROM_ZERO, Limit, limited, limited_list, mapping, named
from rovrm.settings.phases import CAPTION, PHASE_WORDS, PHASES, TEXT, VISUAL, Phase, parse_phases
from rovrm.settings.trainer_keys import holds_text


def _is_phase(text: str) -> bool:
    try:
        return bool(parse_phases(text))
    except UserError:
        return False


MAX_PIXELS = 50_000_000  # of all images of a row together: 200 MB when they are decoded

SEED = Limit("from 0 to 4294967295", lambda v: 0 <= v < 2**32)
PHASE = Limit(PHASE_WORDS, _is_phase)
ZERO = Limit("that can only be 0", lambda v: v == 0)
WIDTH = Limit("of at least 64", lambda v: v >= 64)
TARGETS = Limit("of at least 8", lambda v: v >= 8)
SAMPLES = Limit("1000 or more: with fewer nothing is learned", lambda v: v >= 1000)
EACH_N = Limit("with numbers from 1 to 1024", lambda v: all(1 <= n <= 1024 for n in v))
PORT = Limit("from 0 to 65535", lambda v: 0 <= v < 2**16)


# In the dataclasses, the comment beside a field (and the comment lines below it) is its line in `--help`.


# Ways of choosing n examples: the first two before the rows are read, the others by gradients (data_selection), and
# `margin` by the rewards of the model that the gradients are taken of.
Select = Literal[
    "random",
    "first",
    "capped_ot",
    "capped_sinkhorn",
    "knn",
    "soft_nn",
    "round_robin",
    "gotd",
    "max_cos",
    "mean_l2",
    "paper",
    "margin",
]
Warmup = Literal["target", "pool+target"]


@dataclass
class PhaseConfig:
    data: list[str] = field(default_factory=list)  # training data: files, folders or hub ids, as SOURCE or SOURCE?n=5
    eval_data: list[str] = field(default_factory=list)  # held-out data; empty = eval_fraction of the training data
    n: int | None = limited(None, ABOVE_ZERO)  # examples to take; null = all. Held-out ones are among them,
    # but come on top of what a method of data_selection chooses
    select: Select = "random"  # which n: drawn at random, the first, or chosen by a method of data_selection
    learning_rate: float | None = limited(None, ABOVE_ZERO)  # highest learning rate of the phase; null = 3e-4 with
    # an adapter, and with tuning=full the paper's 2e-5 (text) and 1e-6 (caption, visual); of rovrm.dpo 1e-4 and 1e-6
    epochs: float = limited(1.0, ABOVE_ZERO)  # passes over the training data
    reader: str = ""  # format of the data; empty = found from its columns
    columns: dict[str, str] = field(default_factory=dict)  # names of the columns, as columns.prompt=question
    max_bad_fraction: float | None = limited(None, FRACTION)  # share of this phase's rows that may be bad and skipped;
    # null = the max_bad_fraction that stands outside of the sections

    @property
    def by_selection(self) -> bool:
        """Whether the phase's rows are chosen by their gradients."""
        return self.select not in ("random", "first")


CAPTION_TEMPLATE = "Image description: {caption}\n\n"  # the tiny base has learned to read captions in it


@dataclass
class CaptionConfig(PhaseConfig):
    captions: str = ""  # JSONL file of captions, joined by image; empty = the data have a caption column
    caption_template: str = CAPTION_TEMPLATE  # text that takes the place of the image


@dataclass
class SelectionConfig:
    warmup: Warmup | None = None  # what the warm-up trains on; null = target, but for paper pool+target, as published
    warmup_pool: int = limited(2000, ABOVE_ZERO)  # rows of the pool that the warm-up trains on, at most
    warmup_target: int = limited(3000, ABOVE_ZERO)  # rows of the target that it trains on, at most
    learning_rate: float = limited(1e-4, ABOVE_ZERO)  # highest learning rate of the warm-up
    epochs: float | None = limited(None, ABOVE_ZERO)  # passes of the warm-up; null = as many as show it the number of
    # rows that one pass over both parts would
    gradients: Literal["plain", "adam"] = "plain"  # gradients as they are, or the pool's as in LESS
    layers: str | None = None  # LoRA layers that count: last=0.25 for those in the last quarter of the decoder layers,
    # a regular expression of their names, or all; null = last=0.25, but for paper all
    balance: bool | None = None  # each decoder layer's A and B gradients count the same; null = yes, but for paper no
    width: int = limited(4096, WIDTH)  # numbers of a feature
    targets: int | None = limited(5000, TARGETS)  # target rows that stand for all of them; null = all
    representatives: Literal["kmeans", "random"] = "kmeans"  # those nearest to cluster centres, or drawn ones
    preprocess: list[str] | None = None  # unit, centre, dedup, or none; null = unit,dedup, but for paper none
    side_price: float = limited(0.0, FROM_ZERO)  # added to a row's transport cost, the more its gradient points away
    # from the target's; with capped_ot, knn and soft_nn; 0 = none

    def of(self, select: str) -> "SelectionConfig":
        """These settings with a method's own where none are given."""
        paper = select == "paper"
        defaults = {
            "warmup": "pool+target" if paper else "target",
            "layers": "all" if paper else "last=0.25",
            "balance": not paper,
        }
        filled = replace(self, **{key: value for key, value in defaults.items() if getattr(self, key) is None})
        if select == "margin":  # which takes no gradient: what decides gradients decides nothing
            plain = SelectionConfig(layers="all", balance=False, targets=None)
            keys = ("layers", "balance", "gradients", "width", "targets", "representatives", "preprocess", "side_price")
            return replace(filled, **{key: getattr(plain, key) for key in keys})
        return filled


@dataclass
class TrainConfig:
    phase: str = limited("1..3", PHASE)  # phases to run, in order
    out: str = "runs/demo"  # folder of the run
    model: str = ""  # base vision-language model, hub id or folder; empty = the shipped tiny default
    init_from: str = ""  # what the first phase starts from, a phase folder or a checkpoint; empty = model
    trust_remote_code: bool = False  # let the model's repository run its own code
    chat_template: str = ""  # file with the chat template; empty = the processor's own

    text: PhaseConfig = field(default_factory=PhaseConfig)
    caption: CaptionConfig = field(default_factory=CaptionConfig)
    visual: PhaseConfig = field(default_factory=PhaseConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)

    image_root: str = ""  # folder of relative image paths; empty = the data file's folder, then its parents
    eval_fraction: float = limited(0.05, FRACTION)  # share of the training data held out when eval_data is empty
    max_bad_fraction: float = limited(0.01, FRACTION)  # share of bad rows that may be skipped before the run stops
    max_length: int = limited(2048, ABOVE_ZERO)  # tokens of the longest conversation
    max_pixels: int = limited(MAX_PIXELS, ABOVE_ZERO)  # pixels of all images of a row together, at most
    long_rows: Literal["skip", "error"] = "skip"  # rows above max_length are skipped and counted apart, or are bad rows
    rows: Literal["auto", "shared", "separate"] = "auto"  # shared: a prompt is run once; auto = shared if exact
    batch_tokens: int = limited(16384, ABOVE_ZERO)  # tokens of one forward per device, at most
    batch_size: int = limited(8, ABOVE_ZERO)  # prompts of one forward per device, at most
    center_rewards_coefficient: float = limited(0.0, FROM_ZERO)  # pull of the mean reward towards 0; 0 = off
    tuning: Literal["lora", "qlora", "full"] = "lora"  # an adapter, an adapter on a 4-bit model, or every weight
    lora_r: int = limited(64, ABOVE_ZERO)  # rank of the adapter
    lora_alpha: int = limited(128, ABOVE_ZERO)  # scale of the adapter
    lora_dropout: float = limited(0.05, FRACTION)  # dropout inside the adapter
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # arithmetic of the model; trained weights stay float32
    save_dtype: Literal["float32", "bfloat16"] = "float32"  # numbers of the last phase's full checkpoint
    workers: int = limited(2, FROM_ZERO)  # processes that prepare batches; 0 = none
    first_checkpoint_minutes: float = limited(5.0, FROM_ZERO)  # until the first checkpoint of a phase, at most; 0 = off
    # (this and the next are off too where trainer.save_strategy or trainer.save_steps is given)
    checkpoint_minutes: float = limited(30.0, FROM_ZERO)  # from one checkpoint to the next, at most; 0 = off
    seed: int = limited(0, SEED)  # seed of selection, splits, order and new weights
    dry_run: bool = False  # print rendered rows, lengths, steps and memory, then stop
    trainer: dict[str, Any] = mapping(holds_text)  # any key of transformers.TrainingArguments

    @property
    def phases(self) -> list[Phase]:
        """The phases asked for, in the order in which they run."""
        return parse_phases(self.phase)

    @property
    def on_cpu(self) -> bool:
        """Whether the trainer is told to leave a GPU alone."""
        return bool(self.trainer.get("use_cpu", False))

    def section(self, phase: Phase) -> PhaseConfig:
        """The settings that a phase has to itself."""
        return getattr(self, phase.name)

    def default_rate(self, phase: Phase) -> float:
        """The learning rate of a phase that was given none."""
        return PAPER_RATES[phase] if self.tuning == "full" else ADAPTER_RATE


@dataclass
class DpoConfig(TrainConfig):
    out: str = "runs/dpo"  # folder of the run
    loss_type: Literal["sigmoid", "ipo", "simpo", "orpo"] = "sigmoid"  # DPO, IPO, SimPO or ORPO
    beta: float = limited(0.1, ABOVE_ZERO)  # weight of the log-probabilities (of the odds' loss in orpo)
    gamma: float = limited(0.5, FROM_ZERO)  # of simpo: by how much the better answer's reward is to exceed the worse's
    sft_weight: float = limited(0.0, FROM_ZERO)  # of the chosen answer's mean negative log-likelihood in the loss
    center_rewards_coefficient: float = limited(0.0, ZERO)  # for reward models alone
    reference: Literal["start", "base"] = "start"  # what a phase may not move far from: its start, or `model`
    lora_dropout: float = limited(0.0, ZERO)  # there is none: it would tell the policy from its reference

    def default_rate(self, phase: Phase) -> float:
        return DPO_RATE if self.tuning == "full" else DPO_ADAPTER_RATE


@dataclass
class StepsConfig:
    delimiters: list[str] = field(default_factory=lambda: [".", "!", "?"])  # what ends a step, before white space
    tokens: int = limited(70, ABOVE_ZERO)  # of a step, at most
    n: int = limited(5, ABOVE_ZERO)  # candidates for the next step of every partial answer
    max: int = limited(16, ABOVE_ZERO)  # steps of an answer; a longer one is no answer
    best: int = limited(1, ABOVE_ZERO)  # partial answers of a prompt that are kept because they are the best
    worst: int = limited(2, ABOVE_ZERO)  # those kept because they are the worst
    temperature: float = limited(1.0, ABOVE_ZERO)  # of sampling
    top_p: float = limited(1.0, Limit("above 0 and up to 1", lambda v: 0 < v <= 1))  # share that is sampled from


@dataclass
class CsrConfig:
    out: str = "runs/csr"  # folder of the run
    policy: str = ""  # language model that answers and is trained, folder or hub id; empty = the tiny one of the world
    data: list[str] = field(default_factory=list)  # prompts: files, folders or hub ids; empty = pictures of the world
    iterations: int = limited(3, ABOVE_ZERO)  # of searching, and training on what was found
    calibrator: Literal["rovrm", "clip", "both"] = "rovrm"  # what scores steps by the image
    model: str = "runs/demo/phase3-visual"  # reward model of the calibrators rovrm and both, folder or hub id
    clip: str = ""  # CLIP model of the calibrators clip and both, folder or hub id
    scored: Literal["steps", "answers"] = "steps"  # answers: the image scores whole answers alone
    search: Literal["calibrated", "released"] = "calibrated"  # released: steps are kept by their likelihood alone
    combine: Literal["scores", "ranks"] = "scores"  # image and language: weighted scores (paper), or ranks (its code)
    weight: float = limited(0.9, FRACTION)  # of the image; the rest is the language's
    length: Literal["auto", "mean", "sum"] = "auto"  # over an answer's steps; auto = sum for rovrm, else mean
    margin: float = limited(0.0, FROM_ZERO)  # by which the best answer's reward must exceed the worst's
    steps: StepsConfig = field(default_factory=StepsConfig)

    image_root: str = ""  # folder of relative image paths; empty = the data file's folder, then its parents
    batch_size: int = limited(8, ABOVE_ZERO)  # prompts that are searched at once
    dpo: dict[str, Any] = mapping(holds_text)  # any key of rovrm.dpo, as dpo.beta=0.1 or dpo.visual.epochs=2
    device: str = ""  # device such as cpu or cuda:0; empty = the fastest present
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # arithmetic of the models
    trust_remote_code: bool = False  # let the models' repositories run their own code
    seed: int = limited(0, SEED)  # of sampling and training


@dataclass
class ScoreConfig:
    model: str  # reward model, folder or hub id
    input: str = named("in")  # JSONL file of prompts, images and responses
    output: str = named("out")  # JSONL file to write
    image_root: str = ""  # folder of relative image paths; empty = the input file's folder, then its parents
    batch_tokens: int = limited(16384, ABOVE_ZERO)  # tokens of one forward, at most
    max_length: int = limited(0, FROM_ZERO)  # tokens of the longest conversation; 0 = the model's limit
    max_pixels: int = limited(MAX_PIXELS, ABOVE_ZERO)  # pixels of all images of a row together, at most
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # arithmetic of the model
    device: str = ""  # device such as cpu or cuda:0; empty = the fastest present
    normalize: bool = False  # subtract the saved mean reward and divide by its spread
    rows: Literal["auto", "shared", "separate"] = "auto"  # shared: a prompt is run once; auto = shared if exact
    workers: int = limited(2, FROM_ZERO)  # processes that prepare batches; 0 = none
    trust_remote_code: bool = False  # let the model's repository run its own code
    verify: bool = True  # look whether the rewards that the checkpoint promises come out, and stop if not


@dataclass
class ServeConfig:
    model: str  # reward model, folder or hub id
    host: str = "127.0.0.1"  # address to listen on; one that other machines reach needs a token
    port: int = limited(8000, PORT)  # port to listen on; 0 = a free one, which is printed
    token: str = ""  # bearer token that requests must carry; empty = ROVRM_TOKEN of the environment, or none
    image_root: str = ""  # folder of the image paths in requests; empty = requests must hold their images
    batch_tokens: int = limited(16384, ABOVE_ZERO)  # tokens of one forward, at most
    max_length: int = limited(0, FROM_ZERO)  # tokens of the longest conversation; 0 = the model's limit
    max_body: int = limited(20_000_000, ABOVE_ZERO)  # bytes of a request's body, or of an image file, at most
    max_pixels: int = limited(MAX_PIXELS, ABOVE_ZERO)  # pixels of all images of a request together, at most
    max_tokens: int = limited(262_144, ABOVE_ZERO)  # tokens of all conversations of a request together, at most
    queue: int = limited(256, ABOVE_ZERO)  # requests that wait or are worked on; one more is told to try again
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # arithmetic of the model
    device: str = ""  # device such as cpu or cuda:0; empty = the fastest present
    normalize: bool = False  # subtract the saved mean reward and divide by its spread
    rows: Literal["auto", "shared", "separate"] = "auto"  # shared: a prompt is run once; auto = shared if exact
    workers: int = limited(4, ABOVE_ZERO)  # threads that decode images and check requests
    trust_remote_code: bool = False  # let the model's repository run its own code
    verify: bool = True  # look whether the rewards that the checkpoint promises come out, and stop if not


@dataclass
class BonConfig:
    n: list[int] = limited_list([], EACH_N)  # candidates per prompt, 8 if not given; several, as 1,2,4,8, give a curve
    model: str = "runs/demo/phase3-visual"  # reward model, folder or hub id
    policy: str = ""  # vision-language model that answers, folder or hub id; empty = the tiny one of the world
    data: list[str] = field(default_factory=list)  # prompts: files, folders or hub ids; empty = pictures of the world
    candidates: list[str] = field(default_factory=list)  # JSON or JSONL files of answers to choose from, instead
    out: str = "runs/demo/bon"  # folder to write
    image_root: str = ""  # folder of relative image paths; empty = the data file's folder, then its parents
    temperature: float = limited(1.0, ABOVE_ZERO)  # temperature of sampling
    top_p: float = limited(1.0, FRACTION)  # share of the probability that sampling draws from; 1 = everything
    max_new_tokens: int = limited(256, ABOVE_ZERO)  # tokens of one answer, at most
    allow_empty: bool = False  # let an answer without text win; false = only where all are without
    batch_size: int | None = limited(None, ABOVE_ZERO)  # prompts at once; null = 32 candidates (the tiny policy: 320)
    batch_tokens: int = limited(16384, ABOVE_ZERO)  # tokens of one scoring forward, at most
    max_pixels: int = limited(MAX_PIXELS, ABOVE_ZERO)  # pixels of all images of a row together, at most
    rows: Literal["auto", "shared", "separate"] = "auto"  # shared: a prompt is run once; auto = shared if exact
    seed: int = limited(0, SEED)  # seed of sampling
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # arithmetic of both models
    device: str = ""  # device such as cpu or cuda:0; empty = the fastest present
    trust_remote_code: bool = False  # let the models' repositories run their own code
    verify: bool = True  # look whether the rewards that the checkpoint promises come out, and stop if not


@dataclass
class RankConfig:
    input: str = named("in")  # JSON or JSONL file of candidates with their scores, such as bon.jsonl
    output: str = named("out")  # file to write: .jsonl, or .parquet with the images inside
    strategy: Literal["best_worst", "all_pairs", "ranked"] = "best_worst"  # a pair per prompt, every pair, or one list
    margin: float = limited(0.4, FROM_ZERO)  # smallest difference of rewards that counts; 0.4 is a probability of 0.6
    similarity: float = limited(0.9, FRACTION)  # texts this alike whose rewards count as equal are near-duplicates
    max_pairs: int | None = limited(None, ABOVE_ZERO)  # all_pairs: the clearest pairs of a prompt; null = all
    image_root: str = ""  # folder of relative image paths; empty = the input file's folder, then its parents


@dataclass
class MergeConfig:
    model: str  # phase folder that holds an adapter
    out: str  # folder of the full checkpoint to write
    save_dtype: Literal["float32", "bfloat16"] = "float32"  # numbers of the saved full checkpoint
    trust_remote_code: bool = False  # let the model's repository run its own code
    verify: bool = True  # look whether adapter and merged model give the rewards that the adapter promises


@dataclass
class CheckConfig:
    model: str  # reward model, folder or hub id
    adapter: str = ""  # adapter to put on the model, a phase folder or an adapter's folder
    url: str = ""  # address of a running rovrm.serve of this model, as http://127.0.0.1:8000
    token: str = ""  # bearer token of that server; empty = ROVRM_TOKEN of the environment, or none
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # arithmetic of the model
    device: str = ""  # device such as cpu or cuda:0; empty = the fastest present
    trust_remote_code: bool = False  # let the model's repository run its own code


@dataclass
class ConvertConfig:
    input: str = named("in")  # folder of the reward model to convert
    output: str = named("out")  # folder of the checkpoint to write
    base: str = ""  # folder or hub id that lends config and processor where the reward model has none
    chat_template: str = ""  # file with the chat template; empty = the one that the reward model was trained with


@dataclass
class WorldConfig:
    out: str  # folder to write
    n: int = limited(1000, ABOVE_ZERO)  # pairs of each kind
    seed: int = limited(0, SEED)  # seed of the pairs
    split: Literal["train", "test"] = "train"  # scenes for training, or for testing


@dataclass
class WorldClipConfig:
    out: str  # folder to write
    steps: int = limited(3000, ABOVE_ZERO)  # of 128 pictures and clauses
    seed: int = limited(0, SEED)  # seed of weights, pictures and clauses


@dataclass
class WorldMeasureConfig:
    model: str = ""  # folder of a base; empty = the shipped one


@dataclass
class WorldTrainConfig:
    out: str  # folder to write
    samples: int = limited(240_000, SAMPLES)  # conversations that the language model learns from
    seed: int = limited(0, SEED)  # seed of weights and samples
    compile: bool = False  # torch.compile the language model: faster, needs a C++ compiler


# ---- learning rates that nobody gave ---------------------------------------------------------------------------------

PAPER_RATES = {TEXT: 2e-5, CAPTION: 1e-6, VISUAL: 1e-6}  # of its full fine-tuning
ADAPTER_RATE = 3e-4  # eval.rates: the best of 1e-4 to 3e-4, but for one size of data; 1e-6 does not move an adapter
DPO_RATE = 1e-6  # of the paper's DPO
DPO_ADAPTER_RATE = 3e-5  # eval.alignment: 1e-5 moves little, 1e-4 ruins a policy within 256 steps of 8 pairs


def with_rates(config: TrainConfig) -> TrainConfig:
    """The settings with a learning rate in each section that was given none."""
    sections = {}
    for phase in PHASES:
        section = config.section(phase)
        if section.learning_rate is None:
            sections[phase.name] = replace(section, learning_rate=config.default_rate(phase))
    return replace(config, **sections)
