"""`python -m rovrm.score`, called as main(argv): results, bad lines, and going on where it was stopped."""

import json
import os
import shutil
import signal
import time

import pytest
from filelock import FileLock
from helpers import change_json, read_json, read_lines, write_lines, write_reward_model
from PIL import Image

from rovrm import RewardScorer
from rovrm import score as command

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model(family_folder, tmp_path_factory):
    return write_reward_model(family_folder("llava"), tmp_path_factory.mktemp("score") / "model", spread=0.3)


@pytest.fixture(scope="module")
def scorer(model):
    return RewardScorer.from_pretrained(model, device="cpu")


@pytest.fixture
def run(model, tmp_path, capsys):
    """run(lines, *more): (exit status, output records or None, what was printed); `in` lies in a folder with images."""
    source, out = tmp_path / "data" / "pairs.jsonl", tmp_path / "new" / "folder" / "scores.jsonl"
    source.parent.mkdir()
    Image.linear_gradient("L").save(source.parent / "a.png")

    def call(lines, *more):
        if lines is not None:
            write_lines(source, *lines)
        status = command.main([f"model={model}", f"in={source}", f"out={out}", "device=cpu", "--workers", "0", *more])
        printed = capsys.readouterr()
        records = read_lines(out) if out.is_file() else None
        return status, records, printed.out + printed.err

    call.source, call.out, call.partial = source, out, out.with_name("scores.jsonl.partial")
    call.lock, call.settings = out.with_name("scores.jsonl.lock"), out.with_name("scores.jsonl.settings.json")
    return call


def pairs(n):
    return [
        {"id": f"row-{i}", "prompt": f"What is {i}?", "responses": ["One.", "A dog " * (1 + i % 3)], "image": "a.png"}
        for i in range(n)
    ]


def test_every_kind_of_row_in_order(run, scorer):
    lines = [
        {"id": 7, "prompt": "What is it?", "responses": ["A cup.", "A dog.", ""], "images": ["a.png"]},
        {
            "question": "What is it?",
            "chosen": "A cup.",
            "rejected": "A dog.",
            "image": str(run.source.parent / "a.png"),
        },
        "",
        {"instruction": "What is it?", "response": "A cup.", "id": None},
        {"prompt": [{"role": "user", "content": "What is it?"}], "responses": ["A dog."], "system": "Be brief."},
    ]
    status, records, printed = run(lines)
    assert status == 0 and f"scored 4 lines into {run.out}" in printed and "error" not in printed
    assert [record["id"] for record in records] == ["7", "pairs-2", "pairs-4", "pairs-5"]
    pictured = scorer.score("What is it?", ["A cup.", "A dog.", ""], images=run.source.parent / "a.png")
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}]
    expected = [pictured, pictured[:2], scorer.score("What is it?", ["A cup."]), scorer.score(system, ["A dog."])]
    for record, rewards in zip(records, expected, strict=True):
        assert record["rewards"] == pytest.approx(rewards, abs=TOLERANCE)
    assert not run.partial.exists()


def test_bad_lines_become_records_and_are_counted(run):
    (run.source.parent / "cut.png").write_bytes((run.source.parent / "a.png").read_bytes()[:90])
    good = {"prompt": "Hi", "responses": ["Yes"]}
    bad = [
        ("not json", "no JSON"),
        (b'{"prompt": "\xff", "responses": ["Yes"]}', "no JSON"),
        (["prompt", "responses"], "JSON list"),
        ({"prompt": "Hi", "id": "mine"}, "list of one or more responses"),
        ({"prompt": "Hi", "responses": "Yes"}, "list of one or more responses"),
        ({"prompt": "Hi", "responses": [1, 2]}, "responses"),
        ({"responses": ["Yes"]}, "prompt"),
        ({"prompt": "Hi", "chosen": "Yes", "rejected": None}, "rejected is null beside chosen; fill it in or leave it"),
        ({"prompt": "Hi", "chosen": None, "rejected": "No"}, "chosen is null beside rejected"),
        (good | {"image": ""}, "the name is empty"),
        (good | {"img": "a.png"}, "img = 'a.png': an image under a key that is not read"),
        ({"prompt": "", "responses": ["Yes"]}, "empty"),
        (good | {"image": "missing.png"}, "missing.png"),
        (good | {"image": "cut.png"}, "cut.png"),
        (good | {"image": 3}, "int"),
        (good | {"image": "clip.mp4"}, "video"),
        (good | {"videos": ["clip.mp4"]}, "video"),
        ({"prompt": "Hi " * 100, "responses": ["Yes"]}, "max_length=60"),
    ]
    status, records, printed = run([good, *(line for line, _ in bad), good], "max_length=60")
    assert status == 0 and "scored 2 lines" in printed and "18 lines have an error" in printed
    assert "rewards" in records[0] and records[0]["rewards"] == pytest.approx(records[-1]["rewards"], abs=TOLERANCE)
    for number, (record, (_, words)) in enumerate(zip(records[1:-1], bad, strict=True), start=2):
        assert set(record) == {"id", "error"} and f"line {number}" in record["error"] and words in record["error"]
    assert records[4]["id"] == "mine" and records[1]["id"] == "pairs-2"


