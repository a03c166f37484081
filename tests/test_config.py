"""Settings: every form a key may take on the command line and in a recipe, and one line for every mistake."""

import os
import sys
from pathlib import Path

import helpers
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from rovrm.__main__ import main as rovrm_main
from rovrm.common.errors import UserError
from rovrm.settings import keys
from rovrm.settings.command_line import parse, run, save
from rovrm.settings.fields import settings
from rovrm.settings.hints import ELSEWHERE, TRAINER
from rovrm.settings.keys import CsrConfig, DpoConfig, MergeConfig, ScoreConfig, TrainConfig, with_rates
from rovrm.settings.phases import PHASES, parse_phases
from rovrm.settings.trainer_keys import check_trainer_keys

RECIPES = sorted((helpers.ROOT / "recipes").rglob("*.yaml"))


def train(*argv: str) -> TrainConfig:
    return parse(TrainConfig, list(argv), "train")


def refused(*argv: str, config_class: type = TrainConfig) -> str:
    return helpers.refused(lambda: parse(config_class, list(argv), "command"))


@pytest.fixture
def recipe(tmp_path: Path):
    def write(text: str) -> str:
        (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
        return f"recipe={tmp_path / 'recipe.yaml'}"

    return write


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1", [1]), ("1..3", [1, 2, 3]), ("1,3", [1, 3]), ("3,1,1", [1, 3]), ("2..2", [2])]
    + [("text", [1]), ("text,visual", [1, 3]), ("caption..visual", [2, 3]), (" 1 , 2", [1, 2])],
)
def test_parse_phases(text: str, numbers: list[int]) -> None:
    assert [phase.number for phase in parse_phases(text)] == numbers
    assert train(f"phase={text}").phase == text


@pytest.mark.parametrize("text", ["", "0", "4", "1..4", "3..1", "1..", "..", "1-3", "1,", "images", "1...3", "1..2..3"])
def test_parse_phases_refuses(text: str) -> None:
    with pytest.raises(UserError, match=r"phase: got .* takes 1, 2, 3"):
        parse_phases(text)
    assert repr(text) in refused(f"phase={text}")


def test_defaults() -> None:
    config = train()
    assert (config.phase, config.out, config.model) == ("1..3", "runs/demo", "")
    assert config.text.n is None and config.text.data == [] and config.trainer == {}
    assert config.caption.caption_template == "Image description: {caption}\n\n"
    assert train().text.data is not config.text.data


@pytest.mark.parametrize(
    ("tuning", "rates"), [("lora", [3e-4] * 3), ("qlora", [3e-4] * 3), ("full", [2e-5, 1e-6, 1e-6])]
)
def test_rates_by_tuning(tuning: str, rates: list[float]) -> None:
    """The paper's rates are those of full fine-tuning; an adapter does not move by them."""
    config = with_rates(train(f"tuning={tuning}"))
    assert [config.section(phase).learning_rate for phase in PHASES] == rates
    config = with_rates(train(f"tuning={tuning}", "caption.learning_rate=7e-5"))
    assert [config.section(phase).learning_rate for phase in PHASES] == [rates[0], 7e-5, rates[2]]


def test_values_below_the_recipe(tmp_path: Path) -> None:
    """The command line wins over the recipe, and both over `below`; what none of them gives has its default."""
    recipe = tmp_path / "a.yaml"
    recipe.write_text("text: {n: 2, epochs: 2}\n")
    below = {"seed": 1, "text": {"n": 1, "epochs": 1.5, "data": ["a.jsonl", "b.jsonl"]}}
    config = parse(TrainConfig, [f"recipe={recipe}", "text.n=3"], "train", below)
    assert (config.text.n, config.text.epochs, config.seed) == (3, 2.0, 1)
    assert config.text.data == ["a.jsonl", "b.jsonl"] and config.text.learning_rate is None
    assert below == {"seed": 1, "text": {"n": 1, "epochs": 1.5, "data": ["a.jsonl", "b.jsonl"]}}


