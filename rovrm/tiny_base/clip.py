"""A small CLIP of the world: pictures and single clauses about them, trained from the base's tower by contrast.

    make_clip(Path("runs/world-clip"), steps=3000, seed=0)        # python -m rovrm.world clip

It is to the world what CLIP is to photos: it tells which of many clauses goes with a picture, and has seen no pair of a
clause and its edit. The folder is an ordinary CLIP checkpoint, which `rovrm.csr calibrator=clip clip=FOLDER` loads.
"""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rovrm.tiny_base.base import pixels
from rovrm.world.default import BASE
from rovrm.world.language import describe
from rovrm.world.scenes import Drawing, draw_scene

BATCH = 128  # pictures, and as many clauses
RATE = 2e-3
WIDTH = 64  # of the text tower, and of what both towers project to
END = "<|endoftext|>"  # the highest token id, whose place CLIP reads
CLAUSE_ENDS = re.compile(r"(?<=,) |(?<= and) ")


def make_clip(out: Path, steps: int = 3000, seed: int = 0, report: Callable = print) -> Any:
    """Trains a CLIPModel and saves it with its processor. Returns the model.

    Args:
        out: the folder.
        steps: of BATCH pictures, each with one clause about it, drawn anew.
        seed: of the text tower's weights and of everything that is drawn.
        report: what is told of the loss.
    """
    from transformers import AutoProcessor

    torch.set_flush_denormal(True)
    processor = _clip_processor(AutoProcessor.from_pretrained(BASE))
    model = _clip_model(processor, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    rng, losses = random.Random(f"clip:{seed}"), []
    for step in range(1, steps + 1):
        drawings = [Drawing(draw_scene(rng, "picture"), rng.getrandbits(32)) for _ in range(BATCH)]
        clauses = [rng.choice(clauses_of(describe(drawing.scene, wording=rng.randrange(3)))) for drawing in drawings]
        texts = processor.tokenizer(clauses, padding=True, return_tensors="pt")
        loss = model(**texts, pixel_values=pixels(drawings, processor), return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 500 == 0 or step == steps:
            report(f"CLIP step {step} of {steps}: loss {sum(losses) / len(losses):.3f}")
            losses.clear()
    model.eval().save_pretrained(out)
    processor.save_pretrained(out)
    return model


def clauses_of(description: str) -> list[str]:
    """The parts of a description between its commas and its "and", as `steps.delimiters` cuts an answer."""
    return CLAUSE_ENDS.split(description)


def _clip_processor(base: Any) -> Any:
    """A CLIPProcessor with the base's image processor, and its tokenizer with CLIP's end behind every text."""
    from tokenizers.processors import TemplateProcessing
    from transformers import CLIPProcessor

    tokenizer = base.tokenizer
    tokenizer.add_special_tokens({"eos_token": END})
    template = TemplateProcessing(single=f"$A {END}", special_tokens=[(END, tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = template
    tokenizer.chat_template = None
    return CLIPProcessor(base.image_processor, tokenizer)


def _clip_model(processor: Any, seed: int) -> Any:
    """A CLIPModel whose vision tower is the base's."""
    from transformers import AutoModelForImageTextToText, CLIPConfig, CLIPModel

    tower = AutoModelForImageTextToText.from_pretrained(BASE, dtype=torch.float32).model.vision_tower
    tokenizer = processor.tokenizer
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPConfig(text_config=text, vision_config=tower.config.to_dict(), projection_dim=WIDTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = CLIPModel(config)
    model.vision_model.load_state_dict(tower.state_dict())
    nn.init.normal_(
        model.text_model.embeddings.position_embedding.weight, std=0.1
    )  # CLIP's own start hardly orders words
    return model