def test_when_no_line_can_be_scored(run):
    status, records, printed = run(["x", "y"])
    assert status == 2 and "not one of the 2 lines" in printed and "line 1" in printed
    assert len(records) == 2 and "Traceback" not in printed


@pytest.fixture
def stop_after(monkeypatch):
    """stop_after(n): the command is interrupted behind so many units; stop_after(None): it is not."""
    units = command._score_units

    def stop(count):
        left = [count]

        def some(*given):
            for records in units(*given):
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] = left[0] and left[0] - 1
                yield records

        monkeypatch.setattr(command, "_score_units", some)

    return stop


@pytest.mark.parametrize("cut", [0, 1, 40, 700])
def test_goes_on_behind_the_last_whole_unit_to_the_same_bytes(run, monkeypatch, stop_after, cut):
    """Stopped behind the second unit of five lines, the file cut off by `cut` bytes. Rows and batches of five differ
    from those of any other cut in the last digits."""
    monkeypatch.setattr(command, "UNIT", 5)
    lines = [*pairs(3), "not json", *pairs(23)[4:]]
    assert run(lines)[0] == 0
    whole = run.out.read_bytes()
    run.out.unlink()
    stop_after(2)
    assert run(None)[0] == 130  # as after Ctrl-C
    assert not run.out.exists()
    written = run.partial.read_bytes()
    assert written.count(b"\n") == 10 and whole.startswith(written)
    run.partial.write_bytes(written[: len(written) - cut])
    stop_after(None)
    status, _, printed = run(None)
    done = 5 * (written[: len(written) - cut].count(b"\n") // 5)
    assert status == 0 and "1 lines have an error" in printed
    assert f"{done} of 23 lines are in" in printed or not done
    assert run.out.read_bytes() == whole
    assert [path.name for path in run.out.parent.iterdir()] == ["scores.jsonl"]


def test_lines_are_written_long_before_the_end(run, stop_after):
    lines = [{"prompt": f"What is {i}?", "responses": ["One.", "A dog " * (1 + i % 7)]} for i in range(150)]
    stop_after(1)
    assert run(lines)[0] == 130
    assert run.partial.read_bytes().count(b"\n") == 64


def test_a_second_run_on_the_same_file_is_refused(run):
    lines = pairs(2)
    assert run(lines)[0] == 0
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        held = FileLock(run.lock)
        held.acquire()
        os.write(theirs, b"1")
        time.sleep(60)
        os._exit(0)
    os.read(ours, 1)
    try:
        before = run.out.read_bytes()
        status, _, printed = run(None)
        assert status == 2 and printed.count("\n") == 1 and f"another run is writing out='{run.out}'" in printed
        assert run.out.read_bytes() == before and not run.partial.exists()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert run(None)[0] == 0  # a killed run's lock holds nobody up


def test_an_unfinished_file_of_something_else_is_refused(run, model, tmp_path, stop_after, monkeypatch):
    monkeypatch.setattr(command, "UNIT", 2)
    stop_after(1)
    assert run(pairs(4))[0] == 130
    stop_after(None)
    kept = run.partial.read_bytes()
    for changed in (lambda: run(None, "normalize=true"), lambda: run(pairs(3)), lambda: run(None, "max_length=99")):
        status, _, printed = changed()
        assert status == 2 and str(run.partial) in printed and "remove it" in printed
        assert run.partial.read_bytes() == kept
        write_lines(run.source, *pairs(4))
    other = shutil.copytree(model, tmp_path / "other")
    status, _, printed = run(None, f"model={other}")
    assert status == 2 and "model" in printed and "remove it" in printed
    noted = run.settings.read_text()
    for broken in ("", noted[:20], None):  # as a version left it that wrote its settings elsewhere
        run.settings.unlink() if broken is None else run.settings.write_text(broken)
        status, _, printed = run(None)
        assert status == 2 and "begun by another version or command" in printed
        run.settings.write_text(noted)
    run.partial.write_bytes(kept[:20])  # not even the first line is whole: nothing is lost
    assert run(None, f"model={other}")[0] == 0


def test_line_ends_byte_order_mark_and_separators(run):
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in pairs(2)]
    odd = json.dumps({"prompt": "a\u2028b\u0085c", "responses": ["Yes"]}, ensure_ascii=False).encode()
    expected = run([*lines, odd])[1]
    run.source.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([*lines, odd]))
    assert run(None)[1] == expected and len(expected) == 3


