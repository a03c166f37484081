"""The tiny base model: a real LLaVA (CLIP tower, projector, Llama) trained from nothing on the world.

    make_base(Path("base"), samples=240_000, seed=0)        # python -m rovrm.world train

Two stages, because a language model that learns beside a tower that sees nothing yet stays blind to shapes: the tower
alone learns colour, shape, size and place of every patch; then, frozen, it feeds a language model that learns to
answer questions about pictures, captions and notes (rovrm/tiny_base/lessons.py).
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rovrm.tiny_base.lessons import SLIPPED, Sample, base_sample, plain_text
from rovrm.world.scenes import CELL, CELLS, COLOURS, SHAPES, SIZES, WIDTH, Drawing, draw_scene

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for block in message['content'] %}"
    "{% if block['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ block['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
IMAGE_TOKENS = (WIDTH // CELL) ** 2  # a patch for each cell of a picture
ALONE = 0.12  # first share of the training, in which only pictures are shown
NOT_LEARNED = -100  # label of a token that the loss leaves out
CHUNK = 16  # batches whose conversations are sorted by length together
TOWER_BATCH = 64  # pictures of one step of the tower's training


def make_base(
    out: Path, samples: int, seed: int = 0, compiled: bool = False, report: Callable = print
) -> tuple[Any, Any]:
    """Trains the base and saves it, with its processor, as an ordinary folder.

    Args:
        out: the folder.
        samples: conversations that the language model learns from.
        seed: of everything that is drawn.
        compiled: whether torch compiles the language model.
        report: what is told of the progress.

    Returns:
        (model, processor)
    """
    torch.set_flush_denormal(True)  # numbers below 1e-38, of which Adam keeps many, are slow on a CPU
    rng = random.Random(f"corpus:{seed}")
    processor = make_processor([plain_text(base_sample(rng)) for _ in range(20_000)])
    model = make_model(processor, seed=seed)
    report(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, {len(processor.tokenizer)} tokens")
    train_tower(model, processor, seed=seed, report=report)
    train_language(model, processor, samples, seed=seed, compiled=compiled, report=report)
    model.half().save_pretrained(out)  # half the bytes; what is measured and used is what is stored
    processor.save_pretrained(out)
    return model.float(), processor


# ---- the model -------------------------------------------------------------------------------------------------------


def make_processor(corpus: list[str], image_size: int = WIDTH, patch_size: int = CELL, vocabulary: int = 1200) -> Any:
    """A LlavaProcessor with a byte-level BPE tokenizer trained on `corpus`. Sizes in pixels, vocabulary in tokens."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    size = {"height": image_size, "width": image_size}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer=_tokenizer(corpus, vocabulary),
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )


def _tokenizer(corpus: list[str], vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="right",
    )


def make_model(processor: Any, width: int = 128, layers: int = 7, tower_width: int = 64, seed: int = 0) -> Any:
    """A LlavaForConditionalGeneration with random weights for this processor."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=tower_width,
        intermediate_size=2 * tower_width,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=WIDTH,
        patch_size=CELL,
    )
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 5 // 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=16384,
        tie_word_embeddings=True,
        initializer_range=0.06,  # 0.02, of wide models, leaves attention uniform for long at this width
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlavaForConditionalGeneration(llava_config(vision, text, processor))
        # CLIP's own start leaves positions far weaker than patches: after 400 steps the tower told place at .2.
        nn.init.normal_(model.model.vision_tower.embeddings.position_embedding.weight, std=1.0)
        return model


def llava_config(vision: Any, text: Any, processor: Any) -> Any:
    """The LlavaConfig that joins a CLIP tower's and a Llama's config with the processor's token ids."""
    from transformers import LlavaConfig

    tokenizer = processor.tokenizer
    text.vocab_size, text.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    text.bos_token_id, text.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        vision_feature_layer=-1,
        tie_word_embeddings=text.tie_word_embeddings,
    )


# ---- stage 1: the tower ----------------------------------------------------------------------------------------------


def pixels(drawings: list[Drawing], processor: Any) -> Tensor:
    """(pictures, 3, 72, 72), normalised as the processor does, without its cost per picture."""
    mean = torch.tensor(processor.image_processor.image_mean)[:, None, None]
    std = torch.tensor(processor.image_processor.image_std)[:, None, None]
    raw = torch.from_numpy(np.stack([np.asarray(drawing()) for drawing in drawings]))  # (pictures, 72, 72, 3)
    return (raw.permute(0, 3, 1, 2).float() / 255 - mean) / std