@pytest.mark.parametrize(
    "argv",
    [
        ["batch_tokens=99", "dry_run=true"],
        ["--batch_tokens", "99", "--dry_run"],
        ["--dry-run", "--batch-tokens=99"],
        ["--dry-run", "batch-tokens=99"],
        ["--dry-run", "yes", "--batch-tokens", "99"],
        ["batch_tokens=7", "dry_run=false", "--batch-tokens", "99", "--dry-run=on"],
    ],
)
def test_forms_are_alike(argv: list[str]) -> None:
    config = train(*argv)
    assert config.batch_tokens == 99 and config.dry_run is True


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        ("[a,b]", ["a", "b"]),
        ("[a, b]", ["a", "b"]),
        ("", []),
        ("[]", []),
        ("hub/set?n=5&split=train", ["hub/set?n=5&split=train"]),
        ("[hub/set?n=5&split=x,b.jsonl]", ["hub/set?n=5&split=x", "b.jsonl"]),
        ("hub/set?split=train[:10%],b", ["hub/set?split=train[:10%]", "b"]),
        ('"one, file.jsonl",b', ["one, file.jsonl", "b"]),
        ("${HOME}/a.jsonl", ["${HOME}/a.jsonl"]),
    ],
)
def test_lists(text: str, data: list[str]) -> None:
    assert train(f"text.data={text}").text.data == data
    assert train("--text.data", text).text.data == data


def test_sections_and_mappings() -> None:
    config = train(
        *("text.n=20", "--visual.n", "none", "caption.captions=c.jsonl", "text.columns.prompt=the-question"),
        *("--trainer.gradient-checkpointing", "trainer.weight_decay=1e-2", "trainer.report_to=[]"),
        *("trainer.max_steps=-1", "trainer.run_name=a #1", "trainer.fsdp_config.min_num_params=5"),
        *("--trainer.bf16", "phase=1"),
    )
    assert config.text.n == 20 and config.visual.n is None and config.caption.captions == "c.jsonl"
    assert config.text.columns == {"prompt": "the-question"}
    assert config.trainer == {
        "gradient_checkpointing": True,
        "weight_decay": 0.01,
        "report_to": [],
        "max_steps": -1,
        "run_name": "a #1",
        "fsdp_config": {"min_num_params": 5},
        "bf16": True,
    }
    assert config.phase == "1"
    assert train("trainer={max_steps: 3}").trainer == {"max_steps": 3}


def test_negative_number_after_a_key() -> None:
    assert train("--trainer.max-steps", "-1").trainer == {"max_steps": -1}
    assert refused("--seed", "-1") == "seed: got '-1', takes a whole number from 0 to 4294967295"


@pytest.mark.parametrize(
    "text", ["${no}", "${", "a\\${b}", "\\\\${c}/d", "${oc.env:HOME}", "no", "1e5", "{x}", "[y]", "\x85b"]
)
def test_text_is_literal(text: str, tmp_path: Path) -> None:
    config = train(f"image_root={text}", f"text.columns.prompt={text}")
    assert config.image_root == text and config.text.columns == {"prompt": text}
    save(config, tmp_path / "config.yaml")
    assert train(f"recipe={tmp_path / 'config.yaml'}") == config


def test_recipe_below_command_line(recipe) -> None:
    text = "{n: 5, learning_rate: 1e-5, data: ['x?n=5&split=y', b]}"
    path = recipe(f"phase: 1\ntext: {text}\ntrainer:\n  bf16: true\n")
    for argv in (["text.n=7", path], [path, "text.n=7"], ["--recipe", path.removeprefix("recipe="), "--text.n=7"]):
        config = train(*argv, "trainer.weight_decay=.1")
        assert (config.phase, config.text.n, config.text.learning_rate) == ("1", 7, 1e-5)
        assert config.text.data == ["x?n=5&split=y", "b"]
        assert config.trainer == {"bf16": True, "weight_decay": 0.1}


def test_recipe_accepts(recipe) -> None:
    config = train(recipe("text:\nvisual: {data: 'a,b', n: null}\ntrainer:\nbatch-size: 3\ndry_run: yes\n"))
    assert train(recipe("text:\n  data:\n  - x?n=5&split=y\n  - b\n")).text.data == ["x?n=5&split=y", "b"]
    assert config.visual.data == ["a", "b"] and config.visual.n is None and config.trainer == {}
    assert config.batch_size == 3 and config.dry_run and config.text == TrainConfig().text
    assert train(recipe("")) == TrainConfig()
    assert train(recipe("out: 2026-01-31\nimage_root: 1:30\n")).out == "2026-01-31"
    assert train(recipe("trainer: {lr_scheduler_kwargs: {a: 2e-5}}")).trainer == {"lr_scheduler_kwargs": {"a": 2e-5}}


