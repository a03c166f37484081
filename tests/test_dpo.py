"""python -m rovrm.dpo: objectives against slow twins, and whole runs in-process on the shipped tiny base."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import QUICK, error_line, message_of, output_of, read_json, read_lines, two_processes, write_lines

from rovrm.alignment.objectives import LOSS_TYPES, Objective
from rovrm.alignment.reference import answer_logps, set_reference
from rovrm.alignment.trainer import PolicyTrainer
from rovrm.data.loading import load_examples
from rovrm.dpo import main
from rovrm.merge import main as merge
from rovrm.model.answer_collator import AnswerCollator
from rovrm.model.batches import LOSS_KEYS
from rovrm.model.likelihood import load_policy_model
from rovrm.model.loading import load_processor
from rovrm.rank import main as rank
from rovrm.select import main as select
from rovrm.train import main as train
from rovrm.training.losses import compare
from rovrm.training.trainer import RewardConfig
from rovrm.world.default import BASE

# ---- objectives ------------------------------------------------------------------------------------------------------


def flat(seed: int = 0):
    """(logps, tokens, reference, labels, list_ids): two pairs, the second the wrong way round."""
    generator = torch.Generator().manual_seed(seed)
    logps = -10 * torch.rand(4, generator=generator, dtype=torch.float64)
    reference = -10 * torch.rand(4, generator=generator, dtype=torch.float64)
    return logps, torch.tensor([3, 5, 4, 2]), reference, torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 1, 1])


def loss_of(objective: Objective, logps, tokens, reference, labels, list_ids) -> float:
    pairs = compare(objective.rewards(logps, tokens, reference), labels, list_ids)
    lists = int(list_ids.max()) + 1
    loss = objective.summed_loss(pairs, logps, tokens, labels, torch.zeros(lists))
    return loss.item() / len(labels)


def twin(objective: Objective, logps, tokens, reference, labels, list_ids) -> float:
    """The papers' formulas, pair by pair, in plain Python."""
    losses = []
    for number in range(int(list_ids.max()) + 1):
        [w] = [i for i in range(len(labels)) if list_ids[i] == number and labels[i] == 0]
        [lo] = [i for i in range(len(labels)) if list_ids[i] == number and labels[i] == 1]
        (a, b), (n, m) = (logps[w].item(), logps[lo].item()), (int(tokens[w]), int(tokens[lo]))
        beta = objective.beta
        if objective.loss_type == "sigmoid":
            loss = math.log1p(math.exp(-beta * ((a - reference[w].item()) - (b - reference[lo].item()))))
        elif objective.loss_type == "ipo":
            loss = ((a - reference[w].item()) / n - (b - reference[lo].item()) / m - 1 / (2 * beta)) ** 2
        elif objective.loss_type == "simpo":
            loss = math.log1p(math.exp(-(beta * a / n - beta * b / m - objective.gamma)))
        else:
            p, q = math.exp(a / n), math.exp(b / m)
            odds = math.log(p / (1 - p)) - math.log(q / (1 - q))
            loss = -a / n + beta * math.log1p(math.exp(-odds))
        losses.append(loss + objective.sft_weight * -a / n)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("sft_weight", [0.0, 0.7])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_objectives_are_the_papers_formulas(loss_type, sft_weight):
    objective = Objective(loss_type, beta=0.3, gamma=0.4, sft_weight=sft_weight)
    for seed in range(5):
        assert loss_of(objective, *flat(seed)) == pytest.approx(twin(objective, *flat(seed)), rel=1e-6)
    logps, tokens, reference, labels, _ = flat()
    lists = [
        objective.mean_loss(
            logps[i : i + 2].tolist(), tokens[i : i + 2].tolist(), reference[i : i + 2].tolist(), r, 0.0
        )
        for i, r in ((0, [0, 1]), (2, [1, 0]))
    ]
    assert sum(lists) / 2 == pytest.approx(twin(objective, *flat()), rel=1e-6)


@pytest.mark.parametrize(("loss_type", "expected"), [("sigmoid", math.log(2)), ("ipo", 25.0)])
def test_a_policy_that_is_its_reference(loss_type, expected):
    logps, tokens, _, labels, list_ids = flat()
    assert loss_of(Objective(loss_type, beta=0.1), logps, tokens, logps, labels, list_ids) == pytest.approx(expected)