def test_a_list_is_scored_as_its_lines(run):
    expected = run(pairs(3))[1]
    for content in (pairs(3), {"data": pairs(3)}, {"train": pairs(3)}):
        run.source.write_text(json.dumps(content, indent=1))
        status, records, _ = run(None)
        assert status == 0 and [record["id"] for record in records] == ["row-0", "row-1", "row-2"]
        for one, other in zip(records, expected, strict=True):
            assert one["rewards"] == pytest.approx(other["rewards"], abs=TOLERANCE)
    run.source.write_text(json.dumps({"train": pairs(1), "test": pairs(1)}))
    assert "the lists train, test; give a file with one of them" in run(None)[2]


def test_a_table_is_refused_before_the_model_loads(run, tmp_path):
    (tmp_path / "a.csv").write_text("prompt,response\na,b\n")
    status, _, printed = run(None, f"in={tmp_path / 'a.csv'}", "model=/no/such/model")
    assert status == 2 and "is a .csv file; write its rows as JSONL" in printed


def test_normalize(run, model, tmp_path):
    plain = run(pairs(2))[1]
    status, _, printed = run(None, "normalize=true")
    assert status == 2 and "reward_mean" in printed
    known = shutil.copytree(model, tmp_path / "known")
    change_json(known / "config.json", reward_mean=0.5, reward_std=0.25)
    status, records, _ = run(None, "normalize=true", f"model={known}")
    for one, other in zip(records, plain, strict=True):
        assert one["rewards"] == pytest.approx([(reward - 0.5) / 0.25 for reward in other["rewards"]], abs=1e-4)


def test_image_root(run, tmp_path):
    root = tmp_path / "elsewhere"
    root.mkdir()
    shutil.move(run.source.parent / "a.png", root / "a.png")
    assert run(pairs(1))[0] == 2
    assert run(None, f"image_root={root}")[0] == 0


def test_files_that_are_refused(run, tmp_path):
    for lines, more, words in (
        (None, (), "is no file"),
        ([], (), "is empty"),
        (["", "  "], (), "is empty"),
        (pairs(1), (f"out={tmp_path}",), "folder"),
        (pairs(1), (f"out={run.source}",), "the input file"),
        (pairs(1), (f"out={run.source}/scores.jsonl",), "cannot be written"),
        (pairs(1), (f"model={tmp_path}",), "config.json"),
        (pairs(1), ("model=/no/such/model",), "/no/such/model"),
        (pairs(1), ("device=cuda:99",), "device='cuda:99'"),
        (pairs(1), ("dtype=int8",), "dtype"),
        (pairs(1), ("typo=1",), "typo"),
        (pairs(1), ("in=",), "in: got nothing"),
    ):
        status, _, printed = run(lines, *more)
        assert status == 2 and words in printed and printed.count("\n") == 1, printed
        assert not run.partial.exists() and not run.lock.exists()
    assert read_json(run.source)["id"] == "row-0"