def train_tower(model: Any, processor: Any, steps: int = 1000, seed: int = 0, report: Callable = print) -> None:
    """Trains the vision tower to tell colour, shape, size (or nothing) and place of each of the 9 patches."""
    torch.manual_seed(seed)
    tower = model.model.vision_tower
    # One class more than there are values, for a patch with nothing in it; every patch has a place.
    classes = {"colour": len(COLOURS) + 1, "kind": len(SHAPES) + 1, "size": len(SIZES) + 1, "place": len(CELLS)}
    heads = nn.ModuleDict({name: nn.Linear(tower.config.hidden_size, n) for name, n in classes.items()})
    rng = random.Random(f"tower:{seed}")
    parameters = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        drawings = [Drawing(draw_scene(rng, "picture"), rng.getrandbits(32)) for _ in range(TOWER_BATCH)]
        features = tower(pixels(drawings, processor)).last_hidden_state[:, 1:]  # (pictures, 9, width), without CLS
        labels = _patch_labels(drawings)
        logits = {name: head(features) for name, head in heads.items()}  # (pictures, 9, classes)
        loss = sum(nn.functional.cross_entropy(logits[n].flatten(0, 1), labels[n].flatten()) for n in classes)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        schedule.step()
        if step % 200 == 199:
            occupied = labels["kind"] > 0
            shares = []
            for name in classes:
                right = (logits[name].argmax(-1) == labels[name])[occupied].float().mean().item()
                shares.append(f"{name} {right:.3f}")
            report(f"tower step {step + 1}: " + ", ".join(shares))
    tower.requires_grad_(False)
    _join_projector(model.model.multi_modal_projector.linear_1, heads, logits)


@torch.no_grad()
def _join_projector(linear: nn.Linear, heads: nn.ModuleDict, logits: dict[str, Tensor]) -> None:
    """Lets the projector start from what the heads read, every class at unit spread: in the tower's own output
    shapes differ less than colours (a seventh to a quarter of the variance, against two fifths).

    linear: the projector's first layer. heads, logits: of the tower's training, the logits of its last batch.
    """
    start = 0
    for name, head in heads.items():
        spread = logits[name].flatten(0, 1).std(dim=0)
        mean = logits[name].flatten(0, 1).mean(dim=0)
        rows = slice(start, start + len(spread))
        linear.weight[rows] = head.weight / spread[:, None]  # type: ignore[operator]
        linear.bias[rows] = (head.bias - mean) / spread  # type: ignore[operator]
        start += len(spread)


def _patch_labels(drawings: list[Drawing]) -> dict[str, Tensor]:
    """By attribute (pictures, 9): the number of its value in each cell, from 1; 0 where the cell is empty. Of place the
    number of the cell, from 0."""
    labels = {name: torch.zeros(len(drawings), IMAGE_TOKENS, dtype=torch.long) for name in ("colour", "kind", "size")}
    for i, drawing in enumerate(drawings):
        for thing in drawing.scene.things:
            cell = CELLS.index(thing.place)
            labels["colour"][i, cell] = 1 + list(COLOURS).index(thing.colour)
            labels["kind"][i, cell] = 1 + SHAPES.index(thing.kind)
            labels["size"][i, cell] = 1 + SIZES.index(thing.size)
    return labels | {"place": torch.arange(IMAGE_TOKENS).expand(len(drawings), -1)}


# ---- stage 2: the language model -------------------------------------------------------------------------------------


def train_language(
    model: Any,
    processor: Any,
    samples: int,
    seed: int = 0,
    batch: int = 32,
    rate: float = 2e-3,
    compiled: bool = False,
    report: Callable = print,
) -> None:
    """Trains projector and language model on conversations; the loss is on the answers' tokens.

    Args:
        model, processor: the base, its tower trained and frozen.
        samples: conversations, each seen once.
        seed: of the conversations and their order.
        batch: conversations of one step.
        rate: the highest learning rate.
        compiled: whether torch compiles the language model.
        report: what is told of the loss.
    """
    torch.manual_seed(seed)
    language = model.model.language_model
    if compiled:
        language.compile(dynamic=True)
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    steps = samples // batch
    # Muon, which takes matrices alone, learns those of the hidden layers in fewer steps.
    matrices = [weight for weight in language.layers.parameters() if weight.ndim == 2]
    by_muon = {id(weight) for weight in matrices}
    others = [weight for weight in parameters if id(weight) not in by_muon]
    optimizers = [
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]
    schedules = []
    for optimizer in optimizers:
        schedules.append(
            torch.optim.lr_scheduler.OneCycleLR(
                optimizer, rate, total_steps=steps + 1, pct_start=0.05, cycle_momentum=False
            )
        )
    model.train()
    total_loss = 0.0  # of the last 100 steps
    for step, inputs in enumerate(_padded_batches(processor, seed, batch, steps)):
        loss = model(**inputs).loss
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        for schedule in schedules:
            schedule.step()
        total_loss += loss.item()
        if step % 100 == 99:
            report(f"language step {step + 1} of {steps}: loss {total_loss / 100:.3f}")
            total_loss = 0.0
    language._compiled_call_impl = None  # generation has other shapes: compiling for it would cost minutes
    model.eval()