def test_lists_are_plackett_luce():
    """Three ranked answers: the probability that beta times the log-ratios draw them in this order."""
    logps, reference = torch.tensor([-3.0, -5.0, -2.0]).double(), torch.tensor([-4.0, -4.0, -4.0]).double()
    r = (0.5 * (logps - reference)).tolist()
    draws = [math.exp(r[0]) / sum(map(math.exp, r)), math.exp(r[1]) / (math.exp(r[1]) + math.exp(r[2]))]
    loss = Objective("sigmoid", 0.5).mean_loss(logps.tolist(), [2, 2, 2], reference.tolist(), [0, 1, 2], 0.0)
    assert loss == pytest.approx(-sum(map(math.log, draws)) / 2)


# ---- the trainer -----------------------------------------------------------------------------------------------------


def trainer_of(tmp_path, data, objective=None, **arguments) -> PolicyTrainer:
    settings = RewardConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, **arguments)
    model = load_policy_model(BASE)
    return PolicyTrainer(model, settings, data, data, load_processor(BASE), objective=objective)


def test_the_first_step_and_swapped_pairs(tmp_path):
    data = load_examples("world:visual?n=24&questions=describe").examples
    trainer = trainer_of(tmp_path, data, max_steps=3, learning_rate=1e-4, logging_steps=1)
    with pytest.raises(ValueError, match="has no reference_logps"):
        trainer.evaluate()
    for examples in (trainer.train_examples, trainer.eval_examples):
        set_reference(examples, answer_logps(trainer.model, trainer.collator, examples))
    trainer.train()
    log = [row for row in trainer.state.log_history if "margin" in row]
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-5) and abs(log[0]["margin"]) < 1e-5
    assert log[0]["logps_chosen"] > log[0]["logps_rejected"]  # the base knows the world
    metrics = trainer.evaluate()
    for example in trainer.eval_examples:
        example.ranks.reverse()
    other = trainer.evaluate()
    assert metrics["eval_accuracy"] > 0.7 and other["eval_accuracy"] == pytest.approx(1 - metrics["eval_accuracy"])
    assert other["eval_logps_chosen"] == pytest.approx(metrics["eval_logps_rejected"], rel=1e-5)


def test_the_picture_decides(tmp_path):
    """With the pictures of other rows the base does not know which description is right."""
    data = load_examples("world:visual?n=60&questions=describe").examples
    model, processor = load_policy_model(BASE).eval(), load_processor(BASE)
    collator = AnswerCollator(processor, model.config)

    def share_right() -> float:
        batch = collator(data)
        with torch.no_grad():
            logps = model(**{key: value for key, value in batch.items() if key not in LOSS_KEYS}).logps
        best, worst = logps[batch["labels"] == 0], logps[batch["labels"] == 1]
        return (best > worst).float().mean().item()

    own = share_right()
    pictures = [example.images for example in data]
    for example, other in zip(data, pictures[1:] + pictures[:1], strict=True):
        example.images[:] = list(other)
    assert own > 0.9 and abs(share_right() - 0.5) < 0.25


# ---- whole runs ------------------------------------------------------------------------------------------------------

