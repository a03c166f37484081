"""Pools of candidates from files of other tools, in their exact formats, and what is refused."""

import pytest
from helpers import write_lines
from PIL import Image

from rovrm.best_of_n.candidates import load_candidates
from rovrm.common.errors import UserError


@pytest.fixture
def photo(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def logged(number, *answers, **more):
    """A row as `lmms_eval --log_samples` writes it (loggers/evaluation_tracker.py)."""
    row = {
        "doc_id": number,
        "target": "yes",
        "filtered_resps": [answers[0].strip()],
        "doc_hash": "1",
        "prompt_hash": "2",
    }
    return row | {"target_hash": "3", "pope_accuracy": {"score": 1.0}, "input": f"Is there a cup {number}?"} | more


def test_answers_by_name_in_a_list_and_as_responses(tmp_path, photo, caplog):
    file = write_lines(
        tmp_path / "pools.jsonl",
        {"id": "owl_2", "image": "a.png", "prompt": "Why?", "candidates": {"llava": "A.", "blip": "B."}},
        {"prompt": [{"role": "user", "content": "What?"}], "candidates": ["C.", "", "C."]},
        {"question": "Who?", "images": ["a.png"], "responses": ["D."]},
        {"id": "broken", "prompt": [], "images": [], "error": "image b.png: no such file"},  # a line of bon.jsonl
    )
    first, second, third = load_candidates([file])
    assert "1 rows of candidates have an error" in caplog.text
    assert (first.example.id, first.example.responses, first.names) == ("owl_2", ["A.", "B."], ["llava", "blip"])
    assert first.example.images[0].path == str(photo)
    assert (second.example.id, second.example.responses) == ("pools-2", ["C.", "", "C."])
    assert second.names == ["", "", ""] and not second.example.images
    assert third.example.responses == ["D."] and len(third.example.images) == 1
    assert [pool.example.responses for pool in load_candidates([file], n=1)] == [["A."], ["C."], ["D."]]
    with pytest.raises(UserError, match="n=2: prompt 'pools-3' has only 1 candidates; give n=1 or less"):
        load_candidates([file], n=2)


def test_images_of_the_task_under_another_name_are_refused(tmp_path, photo):
    log = write_lines(tmp_path / "log.jsonl", logged(0, "Yes."))
    for name, task in (("photo", {"photo": "a.png"}), ("image_2", {"image": "a.png", "image_2": ["b.png"]})):
        Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
        data = write_lines(tmp_path / "task.jsonl", task)
        with pytest.raises(UserError, match=f"{name} = .*an image under a key that is not read"):
            load_candidates([log], [data])


def test_logs_of_two_models_are_joined_with_the_images_of_the_task(tmp_path, photo):
    data = write_lines(tmp_path / "task.jsonl", *({"question": f"raw {i}", "image": "a.png"} for i in range(3)))
    one = write_lines(tmp_path / "one.jsonl", logged(0, " Yes."), logged(2, "No."))
    two = write_lines(tmp_path / "two.jsonl", logged(2, "Yes.", resps=[["Yes.\n", "Maybe."]]), logged(0, "No."))
    pools = {pool.example.id: pool for pool in load_candidates([one, two], [data])}
    assert list(pools) == ["0", "2"]
    assert pools["0"].example.responses == ["Yes.", "No."] and pools["0"].names == ["one", "two"]
    assert pools["2"].example.responses == ["No.", "Yes.\n", "Maybe."] and pools["2"].names == ["one", "two", "two"]
    assert pools["0"].example.images[0].path == str(photo)
    assert "Is there a cup 0?" in str(pools["0"].example.prompt)
    messages = write_lines(tmp_path / "messages.jsonl", logged(1, "Yes.", input={"max_new_tokens": 16}))
    assert "raw 1" in str(load_candidates([messages], [data])[0].example.prompt)  # of the task: none was logged


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"prompt": "What?"}], "row 1: needs candidates or responses"),
        ([{"prompt": "What?", "candidates": "A."}], "row 1: needs candidates or responses"),
        ([{"prompt": "What?", "candidates": ["A.", 3]}], "row 1: a candidate is a text, got int '3'"),
        ([{"prompt": "What?", "candidates": {"a": "A.", "b": None}}], "row 1: a candidate is a text, got NoneType"),
        ([{"candidates": ["A."]}], "row 1: example pools-1: "),
        ([{"prompt": "What?", "candidates": ["A."], "image": "http://a/b.png"}], "row 1: .*URLs are not fetched"),
        ([{"id": 1, "prompt": "W", "candidates": ["A."]}] * 2, "row 2: the id '1' stands in two rows"),
        ([logged(0, "Yes.")], "row 1: lmms-eval logs no images; give data=SOURCE"),
        (['"A."'], "row 1: a row is a JSON object, got str"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_row(tmp_path, rows, told):
    with pytest.raises(UserError, match=told):
        load_candidates([write_lines(tmp_path / "pools.jsonl", *rows)])


def test_logs_and_files_that_do_not_fit_are_refused(tmp_path, photo):
    data = write_lines(tmp_path / "task.jsonl", {"question": "raw", "image": "a.png"})
    choices = logged(0, "A", filtered_resps=[["-1.5", "True"], ["-2.25", "False"]])
    for row, told in (
        (logged(7, "Yes."), "doc_id 7 is no row of .*, which has 1"),
        (choices, "these are log-likelihoods of given choices"),
    ):
        with pytest.raises(UserError, match=told):
            load_candidates([write_lines(tmp_path / "log.jsonl", row)], [data])
    with pytest.raises(UserError, match="and these are none; leave it out"):
        load_candidates([write_lines(tmp_path / "own.jsonl", {"prompt": "What?", "candidates": ["A."]})], [data])
    with pytest.raises(UserError, match="2 sources beside candidates"):
        load_candidates([write_lines(tmp_path / "log.jsonl", logged(0, "Yes."))], [data, str(tmp_path / "log.jsonl")])
    with pytest.raises(UserError, match="none.jsonl' is not there"):
        load_candidates([str(tmp_path / "none.jsonl")])
    one = write_lines(tmp_path / "one.jsonl", {"id": "x", "prompt": "What?", "candidates": ["A."]})
    other = write_lines(tmp_path / "other.jsonl", {"id": "x", "prompt": "Who?", "candidates": ["B."]})
    with pytest.raises(UserError, match="other.jsonl, row 1: id 'x' has another prompt in another file"):
        load_candidates([one, other])


def test_names_tell_files_apart_and_rows_are_joined_by_their_ids(tmp_path, caplog):
    row = {"prompt": "What?", "candidates": ["A."]}
    for folder in ("red", "blue"):
        (tmp_path / folder).mkdir()
        write_lines(tmp_path / folder / "answers.jsonl", row | {"doc_id": 4}, row)
    files = [str(tmp_path / folder / "answers.jsonl") for folder in ("red", "blue")]
    with caplog.at_level("INFO"):
        pools = load_candidates(files)
    assert [pool.names for pool in pools] == [["red", "blue"], ["red"], ["blue"]]
    assert [pool.example.id for pool in pools] == ["4", "red-2", "blue-2"]  # rows without an id are never joined
    assert "1 of 3 prompts have candidates of several files" in caplog.text
    logs = [tmp_path / folder / "20260101_samples_pope.jsonl" for folder in ("red", "blue")]
    for i, log in enumerate(logs):
        write_lines(log.with_name(f"{i}{log.name}"), row | {"id": "x"})
    pools = load_candidates([str(log.with_name(f"{i}{log.name}")) for i, log in enumerate(logs)])
    assert pools[0].names == ["red", "blue"]  # lmms-eval's folders are called by the model


def test_a_prompt_without_candidates_is_kept(tmp_path):
    file = write_lines(
        tmp_path / "pools.jsonl", {"prompt": "W", "candidates": []}, {"prompt": "W", "candidates": ["A."]}
    )
    assert [pool.example.responses for pool in load_candidates([file], n=1)] == [[], ["A."]]