def _padded_batches(processor: Any, seed: int, batch: int, steps: int) -> Iterator[dict[str, Tensor]]:
    """Padded batches of like lengths: lengths are sorted within chunks."""
    rng = random.Random(f"base:{seed}")
    steps_left = steps
    while steps_left:
        count = min(steps_left, CHUNK)
        steps_left -= count
        pictures_only = steps_left > steps * (1 - ALONE)
        samples = [base_sample(rng, pictures_only) for _ in range(batch * count)]
        rows = [encode_sample(sample, processor) for sample in samples]
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        groups = [by_length[i : i + batch] for i in range(0, len(by_length), batch)]
        rng.shuffle(groups)
        for group in groups:
            yield padded([rows[i] for i in group], [samples[i].drawing for i in group], processor)


def encode_sample(sample: Sample, processor: Any) -> tuple[list[int], list[int]]:
    """(token ids, labels) of a conversation as the chat template writes it, the image token repeated for each patch.
    Labels are NOT_LEARNED outside of the answers."""
    tokenizer = processor.tokenizer
    image = tokenizer.convert_tokens_to_ids("<image>")
    ids, labels = [tokenizer.bos_token_id], [NOT_LEARNED]
    for number, (question, answer) in enumerate(sample.turns):
        if sample.drawing is not None and number == 0:
            question_ids = _ids("USER: ", tokenizer) + [image] * IMAGE_TOKENS
            question_ids += _ids(f"\n{question}\nASSISTANT:", tokenizer)
        else:
            question_ids = _ids(f"USER: {question}\nASSISTANT:", tokenizer)
        answer_ids, answer_labels = _encode_answer(answer, tokenizer)
        ids += question_ids + answer_ids
        labels += [NOT_LEARNED] * len(question_ids) + answer_labels
    return ids, labels


def _encode_answer(answer: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids and labels of an answer. Slips, which are marked words, are read and not learned."""
    ids: list[int] = []
    labels: list[int] = []
    first, *marked = f" {answer}".split(f" {SLIPPED}")
    learned = _ids(first, tokenizer)
    ids, labels = ids + learned, labels + learned
    for part in marked:  # a slip and what follows it, up to the next one
        slip, _, rest = part.partition(" ")
        slipped = _ids(f" {slip}", tokenizer)
        learned = _ids(f" {rest}" if rest else "", tokenizer)
        ids += slipped + learned
        labels += [NOT_LEARNED] * len(slipped) + learned
    return ids + [tokenizer.eos_token_id], labels + [tokenizer.eos_token_id]


def _ids(text: str, tokenizer: Any) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def padded(
    rows: list[tuple[list[int], list[int]]], drawings: list[Drawing | None], processor: Any
) -> dict[str, Tensor]:
    """A batch for the model, padded on the right.

    Args:
        rows: what `encode_sample` gives.
        drawings: the picture of each row, or None.
        processor: knows the padding token, and how pixels are normalised.
    """
    longest, pad = max(len(ids) for ids, _ in rows), processor.tokenizer.pad_token_id
    ids, labels, mask = [], [], []
    for row_ids, row_labels in rows:
        missing = longest - len(row_ids)
        ids.append(row_ids + [pad] * missing)
        labels.append(row_labels + [NOT_LEARNED] * missing)
        mask.append([1] * len(row_ids) + [0] * missing)
    inputs = {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor(labels),
    }
    pictures = [drawing for drawing in drawings if drawing is not None]
    if pictures:
        inputs["pixel_values"] = pixels(pictures, processor)
    return inputs
