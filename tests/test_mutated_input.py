"""Whatever a row, an image, a setting or a request holds: the project's own errors, one line each, and no others.

    pytest tests/test_mutated_input.py              # a few thousand cases
    pytest -m slow tests/test_mutated_input.py      # 100,000, through the same functions

Each kind of input starts from what is right and is changed a little: keys, values, types, lengths, characters, bytes.
A case may take neither 10 seconds nor, together with all others of its kind, a gigabyte.
"""

import base64
import copy
import json
import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from helpers import encoded, nested, write_lines
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from PIL import Image

from rovrm import RewardScorer, rank, score
from rovrm.best_of_n.candidates import load_candidates
from rovrm.common.errors import LONGEST, UserError
from rovrm.common.files import write_jsonl
from rovrm.data import sources
from rovrm.data.bad_rows import BadRow
from rovrm.data.captions import load_captions, with_caption
from rovrm.data.formats import READERS
from rovrm.data.images import FORMATS, ImageRef, find_image
from rovrm.data.loading import load_examples
from rovrm.data.prompts import as_example
from rovrm.data.reader import read_row
from rovrm.settings.command_line import parse, run, save
from rovrm.settings.keys import MAX_PIXELS, BonConfig, RankConfig, ScoreConfig, ServeConfig, TrainConfig
from rovrm.training.checks import check_responses

SECONDS, BYTES = 10, 2**30
SLOW = 35  # times as many cases


# ---- what is right ---------------------------------------------------------------------------------------------------

SAY = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
TURNS = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cup."}]
PAIR = {"chosen": "A cup.", "rejected": "A dog."}
ANSWER, OTHER = ([{"role": "assistant", "content": text}] for text in PAIR.values())
RATINGS = {
    name: {"Rating": "4"}
    for name in ("Helpfulness", "Ethical Considerations", "Visual Faithfulness", "instruction_following")
}
COMPLETIONS = [
    {"response": "A cup.", "overall_score": 8.0, "annotations": RATINGS},
    {"response": "A dog.", "overall_score": 3.5, "annotations": RATINGS | {"Helpfulness": {"Rating": "1"}}},
]
SCORED = {"score_chosen": 8.0, "score_rejected": 2.0}
TALK = "\n\nHuman: What is it?\n\nAssistant:"
RIGHT: dict[str, dict[str, Any]] = {
    "ultrafeedback": {"instruction": "What is it?", "completions": COMPLETIONS},
    "ultrafeedback_binarized": {"prompt": "What?", "chosen": ANSWER, "rejected": OTHER} | SCORED,
    "rlaif-v": {"ds_name": "x", "idx": 3, "image": "a.png", "question": "What is it?"} | PAIR,
    "rlhf-v": {"ds_name": "x", "image": "a.png", "text": json.dumps({"question": "What?"} | PAIR)},
    "llava-human-preference": {
        "conversations": TURNS, "image": "a.png", "output_1": TURNS[1], "output_2": TURNS[1], "preference": 2,
    },
    "vlfeedback": {"prompt": "What is it?", "image": "a.png", "completions": COMPLETIONS},
    "vision-feedback-mix": {
        "conversations": str([TURNS[0], {"from": "gpt", "preference_values": ["A cup.", "A dog."]}]),
        "origin_pre_dataset": "x", "image": "a.png",
    },
    "ms-swift": {"messages": TURNS, "rejected_response": "No.", "images": ["a.png"]},
    "sharegpt-ranking": {"conversations": TURNS[:1], "chosen": TURNS[1], "rejected": TURNS[1], "images": ["a.png"]},
    "rovrm-ranked": {"conversations": [TURNS[0], {"from": "gpt", "value": ["A.", "B.", "C."]}], "image": "a.png"},
    "ranked": {"prompt": SAY, "images": ["a.png"], "responses": ["A.", "B."], "scores": [1.0, 0.5], "ranks": [0, 1]},
    "two-outputs": {"input": "What is it?", "output_1": "A.", "output_2": "B.", "label": 1.5, "system": "Be brief."},
    "hh-rlhf": {"chosen": f"{TALK} A cup.", "rejected": f"{TALK} A dog."},
    "trl": {"prompt": SAY, "chosen": ANSWER, "rejected": OTHER, "images": ["a.png"], "margin": 0.5, "caption": "A."},
    "plain": {"instruction": "Look:", "input": "what?", "id": 7, "source": "x", "caption": ["A red cup."]} | PAIR,
}  # fmt: skip