@pytest.mark.parametrize("word", ["no", "off", "yes", "On", "1e5", "010", "1:30", "1_000", "true", "2026-01-31"])
def test_a_field_of_text_takes_every_word_as_it_stands(recipe, tmp_path: Path, word: str) -> None:
    """YAML reads most of these as booleans, numbers or dates, quotes or not: the field decides."""
    quotes = f"out: '{word}'\ntext: {{columns: {{prompt: '{word}'}}, data: ['{word}']}}\n"
    for argv in ([recipe(quotes.replace("'", ""))], [recipe(quotes)], [f"out={word}", f"text.columns.prompt={word}"]):
        config = train(*argv, f"text.data={word}")
        assert (config.out, config.text.columns, config.text.data) == (word, {"prompt": word}, [word])
        save(config, tmp_path / "config.yaml")
        assert train(f"recipe={tmp_path / 'config.yaml'}") == config


@pytest.mark.parametrize(("word", "flag"), [("yes", True), ("On", True), ("no", False), ("OFF", False), ("1", True)])
def test_a_boolean_takes_the_same_words(recipe, word: str, flag: bool) -> None:
    for config in (train(f"dry_run={word}"), train(recipe(f"dry_run: {word}")), train("--dry-run", word)):
        assert config.dry_run is flag


def test_words_under_trainer_are_what_transformers_takes(recipe) -> None:
    """TrainingArguments knows which of its fields hold text; what lies inside of them is YAML."""
    kept = {"save_strategy": "no", "eval_strategy": "no", "run_name": "off", "use_cpu": False, "fsdp": False}
    kept |= {"gradient_checkpointing_kwargs": {"use_reentrant": False, "a": "no"}, "push_to_hub": True, "debug": False}
    text = "save_strategy: no, eval_strategy: 'no', run_name: off, use_cpu: no, fsdp: no, push_to_hub: yes, debug: off"
    text = f"{{{text}, gradient_checkpointing_kwargs: {{use_reentrant: no, a: 'no'}}}}"
    assert train(recipe(f"trainer: {text}")).trainer == train(f"trainer={text}").trainer == kept
    one_by_one = [f"trainer.{key}={'no' if value is False else value}" for key, value in kept.items()]
    one_by_one[5:7] = ["trainer.gradient_checkpointing_kwargs={use_reentrant: off, a: 'no'}", "trainer.push-to-hub=yes"]
    assert train(*one_by_one).trainer == kept
    assert train("--trainer.save-strategy", "no", "--trainer.use-cpu").trainer == {
        "save_strategy": "no",
        "use_cpu": True,
    }
    check_trainer_keys(kept)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["batch_token=99"], "unknown key batch_token (got '99'): did you mean batch_tokens or batch_size?"),
        (["--n", "8"], "unknown key n (got '8'): did you mean text.n or caption.n or visual.n?"),
        (["text.captions=x"], "unknown key text.captions (got 'x'): did you mean caption.captions?"),
        (["--qqq"], "unknown key qqq (got ''): --help lists the keys"),
        (["text.n=x"], "text.n: got 'x', takes a whole number above 0 or null"),
        (["text.n=0"], "text.n: got '0', takes a whole number above 0 or null"),
        (["batch-size=1.5"], "batch_size: got '1.5', takes a whole number above 0"),
        (["batch_size="], "batch_size: got '', takes a whole number above 0"),
        (["text.learning_rate=0"], "text.learning_rate: got '0', takes a number above 0 or null"),
        (["text.learning_rate=nan"], "text.learning_rate: got 'nan', takes a number above 0 or null"),
        (["text.epochs=inf"], "text.epochs: got 'inf', takes a number above 0"),
        (["eval_fraction=5%"], "eval_fraction: got '5%', takes a number from 0 to 1"),
        (["max_bad_fraction=1.01"], "max_bad_fraction: got '1.01', takes a number from 0 to 1"),
        (["rows=best"], "rows: got 'best', takes one of auto, shared, separate"),
        (["text.data=a\nb"], "text.data: got 'a\\nb', takes a list a,b or [a,b]"),
        (["dry_run=2"], "dry_run: got '2', takes true or false"),
        (["text.columns=5"], "text.columns: got '5', takes values by name, text.columns.NAME=VALUE"),
        (["trainer=x"], "trainer: got 'x', takes values by name, trainer.NAME=VALUE"),
        (["model=???"], "model: got '???', takes text"),
        (["--out"], "--out: got no value, takes text"),
        (["--out", "--dry-run"], "--out: got no value, takes text"),
        (["--recipe"], "--recipe: got no value, takes a file"),
        (["run.yaml"], "'run.yaml' is not a setting: write recipe=run.yaml (--help lists the keys)"),
        (["-n=5"], "'-n=5' is not a setting: write key=value or --key value (--help lists the keys)"),
        (["--dry-run", "maybe"], "'maybe' is not a setting: write key=value or --key value (--help lists the keys)"),
        (["recipe=/no/such.yaml"], "recipe /no/such.yaml cannot be read: No such file or directory"),
    ],
)
def test_refused_on_the_command_line(argv: list[str], message: str) -> None:
    assert refused(*argv) == message