RUN = [
    "text.data=world:text?n=40",
    "caption.data=world:caption?n=40",
    "visual.data=world:visual?n=40",
    "batch_size=8",
    "tuning=lora",
    "lora_r=4",
    "trainer.logging_steps=1",
    *QUICK,
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The run of phases 2 and 3."""
    out = tmp_path_factory.mktemp("dpo")
    assert main([f"out={out}", "phase=2,3", *RUN]) == 0
    return out


def test_a_run_leaves_a_language_model(run):
    from transformers import AutoModelForImageTextToText

    folder = run / "phase3-visual"
    record = read_json(folder / "phase.json")
    assert {"loss", "accuracy", "margin", "logps_chosen", "logps_rejected"} <= record.keys()
    logged = [row for row in read_lines(folder / "trainer_log.jsonl") if "margin" in row]
    assert logged and all({"loss", "accuracy", "logps_chosen", "logps_rejected"} <= row.keys() for row in logged)
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    assert plain.config.architectures == ["LlavaForConditionalGeneration"]
    # The plain model's probabilities are those that the run noted of its held-out rows.
    ours = load_policy_model(str(folder)).eval()
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), plain.parameters(), strict=True))
    base = AutoModelForImageTextToText.from_pretrained(BASE, dtype=torch.float32)
    moved = [n for (n, p), q in zip(plain.named_parameters(), base.parameters(), strict=True) if not torch.equal(p, q)]
    assert any("self_attn" in name for name in moved) and any("multi_modal_projector" in name for name in moved)
    assert not any("vision_tower" in name or "lm_head" in name for name in moved)
    assert (folder / "chat_template.jinja").read_text() == (Path(BASE) / "chat_template.jinja").read_text()


def test_two_runs_are_one(run, tmp_path):
    """Phase 2 alone, then phase 3 from its folder, end in the same bytes."""
    assert main([f"out={tmp_path}", "phase=2", *RUN]) == 0
    assert main([f"out={tmp_path}", "phase=2,3", *RUN]) == 0
    for name in ("phase2-caption/adapter/adapter_model.safetensors", "phase3-visual/model.safetensors"):
        assert (tmp_path / name).read_bytes() == (run / name).read_bytes()


def test_a_finished_run_is_not_run_again_and_other_settings_are_refused(run, capsys):
    before = (run / "phase3-visual" / "model.safetensors").stat().st_mtime_ns
    assert "held-out accuracy" in output_of(capsys, main, f"out={run}", "phase=2,3", *RUN)
    assert (run / "phase3-visual" / "model.safetensors").stat().st_mtime_ns == before
    assert "beta" in error_line(capsys, main, f"out={run}", "phase=2,3", *RUN, "beta=0.2")


def test_the_reference_is_kept_and_refused_of_other_weights(run, tmp_path, capsys):
    from rovrm.alignment import reference

    [path] = (run / "phase3-visual" / "reference").iterdir()
    assert reference._read(path, {}) is not None
    with pytest.raises(Exception, match="a reference with other weights; give another out="):
        reference._read(path, {"weights": "others"})
    path = tmp_path / "logps.safetensors"
    path.write_bytes(b"cut off")
    assert reference._read(path, {"weights": "others"}) is None


@pytest.mark.parametrize("loss_type", ["ipo", "simpo", "orpo"])
def test_other_losses_and_the_reference_of_the_base(loss_type, tmp_path):
    words = ["phase=2,3", f"loss_type={loss_type}", "reference=base", "tuning=full", "trainer.max_steps=2"]
    assert main([f"out={tmp_path}", *RUN, *words]) == 0
    kept = tmp_path / "phase3-visual" / "reference"
    assert kept.is_dir() == (loss_type == "ipo")
    assert read_json(tmp_path / "phase3-visual" / "phase.json")["loss"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["center_rewards_coefficient=0.1"], "only be 0"),
        (["lora_dropout=0.1"], "only be 0"),
        (["beta=0"], "above 0"),
        (["loss_type=kto"], "one of sigmoid, ipo, simpo, orpo"),
        (["max_length=40"], "tokens"),
    ],
)
def test_bad_input_gets_an_error_before_the_model_loads(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rovrm.alignment.tuning.load_policy_model", lambda *_, **__: pytest.fail("loaded"))
    words = words + (["long_rows=error"] if words[0].startswith("max_length") else [])
    line = message_of(capsys, main, f"out={tmp_path}", "phase=3", *RUN, *words)
    assert any(part in line for part in message.split("|")), line


def test_reward_models_and_pairs_without_a_common_prompt_are_refused(reward, tmp_path, capsys):
    line = error_line(capsys, main, f"out={tmp_path / 'a'}", f"model={reward}", "phase=3", *RUN)
    assert "is a reward model; give the language model" in line
    rows = [
        {
            "chosen": [{"role": "user", "content": f"A {i}?"}, {"role": "assistant", "content": "Yes."}],
            "rejected": [{"role": "user", "content": f"B {i}?"}, {"role": "assistant", "content": "No."}],
        }
        for i in range(20)
    ]
    data = write_lines(tmp_path / "pairs.jsonl", *rows)
    line = message_of(capsys, main, f"out={tmp_path / 'b'}", "phase=1", f"text.data={data}")
    assert "not one row can be used" in line and "part at message 1" in line, line


def rows_of(answers: list[list[str]], question: str = "What is {} plus 1?", **more: Any) -> list[dict[str, Any]]:
    return [
        {"id": f"row{i}", "prompt": question.format(i), "responses": of_one, "ranks": list(range(len(of_one)))} | more
        for i, of_one in enumerate(answers)
    ]


def test_rows_of_one_name_have_references_of_their_own(tmp_path):
    """Training and held-out files with the same ids and other answers: the first loss is ln 2 all the same."""
    one = write_lines(tmp_path / "train.jsonl", *rows_of([["It is one.", "No."]] * 16))
    two = write_lines(tmp_path / "test.jsonl", *rows_of([["Two it is.", "It is red."]] * 16, "Is {} large?"))
    words = [f"text.data={one}", f"text.eval_data={two}", "text.learning_rate=1e-9", "trainer.logging_steps=1", *QUICK]
    assert main([f"out={tmp_path / 'run'}", f"model={BASE}", "phase=1", "lora_r=4", "batch_size=8", *words]) == 0
    log = [row for row in read_lines(tmp_path / "run" / "phase1-text" / "trainer_log.jsonl") if "margin" in row]
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert read_json(tmp_path / "run" / "phase1-text" / "phase.json")["loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_another_template_under_the_same_name_is_refused(tmp_path, capsys):
    template = tmp_path / "template.jinja"
    template.write_text((Path(BASE) / "chat_template.jinja").read_text())
    words = [f"out={tmp_path / 'run'}", "phase=3", "visual.data=world:visual?n=24", f"chat_template={template}", *QUICK]
    words += [f"model={BASE}", "lora_r=4", "batch_size=8"]
    assert main(words) == 0
    folder = tmp_path / "run" / "phase3-visual"
    assert (folder / "chat_template.jinja").read_text() == template.read_text()
    (folder / "phase.json").unlink()
    shutil.rmtree(folder / "checkpoints")
    template.write_text(template.read_text().replace("USER", "ASSISTANT"))
    assert "a reference with other chat template" in error_line(capsys, main, *words)


def test_a_policy_keeps_the_template_that_it_starts_from(tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text((Path(BASE) / "chat_template.jinja").read_text() + "{# another #}")
    common = [f"model={BASE}", "lora_r=4", "batch_size=8", *QUICK]
    first = [f"out={tmp_path / 'one'}", "phase=1", "text.data=world:text?n=24", f"chat_template={template}"]
    assert main([*first, *common]) == 0
    second = [f"out={tmp_path / 'two'}", "phase=3", "visual.data=world:visual?n=24"]
    assert main([*second, f"init_from={tmp_path / 'one' / 'phase1-text'}", *common]) == 0
    assert (tmp_path / "two" / "phase3-visual" / "chat_template.jinja").read_text() == template.read_text()


def test_adapters_of_the_other_kind(run, tmp_path, capsys):
    """Neither trains what the other wrote; a policy's adapter is merged into a language model."""
    from transformers import AutoModelForImageTextToText

    reward_run = [f"model={BASE}", "phase=2", "caption.data=world:caption?n=24", "tuning=lora", "lora_r=4", *QUICK]
    assert train([f"out={tmp_path / 'reward'}", *reward_run]) == 0
    start = f"init_from={tmp_path / 'reward' / 'phase2-caption'}"
    words = [f"out={tmp_path / 'a'}", f"model={BASE}", "phase=3", "visual.data=world:visual?n=24", *QUICK]
    assert "is the adapter of a reward model" in error_line(capsys, main, *words, start)
    start = f"init_from={run / 'phase2-caption'}"
    assert "without a trained `score`" in error_line(capsys, train, *words, start)
    assert merge([f"model={run / 'phase2-caption'}", f"out={tmp_path / 'merged'}"]) == 0
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert plain.config.architectures == ["LlavaForConditionalGeneration"]


@pytest.mark.parametrize("more", [{"margin": 1.0}, {"responses": ["a", "b", "c"], "ranks": [0, 1, 2]}])
def test_ipo_takes_pairs_alone(tmp_path, capsys, more):
    data = write_lines(tmp_path / "rows.jsonl", *rows_of([["It is one.", "No."]] * 16, **more))
    words = ["phase=1", f"text.data={data}", "loss_type=ipo", f"model={BASE}", "lora_r=4", *QUICK]
    assert "ipo takes pairs without a margin" in error_line(capsys, main, f"out={tmp_path / 'run'}", *words)


def test_select_prepares_a_run_of_dpo(tmp_path, capsys):
    """Also where a key of rovrm.dpo alone is given, as its recipes do."""
    words = [f"out={tmp_path}", f"model={BASE}", "phase=2,3", "caption.data=world:caption?n=40", "lora_r=4", *QUICK]
    words += ["visual.data=world:visual?n=40", "caption.select=knn", "caption.n=16", "selection.width=128"]
    words += ["selection.warmup_target=16", "selection.warmup_pool=16", "beta=0.2", "batch_size=8"]
    assert select([*words, "selection.learning_rate=1e-3"]) == 0
    assert "its rows were chosen before" in output_of(capsys, main, *words, "selection.learning_rate=1e-3")


def test_two_processes_match_one(tmp_path):
    """The same global batch, and an uneven last batch: losses and log-probabilities agree."""
    common = ["phase=3", f"model={BASE}", "visual.data=world:visual?n=59", "batch_size=4", "trainer.logging_steps=1"]
    common += ["visual.eval_data=world:visual?n=24&seed=9", "visual.learning_rate=2e-4", *QUICK]
    assert main([*common, f"out={tmp_path / 'one'}", "trainer.gradient_accumulation_steps=2"]) == 0
    assert "2 processes" in two_processes(main, [*common, f"out={tmp_path / 'two'}"], tmp_path / "log.txt")
    logs = [read_lines(tmp_path / name / "phase3-visual" / "trainer_log.jsonl") for name in ("one", "two")]
    one, two = ([entry for entry in log if "loss" in entry] for log in logs)
    assert len(one) == len(two) > 5 and one[-1]["loss"] < 0.69 < one[0]["loss"]
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "accuracy", "margin", "logps_chosen", "logps_rejected", "num_tokens"):
            assert a[key] == pytest.approx(b[key], abs=1e-3), (a["step"], key)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=2e-3), a["step"]
    records = [read_json(tmp_path / name / "phase3-visual" / "phase.json") for name in ("one", "two")]
    assert records[0]["loss"] == pytest.approx(records[1]["loss"], abs=1e-3)