def test_every_reader_has_a_right_row(folder: Path) -> None:
    assert RIGHT.keys() == READERS.keys()
    for name, row in RIGHT.items():
        assert len(read_row(name, row, finder(folder)).responses) >= 2


# ---- what is changed -------------------------------------------------------------------------------------------------


TEXTS = [
    "", " ", "\n", "a.png", "\0", "~", "~\0", "~\ud800/a.png", "\ud800", "half \udc80", "<image>", "<image 2>",
    f"<image {'9' * 5000}>", "<image \u0663>", "<video>", "https://x.org/a.png", "data:image/png;base64,AAAA",
    "a" * 5000 + ".png", "../" * 500 + "a.png", "/proc/self/mem", "clip.mp4", "9" * 5000, "[" * 3000, "{'a': 1}",
    "[1, 2]", "null", "N/A", "nan", "1e999", "\u202etxt", "\r\n\x1b[31mred\x07", "\N{GRINNING FACE}" * 40, "</s>",
    "Part0OfTheConversation", "word " * 3000, "user", "\n\nHuman: a\n\nAssistant: b", "${a}", "???",
]  # fmt: skip
JSON_VALUES = [
    None, True, False, 0, -1, 5, 2**64, 10**400, 0.5, -0.0, math.nan, math.inf, 1e308, [], {}, [[]], [None], [5], ["a"],
    [{}], [{"type": "text"}], [{"type": "text", "text": 5}], [{"type": "image", "image": 5}], [{"type": ["a"]}],
    [{"type": "image", "image_url": {"url": ["a"]}}], {"role": ["user"], "content": "a"}, {"role": "user"},
    {"role": "assistant", "content": [5, "a"]}, {"bytes": None, "path": "~\0.png"}, {"bytes": "a", "path": 5},
    {"url": None}, {"": ""}, {"a": [1, {"b": None}]}, nested(300), ["a"] * 300, {f"k{i}": i for i in range(100)},
]  # fmt: skip
OTHERS: list[Callable[[], Any]] = [  # what no JSON holds
    lambda: 10**5000, lambda: b"bytes", partial(nested, 3000), tuple, lambda: ("a", "b"), lambda: {1: 2},
    lambda: {("a",): 1}, lambda: {None: None}, lambda: {1, 2}, object,
]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a value."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(found) < 200:
        container = waiting.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], (dict, list)):
                waiting.append(container[key])
    return found


@st.composite
def mutated(draw: Callable[..., Any], right: dict[str, Any], values: Any) -> dict[str, Any]:
    """The dictionary with one to three changes, each somewhere inside it."""
    row = copy.deepcopy(right)
    for _ in range(draw(st.integers(1, 3))):
        found = places(row)
        key: Any
        container, key = draw(st.sampled_from(found)) if found else (row, "a")
        how = draw(st.integers(0, 7))
        old = container[key] if found else None
        if how == 0 and found:
            del container[key]
        elif how == 1 and isinstance(container, dict):
            container[draw(st.sampled_from(TEXTS) | st.text(max_size=5))] = container.pop(key, None)
        elif how == 2 and isinstance(container, dict):  # a column more
            container[draw(st.sampled_from(NAMES))] = draw(values)
        elif how == 3:
            container[key] = [old] * draw(st.sampled_from((1, 2, 70)))
        elif how == 4 and isinstance(old, str):
            cut = draw(st.integers(0, len(old)))
            container[key] = old[:cut] + draw(st.sampled_from(TEXTS)) + old[cut:]
        elif how == 5 and isinstance(old, str):
            container[key] = old[draw(st.integers(0, len(old))) :]
        elif how == 6 and isinstance(container, list):
            container.insert(key, draw(values))
        else:
            container[key] = draw(values)
    return row


# Made anew each time: a later change may reach inside.
MADE = st.sampled_from([json.dumps(value) for value in JSON_VALUES]).map(json.loads)
JSONS = MADE | st.sampled_from(TEXTS) | st.text(max_size=20) | st.integers() | st.floats()
ANYTHING = JSONS | st.sampled_from(OTHERS).map(lambda make: make())
NAMES = [
    "id", "source", "system", "margin", "ranks", "rank", "scores", "caption", "images", "image", "img_path", "video",
    "prompt", "chosen", "rejected", "responses", "response", "score_chosen", "score_rejected", "label", "photo",
    "doc_id", "resps", "candidates", "error", "names", "token", "labels", "", "a\nb",
]  # fmt: skip


