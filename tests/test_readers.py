"""Every reader on a row in the exact schema of its data set, found by its columns; and what each refuses."""

import json
import re
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from helpers import REAL

from rovrm.common.errors import UserError
from rovrm.data.bad_rows import BadRow
from rovrm.data.columns import check_columns, rename
from rovrm.data.example import Example
from rovrm.data.formats import find_reader
from rovrm.data.images import ImageRef, find_image
from rovrm.data.loading import as_examples, load_examples
from rovrm.data.messages import text_of
from rovrm.data.reader import read_row
from rovrm.training.checks import check_responses


def find(name: str) -> str:
    return f"/found/{name}"


def read(row: dict[str, Any], expected: str | None = None) -> Example:
    """The row through the reader that its columns ask for."""
    name = find_reader(row, row)
    assert expected is None or name == expected
    return read_row(name, row, find, location="file, row 1", fallback_id="file-1", source="file")


def question(text: str, images: int = 0) -> list[dict[str, Any]]:
    content = [{"type": "image"}] * images + [{"type": "text", "text": text}] if images else text
    return [{"role": "user", "content": content}]


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": speaker, "value": value} for speaker, value in pairs]


# ---- one row per data set --------------------------------------------------------------------------------------------


def rated(response: str, score: object, *ratings: str) -> dict[str, Any]:
    aspects = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    annotations = {name: {"Rating": rating, "Rationale": "..."} for name, rating in zip(aspects, ratings, strict=False)}
    overall = {} if score is None else {"overall_score": score}
    return {
        "model": "m",
        "principle": "p",
        "custom_system_prompt": "s",
        "response": response,
        "annotations": annotations,
    } | overall


def test_ultrafeedback_by_overall_score_with_ties() -> None:
    completions = [rated("b", 7.5), rated("dropped", "N/A"), rated("a", "9"), rated("c", 7.5), rated("d", 1)]
    row = {"source": "evol_instruct", "instruction": "Q", "models": ["m"], "completions": completions}
    example = read(row | {"correct_answers": ["None"], "incorrect_answers": ["None"]}, "ultrafeedback")
    assert (example.prompt, example.responses, example.ranks) == (question("Q"), ["a", "b", "c", "d"], [0, 1, 1, 2])
    assert (example.source, example.id, example.location) == ("evol_instruct", "file-1", "file, row 1")


def test_ultrafeedback_by_mean_rating() -> None:
    completions = [
        rated("b", None, "3", "3", "3", "4"),
        rated("no", None, "5", "N/A", "5", "5"),
        rated("a", None, *"5445"),
    ]
    example = read({"instruction": "Q", "completions": completions})
    assert (example.responses, example.ranks) == (["a", "b"], [0, 1])
    with pytest.raises(BadRow, match="1 of 2 have ratings, a ranking needs 2"):
        read({"instruction": "Q", "completions": completions[:2]})


@pytest.mark.parametrize(("scores", "ranks"), [((8.0, 5.0), [0, 1]), ((7.0, 7.0), [0, 0])])
def test_ultrafeedback_binarized(scores: tuple[float, float], ranks: list[int]) -> None:
    both = [{"content": "Q", "role": "user"}, {"content": "good", "role": "assistant"}]
    row = {"prompt": "Q", "prompt_id": "f0e3", "chosen": both, "messages": both, "score_chosen": scores[0]}
    row |= {"rejected": [both[0], {"content": "bad", "role": "assistant"}], "score_rejected": scores[1]}
    example = read(row, "ultrafeedback_binarized")
    assert (example.prompt, example.responses, example.ranks) == (question("Q"), ["good", "bad"], ranks)
    assert example.id == "f0e3"


RLAIF = {"ds_name": "RLAIF-V", "question": "What?", "chosen": "good", "rejected": "bad", "origin_dataset": "VQAv2"}
RLAIF |= {"origin_split": '{"model": "x"}', "idx": "17", "image_path": "coco/1.jpg"}


def test_rlaif_v() -> None:
    example = read(RLAIF | {"image": ImageRef(path="/x/cell.jpg")}, "rlaif-v")
    assert (example.prompt, example.responses, example.ranks) == (question("What?", 1), ["good", "bad"], [0, 1])
    assert (example.id, example.images[0].name) == ("17", "coco/1.jpg")