@pytest.mark.parametrize("strategy", ["best_worst", "ranked"])
def test_what_rank_writes_is_trained_on(tmp_path, strategy):
    """Pairs and ranked lists of scored answers, as rovrm.bon leaves them."""
    rows = []
    for i, example in enumerate(load_examples("world:visual?n=24&questions=describe").examples):
        example.images[0].open().save(tmp_path / f"{i}.png")
        question = example.prompt[-1]["content"]
        text = question if isinstance(question, str) else next(part["text"] for part in question if "text" in part)
        rows.append(
            {
                "id": str(i),
                "prompt": text,
                "images": [str(tmp_path / f"{i}.png")],
                "candidates": [*example.responses, "I see nothing."],
                "scores": [2.0, 0.5, -1.0],
            }
        )
    scored, ranked = write_lines(tmp_path / "bon.jsonl", *rows), tmp_path / "ranked.jsonl"
    assert rank([f"in={scored}", f"out={ranked}", f"strategy={strategy}"]) == 0
    words = ["phase=3", f"visual.data={ranked}", "eval_fraction=0.2", "batch_size=8", "lora_r=4", *QUICK]
    assert main([f"out={tmp_path / 'run'}", f"model={BASE}", *words]) == 0
    record = read_json(tmp_path / "run" / "phase3-visual" / "phase.json")
    assert record["n_train"] + record["n_held_out"] == 24
    assert record["logps_chosen"] > record["logps_rejected"]