@st.composite
def mutated_bytes(draw: Callable[..., Any], right: bytes) -> bytes:
    """The bytes with some changed, cut out, doubled, or the end missing."""
    data = bytearray(right)
    for _ in range(draw(st.integers(1, 4))):
        # The head decides most, and most of it is never reached by a place drawn from the whole.
        place = draw(st.integers(0, min(len(data), draw(st.sampled_from((64, 512, 1 << 30))))))
        how = draw(st.integers(0, 4))
        if how == 0:
            del data[place:]
        elif how == 1:
            del data[place : place + draw(st.integers(1, 40))]
        elif how == 2:
            data[place:place] = data[place : place + draw(st.integers(1, 40))]
        elif how == 3:
            data[place : place + 4] = draw(st.sampled_from((b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff")))
        else:
            data[place : place + 1] = bytes([draw(st.integers(0, 255))])
    return bytes(data)


@st.composite
def mutated_text(draw: Callable[..., Any], right: str) -> str:
    text = right
    for _ in range(draw(st.integers(1, 3))):
        cut, size = draw(st.integers(0, len(text))), draw(st.sampled_from((0, 0, 1, 5)))
        text = text[:cut] + draw(st.sampled_from(TEXTS + YAML) | st.text(max_size=3)) + text[cut + size :]
    return text


YAML = [
    "[1]: 2", "!!timestamp 1", "!!int a", "!!float a", "!!binary a", "!!set {a}", "!!python/object:os.system a", "&a",
    "*a", "<<: 5", "<<: *a", "? a", "? [a, b]\n: 1", "- ", ": ", "{", "}", "]", "|\n", ">", "'", '"', "%", "@", "---",
    "\t", "  ", "\n", "!!omap [a]", "1: 2", "null: 1", "2026-01-31", "0x1F", "1_000", "[" * 400, "{a: " * 400,
]  # fmt: skip


# ---- what must hold --------------------------------------------------------------------------------------------------


@contextmanager
def own_errors() -> Iterator[None]:
    """Nothing but the project's errors may leave the block, each of them one bounded line."""
    start = time.process_time()
    try:
        yield
    except (BadRow, UserError) as error:
        for line in str(error).split("\n"):  # a line for each of several settings, or bad rows
            is_line(line, LONGEST)
    assert time.process_time() - start < SECONDS


def is_line(text: str, longest: int) -> None:
    assert text and text.isprintable() and len(text) <= longest, text


def hold(check: Callable[[Any], None], inputs: Any, count: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    options: Any = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    effort(max_examples=count, **options)(given(inputs)(check))()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < BYTES


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mutated")
    Image.radial_gradient("L").resize((16, 12)).save(folder / "a.png")
    return folder


def finder(folder: Path, must_exist: bool = True) -> Callable[[str], str]:
    return partial(find_image, data_file=folder / "rows.jsonl", must_exist=must_exist)


def both(test: Callable[..., None]) -> Callable[..., None]:
    """The test with `times`: once as it is, and once more with many times as many cases, marked slow."""
    return pytest.mark.parametrize("times", [1, pytest.param(SLOW, marks=pytest.mark.slow)])(test)


# ---- rows ------------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("name", READERS)
def test_rows(folder: Path, name: str, times: int) -> None:
    def check(row: dict[str, Any]) -> None:
        for must_exist in (True, False):  # as in the visual phase, and in the caption phase
            with own_errors():
                example = read_row(name, row, finder(folder, must_exist), fallback_id="row-1")
                write_jsonl(folder / "out.jsonl", [{"id": example.id, "prompt": example.prompt}])
                check_responses(example)

    hold(check, mutated(RIGHT[name], ANYTHING), 80 * times)


@both
def test_files_of_rows(folder: Path, times: int) -> None:
    """A bad row is counted, and listed in a file; what ends the reading names the file."""

    def check(rows: tuple[Any, Any]) -> None:
        path = write_lines(folder / "rows.jsonl", RIGHT["trl"], rows[0], RIGHT["trl"], rows[1])
        with own_errors():
            loaded = load_examples(path)
            lines = [line for line in Path(path).read_text("utf-8").split("\n") if line.strip()]
            assert len(loaded.examples) + len(loaded.rejected) == len(lines)
            write_jsonl(folder / "rejected.jsonl", loaded.rejected)
            write_jsonl(folder / "out.jsonl", [{"prompt": e.prompt, "r": e.responses} for e in loaded.examples])

    row = mutated(RIGHT["trl"], JSONS)
    lines = mutated_text(json.dumps(RIGHT["trl"])).map(lambda text: text.replace("\n", " ").encode(errors="replace"))
    hold(check, st.tuples(row, row | lines), 150 * times)


@both
def test_rows_in_memory(folder: Path, times: int) -> None:
    """`RewardScorer.score_batch` and everything else that takes rows for scoring."""

    def check(row: dict[str, Any]) -> None:
        with own_errors():
            as_example(row, 3, finder(folder))

    right = {"prompt": SAY, "images": ["a.png"], "responses": ["A.", "B."], "id": 4, "system": "Be brief."}
    hold(check, mutated(right, ANYTHING), 330 * times)


@both
def test_candidates(folder: Path, times: int) -> None:
    def check(row: dict[str, Any]) -> None:
        with own_errors():
            load_candidates([write_lines(folder / "rows.jsonl", row)])

    pool = {"id": 1, "image": "a.png", "prompt": "Why?", "candidates": {"llava": "A.", "blip": "B."}}
    logged = {"doc_id": 0, "input": "Why?", "resps": [["A."]], "filtered_resps": ["A."]}
    hold(check, mutated(pool, JSONS) | mutated(logged, JSONS), 150 * times)


@both
def test_captions(folder: Path, times: int) -> None:
    example = read_row("rlaif-v", RIGHT["rlaif-v"], finder(folder))

    def check(row: dict[str, Any]) -> None:
        with own_errors():
            captions = load_captions(write_lines(folder / "rows.jsonl", row, {"image": "b.png", "caption": "A"}))
            with_caption(example, captions)

    right = {"image": "a.png", "image_id": 724, "caption": "A cup.", "captions": ["A cup.", "Red."]}
    hold(check, mutated(right, JSONS), 150 * times)


@both
def test_rows_to_rank(folder: Path, times: int, capsys) -> None:
    right = {"id": 1, "prompt": SAY, "images": ["a.png"], "candidates": ["A.", "Bee.", "C."], "scores": [1.0, 2, 0]}

    def check(row: dict[str, Any]) -> None:
        given = [f"in={write_lines(folder / 'rows.jsonl', right, row)}", f"out={folder}/ranked.jsonl"]
        is_told(rank.main(given), capsys)

    hold(check, mutated(right, JSONS), 100 * times)


def is_told(status: int, capsys) -> None:
    error = capsys.readouterr().err
    assert status in (0, 2)
    if status:
        for line in error.removesuffix("\n").split("\n"):  # one for each of several wrong settings
            is_line(line, LONGEST + 100)


@pytest.fixture(scope="module")
def scorer(reward: str) -> RewardScorer:
    scorer = RewardScorer.from_pretrained(reward, device="cpu")
    scorer.max_length = 1000
    return scorer


@both
def test_lines_to_score(folder: Path, scorer: RewardScorer, times: int) -> None:
    config = ScoreConfig(model="", input="", output="")

    def check(line: bytes) -> None:
        start = time.process_time()
        [[record]] = score._score_units(scorer, [(3, line)], folder / "rows.jsonl", config)
        assert json.dumps(record) and time.process_time() - start < SECONDS
        if "error" in record:
            is_line(record["error"], LONGEST + 500)

    right = {"prompt": SAY, "images": ["a.png"], "responses": ["A.", "B."], "id": 4}
    rows = mutated(right, JSONS).map(lambda row: json.dumps(row).encode())
    hold(check, rows | mutated_bytes(json.dumps(right).encode()), 60 * times)


# ---- images ----------------------------------------------------------------------------------------------------------


def image_file(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") else {}
    return encoded(Image.radial_gradient("L").resize((24, 20)).convert("RGB"), kind, **options)


@both
@pytest.mark.parametrize("kind", FORMATS)
def test_images(folder: Path, kind: str, times: int) -> None:
    path = folder / "damaged"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        with own_errors():
            ImageRef(path=str(path)).open(MAX_PIXELS)

    hold(check, mutated_bytes(image_file(kind)), 60 * times)


# ---- settings --------------------------------------------------------------------------------------------------------

WORDS = [
    "phase=1..3", "visual.data=a.jsonl?n=5", "--visual.n", "5", "visual.columns.prompt=question", "trainer.max_steps=3",
    "trainer.lr_scheduler_kwargs={a: 1}", "--dry-run", "out=run", "selection.preprocess=unit,dedup", "lora_dropout=0.1",
    "rows=auto", "image_root=~/a", "n=1,2", "--n", "8", "candidates=[a,b]", "model=m", "in=a", "recipe=a.yaml",
]  # fmt: skip


@both
def test_command_lines(folder: Path, times: int, capsys) -> None:
    def check(given: tuple[list[str], type]) -> None:
        is_told(run(partial(parsed_and_saved, given[1], folder), given[0], "x"), capsys)

    word = st.sampled_from(WORDS)
    words = st.lists(word.flatmap(mutated_text) | word, min_size=1, max_size=5)
    words = words.filter(lambda many: not {"--help", "-h"} & {*many})
    config = st.sampled_from((TrainConfig, BonConfig, ScoreConfig, RankConfig, ServeConfig))
    hold(check, st.tuples(words, config), 120 * times)


def parsed_and_saved(config: type, folder: Path, argv: list[str]) -> None:
    save(parse(config, argv, "x"), folder / "c.yaml")


RECIPE = """phase: 1,3
out: runs/a
text: {data: [a.jsonl, b.jsonl?n=5], n: 100, columns: {prompt: question}}
visual:
  data: c.jsonl
  learning_rate: 1e-5
trainer: {max_steps: 5, lr_scheduler_kwargs: {a: 1}}
"""


@both
def test_recipes(folder: Path, times: int, capsys) -> None:
    path = folder / "recipe.yaml"

    def check(text: str | bytes) -> None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
        is_told(run(partial(parsed_and_saved, TrainConfig, folder), [f"recipe={path}"], "x"), capsys)

    hold(check, mutated_text(RECIPE) | mutated_bytes(RECIPE.encode()), 80 * times)


# ---- sources ---------------------------------------------------------------------------------------------------------


@both
def test_sources(folder: Path, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_reached(source: Any) -> None:
        raise UserError(f"source {source.text!r} would be looked for on the hub")

    monkeypatch.setattr(sources, "_load_hub", not_reached)
    path = write_lines(folder / "rows.jsonl", RIGHT["trl"])

    def check(text: str) -> None:
        with own_errors():
            load_examples(text)

    right = [f"{path}?n=5&pairs=true", f"{folder}/*.jsonl", "world:visual?n=2&seed=1&families=a", f"{path}?weight=1"]
    hold(check, st.sampled_from(right).flatmap(mutated_text), 150 * times)


@both
def test_damaged_parquet(folder: Path, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
    datasets.disable_progress_bars()
    path = folder / "rows.parquet"
    datasets.Dataset.from_list([RIGHT["plain"]] * 5).to_parquet(path)
    right = path.read_bytes()

    def check(data: bytes) -> None:
        path.write_bytes(data)
        with own_errors():
            load_examples(str(path))

    hold(check, mutated_bytes(right), 6 * times)
    path.unlink()


# ---- requests --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(scorer: RewardScorer, folder: Path) -> Iterator[Any]:
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx2")
    from fastapi.testclient import TestClient

    from rovrm.serving.app import make_app

    config = ServeConfig(model="tiny", image_root=str(folder), max_tokens=20_000)
    with TestClient(make_app(scorer, config), raise_server_exceptions=False) as client:
        yield client


@both
@pytest.mark.parametrize("path", ["/score", "/get_reward"])
def test_requests(client: Any, path: str, times: int) -> None:
    picture = base64.b64encode(image_file("PNG")).decode()
    right: dict[str, Any] = {"prompt": SAY, "responses": ["A.", "B."], "images": [picture]}
    if path == "/get_reward":
        right = {"query": ["Hi A", "Ho B"], "prompts": ["Hi", "Ho"], "labels": ["", ""], "images": [None, ["a.png"]]}

    def check(body: bytes) -> None:
        start = time.process_time()
        reply = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert time.process_time() - start < SECONDS
        assert reply.status_code == 200 or 400 <= reply.status_code < 500, (reply.status_code, reply.text)
        if reply.status_code != 200:
            is_line(reply.json()["error"], 500)

    rows = mutated(right, JSONS).map(lambda row: json.dumps(row).encode())
    hold(check, rows | mutated_bytes(json.dumps(right).encode()), 60 * times)