def test_everything_wrong_is_said_at_once(recipe) -> None:
    text = "batch_token: 9\ntext: {m: 5}\n"
    with pytest.raises(UserError) as caught:
        train(recipe(text), "--modle", "x", "text.n=y", "stray", "--out", "--seed=-1", "max_length=9", "--modle", "x")
    first, *lines = str(caught.value).split("\n  ")
    assert first == "7 settings are wrong:"
    assert [line.split(":")[0].split(" (got")[0] for line in lines] == [
        "'stray' is not a setting",
        "--out",
        "unknown key batch_token",
        "unknown key text.m",
        "unknown key modle",
        "text.n",
        "seed",
    ]
    with pytest.raises(UserError, match=r"(?s)2 settings are wrong:.*trainer\.bf16 is set by rovrm.*key trainer\.qqqq"):
        check_trainer_keys({"bf16": True, "max_steps": 5, "qqqq": 1})


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--model_name_or_path", "x"], "unknown key model_name_or_path (got 'x'): here it is model"),
        (["--dataset-name=a/b"], "unknown key dataset-name (got 'a/b'): here it is visual.data (text.data and"),
        (["--train_file", "a.jsonl"], "(got 'a.jsonl'): here it is visual.data"),
        (["--validation_file=b"], "here it is visual.eval_data"),
        (["--dataset_train_split", "train"], "here it is visual.data=NAME?split=S"),
        (["--output_dir", "out"], "here it is out"),
        (["--per_device_train_batch_size", "4"], "here it is batch_size (prompts) and batch_tokens"),
        (["--max_seq_length", "4"], "here it is max_length"),
        (["--use_peft"], "(got ''): here it is tuning=lora|full"),
        (["--load_in_4bit", "true"], "(got 'true'): here it is tuning=qlora"),
        (["--gradient-accumulation-steps", "4"], "here it is trainer.gradient_accumulation_steps"),
        (["--config", "a.yaml"], "here it is recipe=FILE"),
        (["visual.columns.prompt="], "visual.columns.prompt: got nothing, takes a name, as visual.columns.prompt=NAME"),
        (["--text.columns.chosen"], "--text.columns.chosen: got no value, takes values by name"),
    ],
)
def test_keys_of_other_tools(argv: list[str], hint: str) -> None:
    assert hint in refused(*argv)


def test_hints_name_keys_that_the_command_has() -> None:
    assert refused("--dataset", "a", config_class=ScoreConfig) == "unknown key dataset (got 'a'): here it is in"
    assert "did you mean" not in refused("--lora_rank", "8", config_class=ScoreConfig)
    known = {setting.key for setting in settings(TrainConfig)}
    for name in [*ELSEWHERE, *TRAINER]:
        assert name not in known, f"{name} is a key of ours"