def test_rlhf_v() -> None:
    text = json.dumps({"question": "What?", "chosen": "good", "rejected": "bad"})
    row = {
        "ds_name": "RLHF-V",
        "image": "1.jpg",
        "text": text,
        "origin_dataset": "VQAv2",
        "origin_split": "{}",
        "idx": 3,
    }
    example = read(row | {"image_path": "a/1.jpg"}, "rlhf-v")
    assert (example.prompt, example.responses, example.id) == (question("What?", 1), ["good", "bad"], "3")
    assert example.images == [ImageRef(path="/found/1.jpg")]
    with pytest.raises(BadRow, match=r"text = .*should hold a JSON value does not; mend the row"):
        read(row | {"text": "{broken"})


@pytest.mark.parametrize(("preference", "best"), [(1, "one"), (2, "two")])
def test_llava_human_preference(preference: int, best: str) -> None:
    talk = turns(("human", "<image>\nA?"), ("gpt", "Yes."), ("human", "B?"), ("gpt", ""))
    row = {"id": "9", "image": "0001.jpg", "conversations": talk, "preference": preference}
    row |= {"output_1": {"from": "llava", "value": "one"}, "output_2": {"from": "llava", "value": "two"}}
    example = read(row, "llava-human-preference")
    assert example.prompt == [*question("\nA?", 1), {"role": "assistant", "content": "Yes."}, *question("B?")]
    assert (example.responses[0], example.ranks, example.id) == (best, [0, 1], "9")


@pytest.mark.parametrize("columnar", [False, True])
def test_vlfeedback(columnar: bool) -> None:
    def completion(response: str, *ratings: str) -> dict[str, Any]:
        names = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
        both = {name: {"Rating": rating, "Rationale": ""} for name, rating in zip(names, ratings, strict=True)}
        return {"annotations": both, "model": "m", "response": response}

    rows = [
        completion("b", *"451"),
        completion("a", *"555"),
        completion("b too", *"514"),
        completion("x", "5", "N/A", "5"),
    ]
    completions = {key: [row[key] for row in rows] for key in rows[0]} if columnar else rows
    example = read(
        {"id": "v1", "prompt": "Q", "models": ["m"], "completions": completions, "img_path": "v/1.jpg"}, "vlfeedback"
    )
    assert (example.prompt, example.responses, example.ranks) == (question("Q", 1), ["a", "b", "b too"], [0, 1, 1])
    assert example.images[0].name == "v/1.jpg"


@pytest.mark.parametrize("dump", [json.dumps, str])
def test_vision_feedback_mix(dump: Any) -> None:
    talk = [{"from": "human", "value": "It's?\n<image>"}, {"from": "gpt", "preference_values": ["good", "bad"]}]
    row = {
        "id": 1,
        "origin_pre_dataset": "povid",
        "image": "1.jpg",
        "image_path": "a/1.jpg",
        "conversations": dump(talk),
    }
    example = read(row, "vision-feedback-mix")
    assert example.prompt[0]["content"] == [{"type": "text", "text": "It's?"}, {"type": "image"}]
    assert (example.responses, example.id) == (["good", "bad"], "1")


def test_hh_rlhf() -> None:
    start = "\n\nHuman: Hi\n\nHuman: there\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:"
    example = read({"chosen": f"{start} I can't.", "rejected": f"{start} I can."}, "hh-rlhf")
    assert [message["role"] for message in example.prompt] == ["user", "assistant", "user"]
    assert example.prompt[0]["content"] == "Hi\n\nthere"
    assert example.responses == ["I can't.", "I can."]
    with pytest.raises(BadRow, match="part before their last answers"):
        read({"chosen": f"{start} a", "rejected": f"{start} b\n\nHuman: c\n\nAssistant: d"})
    with pytest.raises(BadRow, match="share no"):
        read_row("hh-rlhf", {"chosen": "a", "rejected": "b"}, find)


def blocks(text: str, image: bool = False) -> list[dict[str, Any]]:
    """Content as datasets returns it: every block with every key."""
    return [{"type": "image", "text": None}] * image + [{"type": "text", "text": text}]