def test_section_is_not_a_key() -> None:
    assert refused("text=a.jsonl").startswith("text: got 'a.jsonl', takes its own keys: text.data, text.eval_data, ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", ", line 2: expected ',' or ']', but got '<stream end>'"),
        ("text:\n  data: [x?n=5, b]", ", line 2: expected ',' or ']', but got '?' (inside [ ] put quotes around"),
        ("phase: 1\nphase: 2\n", ", line 2: key phase is given twice"),
        ("- phase\n", ", line 1: takes lines of key: value, got ['phase']"),
        ("a: !!python/object:os.system x\n", ", line 1: could not determine a constructor"),
        ("a: \0\n", " is not YAML: unacceptable character"),
        ("txt: {n: 5}\n", "unknown key txt (got {'n': 5}): did you mean"),
        ("text: {m: 5}\n", "unknown key text.m (got 5): did you mean"),
        ("text: 5\n", "text: got 5, takes its own keys: text.data"),
        ("seed: true\n", "seed: got true, takes a whole number from 0 to 4294967295 (in "),
        ("seed: 1.5\n", "seed: got 1.5, takes"),
        ("seed:\n", "seed: got null, takes"),
        ("out: [a]\n", "out: got ['a'], takes text"),
        ("text: {data: {a: b}}\n", "text.data: got {'a': 'b'}, takes a list a,b or [a,b]"),
        ("text: {data: [a, null]}\n", "text.data: got ['a', None], takes a list a,b or [a,b]"),
        ("phase: [1, 3]\n", "phase: got [1, 3], takes 1, 2, 3, a range 1..3, a list 1,3"),
        ("trainer: &t {a: *t}\n", "line 1: an alias inside an anchored value; write the value out"),
    ],
)
def test_refused_in_a_recipe(recipe, text: str, message: str) -> None:
    line = refused(recipe(text))
    assert message in line and "recipe.yaml" in line


def test_recipe_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00a")
    assert "r.yaml" in refused(f"recipe={tmp_path / 'r.yaml'}")
    assert refused(f"recipe={tmp_path}") == f"recipe {tmp_path} cannot be read: Is a directory"


def test_save_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/config.yaml cannot be written: "):
        save(train(), tmp_path / "file" / "config.yaml")


def test_score_and_merge_keys(tmp_path: Path) -> None:
    config = parse(ScoreConfig, ["--model", "m", "in=a.jsonl", "--out", "b.jsonl", "--normalize"], "score")
    assert (config.input, config.output, config.normalize, config.max_length) == ("a.jsonl", "b.jsonl", True, 0)
    save(config, tmp_path / "config.yaml")
    assert parse(ScoreConfig, [f"recipe={tmp_path / 'config.yaml'}"], "score") == config
    message = refused("model=m", "out=b", config_class=ScoreConfig)
    assert message == "in: got nothing, takes text (JSONL file of prompts, images and responses)"
    assert "did you mean in?" in refused("input=a", config_class=ScoreConfig)
    merged = parse(MergeConfig, ["model=m", "out=o", "save_dtype=bfloat16"], "merge")
    assert merged == MergeConfig(model="m", out="o", save_dtype="bfloat16")


def test_save_round_trip_and_no_leftovers(tmp_path: Path) -> None:
    config = train("text.data=a?n=5&split=x,b", "trainer.x={a: [1e-5, null, '1e-5', 'no']}", "out=1e5")
    config.caption.caption_template = "Bild: {caption} – é\n\n"
    save(config, tmp_path / "new" / "config.yaml")
    save(config, tmp_path / "new" / "config.yaml")
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["config.yaml"]
    assert train(f"recipe={tmp_path / 'new' / 'config.yaml'}") == config
    assert config.trainer == {"x": {"a": [1e-5, None, "1e-5", "no"]}}


SECTIONS = (keys.PhaseConfig, keys.CaptionConfig, keys.SelectionConfig)
COMMANDS = [one for name, one in vars(keys).items() if name.endswith("Config") and one not in SECTIONS]
KEYS = [s.key for s in settings(TrainConfig)]


@effort(max_examples=40, deadline=None)
@given(st.sampled_from([*KEYS, "trainer.a", "text.columns.b"]), st.text(max_size=12))
def test_any_value_round_trips_or_is_refused(tmp_path_factory, key: str, value: str) -> None:
    try:
        config = train(f"{key}={value}")
    except UserError:
        return
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    save(config, path)
    again = train(f"recipe={path}")
    assert again == config or "nan" in value.lower()


@pytest.mark.parametrize("config_class", COMMANDS)
def test_help_names_every_key_with_a_comment(config_class: type, capsys) -> None:
    with pytest.raises(SystemExit) as left:
        parse(config_class, ["nonsense", "--help"], "python -m rovrm.x")
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m rovrm.x [recipe=FILE.yaml]")
    for setting in settings(config_class):
        starts = (f"  {setting.key}=", f"  {setting.key} ")
        line = next(line for line in out.splitlines() if line.startswith(starts))
        assert setting.comment and setting.comment in line and setting.takes in line


def test_run_prints_the_message_and_returns_2(capsys) -> None:
    def main(argv: list[str]) -> None:
        config = train(*argv)
        raise UserError(f"{config.out}\nis full")

    assert run(main, ["out=x"], "python -m rovrm.train") == 2
    assert capsys.readouterr().err == "python -m rovrm.train: error: x\\nis full\n"
    assert run(main, ["outt=x"], "p") == 2
    assert capsys.readouterr().err == "p: error: unknown key outt (got 'x'): did you mean out?\n"
    assert run(lambda argv: None, [], "p") == 0 and run(lambda argv: 3, [], "p") == 3


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_parses(path: Path) -> None:
    if path.stem.endswith("csr"):
        from rovrm.alignment.self_rewarding import dpo_words  # here, because it imports transformers

        config = parse(CsrConfig, [f"recipe={path}"], "command")
        trained = parse(DpoConfig, dpo_words(config, config.policy, Path(config.out)), "command")
    else:
        config = parse(DpoConfig if path.stem.endswith("dpo") else TrainConfig, [f"recipe={path}"], "command")
        trained = config
    assert trained.phases and config.out == f"runs/{path.stem}"
    check_trainer_keys(trained.trainer)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("warmup_step", "no field of TrainingArguments; did you mean trainer.warmup_steps"),
        ("qqqq", "unknown key trainer.qqqq (got 1): no field of TrainingArguments"),
        ("output_dir", "trainer.output_dir is set by rovrm: set out instead"),
        ("per_device_train_batch_size", "set batch_size and batch_tokens instead"),
        ("learning_rate", "set text.learning_rate, caption.learning_rate, visual.learning_rate instead"),
        ("num_train_epochs", "set text.epochs, caption.epochs, visual.epochs instead"),
        ("label_names", "trainer.label_names is set by rovrm"),
        ("train_sampling_strategy", "batches hold rows of like lengths already, leave it out"),
        ("dataloader_drop_last", "every row trains once an epoch, in batches filled up to batch_tokens, leave it out"),
    ],
)
def test_check_trainer_keys(key: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_trainer_keys({"logging_steps": 5, key: 1})
    assert message in str(caught.value)
    check_trainer_keys({"logging_steps": 5, "gradient_checkpointing": True, "deepspeed": None})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1]: 2", "line 1: a key is a text"),
        ("{a: 1}: 2", "line 1: a key is a text"),
        ("? [a, b]\n: 1", "line 1: a key is a text"),
        ("out: !!timestamp x", "is not YAML"),
        ("out: !!timestamp 2026-01-31", "out: got 2026-01-31, takes text"),
        ("out: !!int x", "is not YAML"),
        ("trainer: {a: " + "[" * 300 + "]" * 300 + "}", ""),
        ("trainer: " + "{a: " * 400 + "1" + "}" * 400, ""),
        ("out: " + "[" * 5000, "is not YAML"),
        ("seed: " + "9" * 5000, "is not YAML"),
    ],
)
def test_recipes_that_are_odd(tmp_path, text: str, told: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    try:
        train(f"recipe={tmp_path}/a.yaml")
    except UserError as error:
        assert "a.yaml" in str(error) and told in str(error)
    else:
        assert not told


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000, "[!!timestamp x]", "{[1]: 2}", "!!timestamp x", "a\nb\x1b"])
def test_words_that_are_odd(value: str, capsys) -> None:
    for key in ("trainer.max_steps", "n", "seed", "text.data", "text.columns.a", "lora_dropout", "a\nb"):
        status = run(lambda argv: train(*argv) and 0, [f"{key}={value}"], "x")
        told = capsys.readouterr().err.removesuffix("\n")
        assert status in (0, 2) and told.isprintable() and len(told) < 2100


def test_nested_aliases_are_refused_at_once(tmp_path: Path) -> None:
    """Seven lines of nine each stand for millions of values."""
    lines = ["  a0: &a0 [1, 1, 1]"]
    lines += [f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 8)]
    recipe = tmp_path / "r.yaml"
    recipe.write_text("trainer:\n" + "\n".join(lines))
    with pytest.raises(UserError, match="line 3: an alias inside an anchored value; write the value out"):
        train(f"recipe={recipe}")
    recipe.write_text("text: &base {n: 3, epochs: 2}\ncaption: *base\n")
    assert train(f"recipe={recipe}").caption.n == 3


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch, capsys):
    """As `rovrm --help | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert rovrm_main(["--help"]) == 141
        monkeypatch.undo()
    assert capsys.readouterr().err == ""