def test_trl_vision() -> None:
    row = {
        "prompt": [{"role": "user", "content": blocks("Q", True)}],
        "images": [ImageRef(path="1.jpg")],
        "margin": 0.5,
    }
    row |= {name: [{"role": "assistant", "content": blocks(name)}] for name in ("chosen", "rejected")}
    example = read(row, "trl")
    assert (example.prompt, example.responses) == (question("Q", 1), ["chosen", "rejected"])
    assert (example.images, example.margin) == ([ImageRef(path="1.jpg")], 0.5)


def test_trl_implicit_prompt() -> None:
    shared = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    both = {name: [*shared, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    example = read(both, "trl")
    assert (example.prompt, example.responses) == (shared, ["chosen", "rejected"])
    same = read({name: both["chosen"] for name in both})
    assert (same.prompt, same.responses) == (shared, ["chosen", "chosen"])
    text = read({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "trl")
    assert (text.prompt, text.responses) == (question("The sky is"), [" blue.", " green."])


def test_trl_explicit_prompt_and_shared_turns() -> None:
    def answer(text: str) -> list[dict[str, Any]]:
        return [
            {"role": "assistant", "content": "A"},
            {"role": "user", "content": "R"},
            {"role": "assistant", "content": text},
        ]

    row = {"prompt": question("Q"), "chosen": answer("x"), "rejected": answer("y")}
    assert [m["content"] for m in read(row, "trl").prompt] == ["Q", "A", "R"]
    with pytest.raises(BadRow, match="may differ in their last message only"):
        read(row | {"rejected": answer("y")[:1]})


def test_trl_images_inside_blocks() -> None:
    prompt = [{"role": "user", "content": [{"type": "image", "image": "in.jpg"}, {"type": "text", "text": "Q"}]}]
    example = read({"prompt": prompt, "chosen": "a", "rejected": "b"}, "trl")
    assert (example.prompt, example.images) == (question("Q", 1), [ImageRef(path="/found/in.jpg")])


def test_sharegpt_ranking() -> None:
    talk = turns(("system", "S"), ("human", "A"), ("gpt", "B"), ("human", "C"))
    row = {"conversations": talk, "chosen": turns(("gpt", "x"))[0], "rejected": turns(("gpt", "y"))[0]}
    example = read(row, "sharegpt-ranking")
    assert [(m["role"], m["content"]) for m in example.prompt] == [
        ("system", "S"),
        ("user", "A"),
        ("assistant", "B"),
        ("user", "C"),
    ]
    assert example.responses == ["x", "y"]
    with pytest.raises(BadRow, match="conversations = 'observation': unknown role; takes human"):
        read(row | {"conversations": turns(("human", "A"), ("observation", "B"))})
    with pytest.raises(BadRow, match="it ends with the assistant's turn"):
        read(row | {"conversations": turns(("human", "A"), ("gpt", "B"))})


@pytest.mark.parametrize("image", [None, "1.jpg"])
def test_rovrm_ranked(image: str | None) -> None:
    human = "<image>\nQ" if image else "Q"
    talk = [{"from": "human", "value": human}, {"from": "gpt", "value": ["a", "b", "c"]}]
    example = read({"id": "r", "image": image, "conversations": talk}, "rovrm-ranked")
    assert (example.prompt, example.responses, example.ranks) == (
        question("\nQ", 1) if image else question("Q"),
        ["a", "b", "c"],
        [0, 1, 2],
    )
    with pytest.raises(BadRow, match="value is the list of two or more answers"):
        read({"image": None, "conversations": turns(("human", "Q"), ("gpt", "an SFT answer"))})


def test_ranked() -> None:
    assert read({"prompt": "Q", "responses": ["a", "b"]}, "ranked").ranks == [0, 1]
    example = read({"question": "Q", "responses": ["c", "a", "b"], "ranks": [5, 1, 1]})
    assert (example.responses, example.ranks) == (["a", "b", "c"], [0, 0, 1])
    for ranks in ([0], [0, "x"], [0, None], [0, True]):
        with pytest.raises(BadRow, match="takes one number for each of the 2 responses"):
            read({"prompt": "Q", "responses": ["a", "b"], "ranks": ranks})


def test_ranked_by_scores() -> None:
    """Without ranks the scores order the answers; beside ranks they may be coarser or finer."""
    row = {"prompt": "Q", "responses": ["b", "a", "c"], "scores": [0.5, 2, "-1"]}
    assert (read(row).responses, read(row).ranks) == (["a", "b", "c"], [0, 1, 2])
    for scores, ranks, expected in (
        ([1, 1, 0], None, [0, 0, 1]),
        ([3, 2.9, 0], [0, 0, 1], [0, 0, 1]),  # as rovrm.rank writes them: less apart than its margin
        ([1, 1, 0], [0, 1, 2], [0, 1, 2]),
        ([2, 1, 0], None, [0, 1, 2]),
    ):
        assert read(row | {"scores": scores, "ranks": ranks}).ranks == expected
    for scores in ([0], [0, "x", 1], [0, None, 1], [0, True, 1], "123"):
        with pytest.raises(BadRow, match="scores = .*takes one number for each of the 3 responses"):
            read(row | {"scores": scores})


def test_a_very_long_list() -> None:
    """20,000 responses, ordered by scores and beside them by ranks, in a time that grows with their number."""
    count = 20_000
    row = {"prompt": "Q", "responses": [f"answer {i}" for i in range(count)], "scores": list(range(count))}
    assert read(row).responses[0] == f"answer {count - 1}"
    example = read(row | {"ranks": [count - i for i in range(count)]})
    assert example.ranks == list(range(count)) and not check_responses(example).reason
    with pytest.raises(BadRow, match="scores = .*puts response 20000 before response 1,"):
        read(row | {"ranks": [0] * (count - 1) + [1]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": [0, 1, 2], "scores": [1, 2, 0]}, "scores = .*puts response 2 before response 1, against the order"),
        ({"ranks": [0, 1, 1], "scores": [1, 0, 2]}, "scores = .*puts response 3 before response 1"),
        ({"rank": [2, 1, 3]}, "rank = .*puts response 2 before response 1, .*to order by it set columns.ranks=rank"),
        ({"scores": [3, 2, 1], "rank": [3, 2, 1]}, "rank = .*puts response 2 before response 1"),
    ],
)
def test_contradictions_in_ranked_rows(change: dict[str, Any], message: str) -> None:
    row = {"prompt": "Q", "responses": ["a", "b", "c"]}
    with pytest.raises(BadRow, match=message):
        read(row | change)
    assert read(row | {"rank": [1, 2, 2], "scores": [3, 2, 1]}).ranks == [0, 1, 2]
    assert read(row | {"rank": 7}).ranks == [0, 1, 2]  # not about the responses


@pytest.mark.parametrize("columns", [("score_chosen", "score_rejected"), ("chosen_score", "rejected_score")])
def test_contradictions_in_pairs(columns: tuple[str, str]) -> None:
    messages = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    listed = {"prompt": question("Q"), **messages}
    shared = {name: [*question("Q"), *message] for name, message in messages.items()}  # the prompt in the answers
    for pair in (listed, shared, {"prompt": "Q", "chosen": "a", "rejected": "b"}):
        for scores, ranks in (((2, 1), [0, 1]), (("1.5", 1.5), [0, 0])):
            assert read(pair | dict(zip(columns, scores, strict=True))).ranks == ranks
        with pytest.raises(BadRow, match=f"{columns[0]} = '1.0': below {columns[1]} = 2: the chosen answer scores"):
            read(pair | dict(zip(columns, (1, 2), strict=True)))
        for order in ({"ranks": [1, 0]}, {"rank": [2, 1]}, {"scores": [0.1, 0.2]}):
            with pytest.raises(BadRow, match="puts response 2 before response 1"):
                read(pair | order)


@pytest.mark.parametrize(
    ("value", "best", "ranks"),
    [
        (1, "x", [0, 1]),
        (2, "y", [0, 1]),
        (1.2, "x", [0, 1]),
        (1.50001, "y", [0, 1]),
        (1.5, "x", [0, 0]),
        ("2", "y", [0, 1]),
    ],
)
def test_two_outputs(value: Any, best: str, ranks: list[int]) -> None:
    for prompt, choice in (
        ("prompt", "label"),
        ("input", "label"),
        ("instruction", "preference"),
        ("question", "preference"),
    ):
        example = read({prompt: "Q", "output_1": "x", "output_2": "y", choice: value}, "two-outputs")
        assert (example.prompt, example.responses[0], example.ranks) == (question("Q"), best, ranks)


@pytest.mark.parametrize("value", [0, 3, "A", True, float("nan")])
def test_two_outputs_of_unknown_preference(value: Any) -> None:
    with pytest.raises(BadRow, match=r"preference = .*takes 1 \(output_1 is better\), 2, or a number between"):
        read({"prompt": "Q", "output_1": "x", "output_2": "y", "preference": value})


def test_plain_with_everything() -> None:
    row = {"instruction": "Q", "input": "more", "chosen": "a", "rejected": "b", "image": "1.jpg", "margin": 2, "id": 7}
    example = read(row | {"caption": "C", "source": "s", "system": "S"}, "plain")
    assert [text_of(message["content"]) for message in example.prompt] == ["S", "Q\n\nmore"]
    assert (example.margin, example.caption, example.source, example.id) == (2.0, "C", "s", "7")
    assert read({"question": "Q", "chosen": "a", "rejected": "b"}, "plain").images == []


def test_a_caption_list_skips_the_answer() -> None:
    row = {"prompt": "Q", "chosen": "A cat.", "rejected": "b"}
    assert read(row | {"caption": ["a CAT", "one cat"]}).caption == "one cat"
    assert read(row | {"caption": ["a CAT", ""]}).caption == "a CAT"  # use_captions refuses it, with the reason
    with pytest.raises(BadRow, match="caption = .*takes a text or a list"):
        read(row | {"caption": {"a": 1}})


# ---- refusals --------------------------------------------------------------------------------------------------------

PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": None}, "chosen = 'None': no value in chosen; fill it in or drop the row"),
        ({"chosen": 5}, "responses = '5': an answer is a text or one message"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": 5}, "prompt = '5': a prompt is a text or a list of messages"),
        ({"prompt": "<video> Q"}, "<video>: video cannot be scored"),
        ({"video": "a.mp4"}, r"video = 'a\.mp4': video cannot be scored"),
        ({"margin": "2"}, "margin = '2': takes a finite number"),
        ({"margin": float("inf")}, "margin = 'inf'"),
        ({"margin": -0.5}, "margin = '-0.5': below 0 it lets the worse answer win; give 0 or more"),
        ({"image": ""}, "image = '': the name is empty; give a path, or null for a row without an image"),
        ({"images": ["a.jpg", " "]}, "images = ' ': the name is empty"),
        ({"image": 724}, "image = '724': an image is a path, or embedded"),
        ({"image": {"bytes": None, "path": None}}, "an image is a path, or embedded"),
        ({"prompt": [{"role": "user", "content": [{"type": "audio"}]}]}, "block of type 'audio'; only text and image"),
        ({"prompt": [{"role": "system", "content": "S"}]}, "it has no message by the user"),
        ({"prompt": [{"role": "user", "content": None}]}, "content is a string or a list of blocks"),
        ({"prompt": [5]}, "a message is {role, content}"),
        ({"chosen": [{"role": "assistant", "content": [{"type": "image"}]}]}, "both texts or both lists"),
    ],
)
def test_bad_rows(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        read(PAIR | change)


# ---- images that no column of the format holds -----------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Any:
    """A look-up that finds a.jpg, b.JPG and left/a.jpg, and counts what it is asked for."""
    (tmp_path / "left").mkdir()
    for name in ("a.jpg", "b.JPG", "left/a.jpg"):
        (tmp_path / name).touch()
    asked: list[str] = []

    def look(name: str) -> str:
        asked.append(name)
        return find_image(name, image_root=tmp_path)

    look.asked = asked  # type: ignore[attr-defined]
    return look


def picture() -> PIL.Image.Image:
    return PIL.Image.new("RGB", (2, 2))


@pytest.mark.parametrize(
    "change",
    [
        {"photo": "a.jpg"},
        {"photos": ["no.jpg", "b.JPG"]},
        {"picture": ImageRef(path="x.jpg")},
        {"picture": [picture()]},
        {"picture": {"bytes": b"x", "path": None}},
        {"picture": {"bytes": None, "path": "a.jpg"}},
    ],
)
def test_an_image_in_an_unknown_column(photos: Any, change: dict[str, Any]) -> None:
    [column] = change
    with pytest.raises(BadRow, match=rf"{column} = .*not read; call it image, or set visual\.columns\.image={column}"):
        read_row("plain", PAIR | change, photos)
    text = {"instruction": "Q", "completions": [rated("a", 2), rated("b", 1)]}
    with pytest.raises(BadRow, match=rf"\?columns\.image={column}\)"):
        read_row("ultrafeedback", text | change, photos)
    if isinstance(change[column], str):
        assert read_row("plain", rename(PAIR | change, {"image": column}), photos).images[0].name == "a.jpg"


@pytest.mark.parametrize(
    "change",
    [
        {"image": "a.jpg", "image_2": "b.JPG"},
        {"image": "a.jpg", "image_2": "left/a.jpg"},
        {"images": ["a.jpg"], "image": "b.JPG"},
        {"image": ImageRef(path="x.jpg"), "image_2": ImageRef(path="y.jpg")},
        {"image": picture(), "mask": picture()},
        {"image": ImageRef(path="x.jpg"), "image_path": ImageRef(path="y.jpg")},
        {"prompt": [{"role": "user", "content": [{"type": "image", "image": "a.jpg"}]}], "photo": "b.JPG"},
    ],
)
def test_a_second_image_column(photos: Any, change: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match="not read; put all images of a row into one list `images`, or remove this column"):
        read_row("plain", PAIR | change, photos)


SHARED = picture()


@pytest.mark.parametrize(
    "change",
    [
        {"image": "a.jpg", "file": "./a.jpg", "image_path": "b.JPG"},  # a name, and the name beside it
        {"image": ImageRef(drawing=picture), "image_path": "a.jpg", "img_path": "b.JPG"},
        {"image": ImageRef(drawing=picture, label="coco/a.jpg"), "file_name": "a.jpg"},
        {"image": SHARED, "picture": SHARED},
        {"id": "a.jpg", "source": "a.jpg", "caption": "a.jpg"},
        {"url": "https://example.org/a.jpg", "name": "no.jpg", "other": None, "boxes": [{"category": "a.jpg"}]},
        {"chosen": "a.jpg", "rejected": "b.JPG"},
    ],
)
def test_columns_that_only_name_an_image(photos: Any, change: dict[str, Any]) -> None:
    assert len(read_row("plain", PAIR | change, photos).images) == ("image" in change)


@pytest.mark.parametrize(
    "change",
    [{"photo": "no.jpg"}, {"image_url": "https://example.org/a.jpg"}, {"Picture_Path": "no.png"}, {"img": ["no.png"]}],
)
def test_a_column_called_as_a_picture_that_is_not_there(photos: Any, change: dict[str, Any]) -> None:
    [column] = change
    with pytest.raises(BadRow, match=f"^{column} = .*: an image in a column that is not read; call it image"):
        read_row("plain", PAIR | change, photos)
    read_row("plain", PAIR | change | {"image": "a.jpg"}, photos)  # beside an image it may say where that came from


def test_texts_are_not_looked_up(photos: Any) -> None:
    read_row("plain", PAIR | {f"column {i}": f"Some text {i}." for i in range(50)}, photos)
    assert photos.asked == []


def test_a_row_of_another_shape() -> None:
    with pytest.raises(BadRow, match=r"not the shape of ultrafeedback \(AttributeError.*; mend the row or"):
        read({"instruction": "Q", "completions": ["just a text", "another"]})


def test_readers_by_columns_alone() -> None:
    assert find_reader(["prompt", "chosen", "rejected"]) == "plain"
    assert find_reader(["chosen", "rejected"]) == "hh-rlhf"


def test_no_reader_says_what_is_needed() -> None:
    with pytest.raises(UserError) as caught:
        find_reader(["query", "chosen"])
    text = str(caught.value)
    assert "no reader fits the columns chosen, query" in text
    assert "plain lacks prompt|question|instruction, rejected" in text
    assert "columns.prompt=THEIRS" in text and "reader=NAME" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": ["a", "c"], "rejected": ["b"]}, "chosen = .*a list of 2 texts, where one answer .* `responses`"),
        ({"chosen": "a", "rejected": ["b", "c"]}, "rejected = .*a list of 2 texts, where one answer is expected"),
        (
            {"prompt": None, "chosen": turns(("a", "b"), ("c", "d")), "rejected": turns(("a", "x"), ("c", "d"))},
            "part at message 1 of 2 and 2, and may differ in their last message only; cut both behind the first one",
        ),
    ],
)
def test_lists_where_texts_are_expected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        read(PAIR | change)


VL = REAL / "benchmarks/vl_rewardbench/sample.json"


@pytest.mark.skipif(not VL.is_file(), reason=f"{VL} is not here")
def test_rows_of_vl_rewardbench() -> None:
    with pytest.raises(UserError, match="These are rows of VL-RewardBench") as caught:
        load_examples(str(VL))
    [options] = re.findall(r"SOURCE\?(\S+);", str(caught.value))
    rows = json.loads(VL.read_text())
    loaded = load_examples(f"{VL}?{options}", images_needed=False)
    assert len(loaded.examples) + len(loaded.rejected) == len(rows) and len(loaded.examples) > 0
    first = loaded.examples[0]
    row = next(row for row in rows if row["id"] == first.id)
    assert first.responses[0] == row["response"][row["human_ranking"].index(0)] and len(first.images) == 1


def test_columns() -> None:
    assert rename({"q": "Q", "prompt": "old", "x": 1}, {"prompt": "q"}) == {"prompt": "Q", "x": 1}
    assert rename({"chosen": "a", "rejected": "b"}, {"chosen": "rejected", "rejected": "chosen"}) == {
        "chosen": "b",
        "rejected": "a",
    }
    with pytest.raises(UserError, match=r"columns\.promt: no reader knows this name; takes .*prompt"):
        check_columns({"promt": "q"}, ["q"])
    with pytest.raises(UserError, match=r"columns\.prompt=q: the data have no such column; they have a, b"):
        check_columns({"prompt": "q"}, ["a", "b"])


# ---- through datasets ------------------------------------------------------------------------------------------------


def test_hub_schemas_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nested ones as datasets returns them, with embedded images that are never read."""
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    cell = {"bytes": b"not an image", "path": "1.jpg"}
    table = datasets.Dataset.from_list([RLAIF | {"image": cell}]).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "rlaif.parquet")
    vision = {"images": [cell], "prompt": [{"role": "user", "content": blocks("Q", True)}]}
    vision |= {name: [{"role": "assistant", "content": blocks(name)}] for name in ("chosen", "rejected")}
    table = datasets.Dataset.from_list([vision]).cast_column("images", datasets.List(datasets.Image()))
    table.save_to_disk(str(tmp_path / "trl"))
    loaded = load_examples([str(tmp_path / "rlaif.parquet"), str(tmp_path / "trl")])
    first, second = loaded.examples
    assert (first.prompt, first.responses, first.id) == (question("What?", 1), ["good", "bad"], "17")
    assert first.images[0].name == "coco/1.jpg"
    assert (second.prompt, second.responses, second.id) == (question("Q", 1), ["chosen", "rejected"], "trl-1")
    assert second.images[0].name == "1.jpg"
    with pytest.raises(UserError, match="image in column 'image', row 1 .*not an image"):
        first.images[0].open()


def test_an_image_feature_of_another_name(tmp_path: Path) -> None:
    import datasets

    rows = [PAIR | {"picture": {"bytes": b"x", "path": "1.jpg"}}, PAIR | {"picture": None}]
    table = datasets.Dataset.from_list(rows).cast_column("picture", datasets.Image())
    with pytest.raises(UserError, match="row 1: picture = .*set visual.columns.image=picture"):
        as_examples(table)
    table.save_to_disk(str(tmp_path / "saved"))
    loaded = load_examples(str(tmp_path / "saved"))
    assert [row["field"] for row in loaded.rejected] == ["picture"] and len(loaded.examples) == 1
    assert load_examples(f"{tmp_path / 'saved'}?columns.image=picture").examples[0].images[0].name == "1.jpg"


def test_a_sound_column_is_no_image() -> None:
    import datasets

    table = datasets.Dataset.from_list([PAIR | {"sound": {"bytes": b"x", "path": "1.wav"}}])
    table = table.cast(datasets.Features(table.features | {"sound": datasets.Audio()}))
    with pytest.raises(UserError, match="audio = 'sound': audio cannot be scored"):
        as_examples(table)


def test_no_responses_at_all() -> None:
    with pytest.raises(BadRow, match="takes two or more texts, got none"):
        read_row("ranked", {"prompt": "Why?", "responses": []}, find_image)


def test_columns_that_fit_with_values_that_do_not_are_told_from_missing_ones() -> None:
    with pytest.raises(UserError, match="wants other values in them") as caught:
        find_reader(["chosen", "rejected", "x"], {"chosen": None, "rejected": None, "x": "A cup."})
    assert "lacks nothing" not in str(caught.value)
