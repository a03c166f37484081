"""The data of each phase: read, captioned, checked and split, with every row accounted for."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import REAL, noise, read_json, read_lines, write_lines

from rovrm.common import files
from rovrm.common.errors import UserError
from rovrm.data.example import Example
from rovrm.data.images import content_hash
from rovrm.model.collator import RewardCollator
from rovrm.model.loading import load_config, load_processor
from rovrm.settings.keys import CaptionConfig, PhaseConfig, TrainConfig
from rovrm.settings.phases import CAPTION, PHASES, TEXT, VISUAL, Phase
from rovrm.training.phase_data import PhaseData, prepare_phases
from rovrm.training.plan import settings_of
from rovrm.world.default import BASE

Row = dict[str, Any]


@pytest.fixture(scope="session")
def collator() -> RewardCollator:
    """That of the shipped tiny LLaVA."""
    return RewardCollator(load_processor(BASE), load_config(BASE))


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., TrainConfig]:
    """`settings(visual=PhaseConfig(...))`: a run in an empty folder, in which half of the data is held out."""

    def make(**fields: Any) -> TrainConfig:
        given: Row = {"out": str(tmp_path / "run"), "eval_fraction": 0.5, "max_bad_fraction": 1.0, "workers": 0}
        return TrainConfig(**(given | fields))

    return make


def prepare_phase(config: TrainConfig, phase: Phase, collator: RewardCollator, write: bool) -> PhaseData:
    return prepare_phases(config, [phase], collator, [phase] if write else [])[phase]


def draw(folder: Path, *names: str) -> list[str]:
    """A noise image for each name; what stands before a dash is the seed, so `3-a.png` and `3-b.png` are alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        noise(int(Path(name).stem.split("-")[0]), (16, 12)).save(folder / name)
    return list(names)


def pair(i: int | str, **fields: Any) -> Row:
    return {"id": f"r{i}", "prompt": f"Question {i}?", "chosen": f"Yes, {i}.", "rejected": f"No, {i}."} | fields


def ids(examples: list[Example]) -> list[str]:
    return [e.id for e in examples]


def all_ids(found: PhaseData) -> set[str]:
    return {*ids(found.train), *ids(found.held_out)}


def listed(config: TrainConfig, phase: Phase, file: str = "rejected.jsonl") -> list[Row]:
    return read_lines(phase.folder(config.out) / file)


def image_hashes(examples: list[Example]) -> set[str]:
    return {content_hash(ref.open()) for e in examples for ref in e.images}


# ---- the three phases ------------------------------------------------------------------------------------------------


def test_text_phase_refuses_rows_with_images(collator, settings, tmp_path: Path) -> None:
    draw(tmp_path, "1.png")
    file = write_lines(tmp_path / "a.jsonl", *[pair(i) for i in range(6)], pair(6, image="1.png"))
    config = settings(text=PhaseConfig(data=[file]))
    found = prepare_phase(config, TEXT, collator, write=True)
    assert all_ids(found) == {f"r{i}" for i in range(6)}
    [bad] = found.rejected
    assert bad["id"] == "r6" and bad["field"] == "images" and "1.png" in bad["value"]
    assert bad["location"] == f"{file}, row 7"
    assert "takes rows without images; give this row to visual.data or caption.data" in bad["reason"]
    assert listed(config, TEXT) == found.rejected


def test_caption_phase_puts_captions_for_images(collator, settings, tmp_path: Path) -> None:
    draw(tmp_path, *[f"{i}.png" for i in range(6)])
    (tmp_path / "5.png").write_bytes(b"no image")  # its pixels are not needed
    captions = write_lines(
        tmp_path / "captions.jsonl",
        {"image": "0.png", "caption": "A cup."},
        {"image": "1.png", "captions": ["Yes, 1!", "A dog."]},
        {"image": "2.png", "caption": "yes 2"},
        {"image": "5.png", "caption": "A tree."},
    )
    rows = [pair(i, image=f"{i}.png") for i in range(6)]
    rows[4]["caption"] = "A horse."
    file = write_lines(tmp_path / "a.jsonl", *rows)
    section = CaptionConfig(data=[file], captions=captions, caption_template="Seen: {caption}\n")
    config = settings(caption=section)
    found = prepare_phase(config, CAPTION, collator, write=True)
    texts = {e.id: e.prompt[0]["content"] for e in found.train + found.held_out}
    assert texts == {
        "r0": "Seen: A cup.\nQuestion 0?",
        "r1": "Seen: A dog.\nQuestion 1?",  # the first of its captions is the chosen answer
        "r4": "Seen: A horse.\nQuestion 4?",
        "r5": "Seen: A tree.\nQuestion 5?",
    }
    assert not any(e.images for e in found.train + found.held_out)
    leak, without = found.rejected
    assert (leak["id"], leak["field"], leak["value"]) == ("r2", "caption", "yes 2")
    assert "would give it away; add another caption or drop the row" in leak["reason"]
    assert (without["id"], without["field"]) == ("r3", "caption")
    assert f"no caption for image 3.png in {captions}; add one or drop the row" in without["reason"]
    assert listed(config, CAPTION) == found.rejected
    with pytest.raises(UserError, match="2 of 6 rows are bad"):
        prepare_phase(replace(config, max_bad_fraction=0.3), CAPTION, collator, write=True)


def test_caption_phase_needs_no_image_files(collator, settings, tmp_path: Path) -> None:
    rows = [pair(i, image=f"elsewhere/{i}.png", caption=f"Caption {i}.") for i in range(6)]
    config = settings(caption=CaptionConfig(data=[write_lines(tmp_path / "a.jsonl", *rows)]))
    assert len(all_ids(prepare_phase(config, CAPTION, collator, write=True))) == 6


def test_visual_phase(collator, settings, tmp_path: Path) -> None:
    names = draw(tmp_path, *[f"{i}.png" for i in range(8)])
    rows = [pair(i, image=name) for i, name in enumerate(names)]
    config = settings(
        visual=PhaseConfig(data=[write_lines(tmp_path / "a.jsonl", *rows, pair(8, image="8.png"), pair(9))])
    )
    found = prepare_phase(config, VISUAL, collator, write=True)
    assert all_ids(found) == {f"r{i}" for i in range(8)}
    assert all(e.lengths for e in found.train + found.held_out)
    bad, bare = listed(config, VISUAL)
    assert bad["id"] == "r8" and "not found" in bad["reason"] and "set image_root=FOLDER" in bad["reason"]
    assert (bare["id"], bare["field"], bare["location"]) == ("r9", "images", f"{tmp_path / 'a.jsonl'}, row 10")
    assert "takes rows with images; set visual.columns.image=THEIRS, or give it to text.data" in bare["reason"]
    with pytest.raises(UserError, match="2 of 10 rows are bad, more than max_bad_fraction=0.1 allows"):
        prepare_phase(replace(config, max_bad_fraction=0.1), VISUAL, collator, write=True)


def test_visual_phase_without_any_image(collator, settings, tmp_path: Path) -> None:
    """A column by another name is not read: training would run, on text alone."""
    bare = settings(visual=PhaseConfig(data=[write_lines(tmp_path / "b.jsonl", pair(0), pair(1))]))
    with pytest.raises(UserError, match=r"no row has an image; name the column with visual\.columns\.image=THEIRS"):
        prepare_phase(bare, VISUAL, collator, write=True)
    names = draw(tmp_path, "0.png", "1.png")
    file = write_lines(tmp_path / "a.jsonl", *[pair(i, photo=name) for i, name in enumerate(names)])
    config = settings(visual=PhaseConfig(data=[file]))
    config = replace(config, text=PhaseConfig(data=[file]), caption=CaptionConfig(data=[file]))
    for phase in PHASES:
        with pytest.raises(UserError, match=r"row 1: photo = '0.png': .*set visual\.columns\.image=photo"):
            prepare_phase(config, phase, collator, write=True)
    mended = replace(config, visual=PhaseConfig(data=[file], columns={"image": "photo"}))
    assert len(all_ids(prepare_phase(mended, VISUAL, collator, write=True))) == 2


# ---- the split -------------------------------------------------------------------------------------------------------


def test_one_image_under_two_names_is_on_one_side_of_both_phases(collator, settings, tmp_path: Path) -> None:
    first = draw(tmp_path / "one", *[f"{i}-a.png" for i in range(24)])
    second = draw(tmp_path / "two", *[f"{i}-b.png" for i in range(24)])
    one = write_lines(tmp_path / "one" / "a.jsonl", *[pair(i, image=n, caption=f"C {i}.") for i, n in enumerate(first)])
    two = write_lines(
        tmp_path / "two" / "b.jsonl", *[pair(f"{i}b", image=n, caption="C.") for i, n in enumerate(second)]
    )
    config = settings(
        caption=CaptionConfig(data=[one, two], n=40), visual=PhaseConfig(data=[two, one]), eval_fraction=0.3
    )
    caption, visual = prepare_phases(config, [CAPTION, VISUAL], collator, [CAPTION, VISUAL]).values()
    assert not image_hashes(visual.train) & image_hashes(visual.held_out)
    side = {e.id.removesuffix("b"): "held out" for e in visual.held_out}
    side |= {e.id.removesuffix("b"): "train" for e in visual.train}
    assert len(visual.held_out) >= 4 and len(visual.held_out) % 2 == 0
    assert len(caption.train) + len(caption.held_out) == 40
    assert all(side[e.id.removesuffix("b")] == "train" for e in caption.train)
    assert all(side[e.id.removesuffix("b")] == "held out" for e in caption.held_out)


def test_small_phases_hold_out_what_others_hold_out(collator, settings, tmp_path: Path) -> None:
    names = draw(tmp_path, *[f"{i}.png" for i in range(24)])
    rows = [pair(i, image=name, caption=f"C {i}.") for i, name in enumerate(names)]
    everything = write_lines(tmp_path / "all.jsonl", *rows)
    config = settings(caption=CaptionConfig(data=[everything]), eval_fraction=0.3)
    trained = set(ids(prepare_phase(config, CAPTION, collator, write=False).train))
    some = write_lines(tmp_path / "some.jsonl", *[row for row in rows if row["id"] in trained][:5])
    config = replace(config, visual=PhaseConfig(data=[some]))
    caption, visual = prepare_phases(config, [CAPTION, VISUAL], collator, [CAPTION, VISUAL]).values()
    assert len(visual.held_out) == 1 and len(visual.train) == 4
    assert not set(ids(caption.train)) & set(ids(visual.held_out))


def test_joined_images_are_on_the_same_side_in_other_phases(collator, settings, tmp_path: Path) -> None:
    names = draw(tmp_path, *[f"{i}.png" for i in range(24)])
    single = write_lines(
        tmp_path / "a.jsonl", *[pair(i, image=name, caption=f"C {i}.") for i, name in enumerate(names)]
    )
    joined = write_lines(tmp_path / "b.jsonl", *[pair(i, images=names[2 * i : 2 * i + 2]) for i in range(12)])
    config = settings(caption=CaptionConfig(data=[single]), visual=PhaseConfig(data=[joined]))
    caption, visual = prepare_phases(config, [CAPTION, VISUAL], collator, [CAPTION, VISUAL]).values()
    held_out = {name for e in visual.held_out for name in (ref.name for ref in e.images)}
    assert held_out and visual.train and not held_out & {f"{e.id.removeprefix('r')}.png" for e in caption.train}


def test_no_group_crosses(collator, settings, tmp_path: Path) -> None:
    names = draw(tmp_path, *[f"{i % 15}-{i}.png" for i in range(30)])
    rows = [pair(i, images=[name] if i % 5 else [name, names[i - 7]]) for i, name in enumerate(names)]
    config = settings(visual=PhaseConfig(data=[write_lines(tmp_path / "a.jsonl", *rows)]))
    found = prepare_phase(config, VISUAL, collator, write=True)
    assert len(all_ids(found)) == 30 and found.train and found.held_out
    assert not image_hashes(found.train) & image_hashes(found.held_out)
    texts = [pair(i, prompt=f"question {i % 8}?") for i in range(24)]
    config = settings(text=PhaseConfig(data=[write_lines(tmp_path / "b.jsonl", *texts)]))
    found = prepare_phase(config, TEXT, collator, write=True)
    sides = [{int(e.id.removeprefix("r")) % 8 for e in part} for part in (found.train, found.held_out)]
    assert len(all_ids(found)) == 24 and not sides[0] & sides[1]


# ---- eval_data -------------------------------------------------------------------------------------------------------


def test_eval_data_leave_training_rows_out_and_count_them(collator, settings, tmp_path: Path, capsys) -> None:
    draw(tmp_path, *[f"{i}-a.png" for i in range(6)], "1-b.png", "9-b.png")
    train = write_lines(tmp_path / "a.jsonl", *[pair(i, image=f"{i}-a.png") for i in range(6)])
    held = write_lines(
        tmp_path / "b.jsonl", pair("x", image="1-b.png"), pair("y", image="9-b.png"), pair("z", image="1-a.png")
    )
    config = settings(visual=PhaseConfig(data=[train], eval_data=[held]), max_bad_fraction=0.0)
    found = prepare_phase(config, VISUAL, collator, write=True)  # what is left out is not bad
    assert ids(found.train) == ["r0", "r2", "r3", "r4", "r5"] and ids(found.held_out) == ["rx", "ry", "rz"]
    [left] = found.rejected
    assert (left["id"], left["field"], left["value"]) == ("r1", "image", "Question 1?")
    assert left["location"] == f"{train}, row 2" and "visual.eval_data has the same image" in left["reason"]
    assert listed(config, VISUAL) == found.rejected and listed(config, VISUAL, "rejected-eval.jsonl") == []
    assert "1 training rows share an image or prompt with visual.eval_data: left out" in capsys.readouterr().out


def test_eval_data_share_images_through_other_rows(collator, settings, tmp_path: Path) -> None:
    """Whichever image of a joined group has the smaller hash, and whichever side joins them."""
    draw(tmp_path, *[f"{i}.png" for i in range(12)])
    train = write_lines(tmp_path / "a.jsonl", *[pair(i, images=[f"{i}.png", f"{i + 6}.png"]) for i in range(6)])
    held = write_lines(
        tmp_path / "b.jsonl", pair("x", image="0.png"), pair("y", image="7.png"), pair("z", image="8.png")
    )
    config = settings(visual=PhaseConfig(data=[train], eval_data=[held]))
    found = prepare_phase(config, VISUAL, collator, write=True)
    assert ids(found.train) == ["r3", "r4", "r5"]
    assert not image_hashes(found.train) & image_hashes(found.held_out)


def test_eval_data_of_the_text_phase_go_by_prompt(collator, settings, tmp_path: Path) -> None:
    train = write_lines(tmp_path / "a.jsonl", *[pair(i) for i in range(4)])
    held = write_lines(tmp_path / "b.jsonl", pair("x", prompt="QUESTION 2"), pair("y", chosen=" "), pair("z"))
    config = settings(text=PhaseConfig(data=[train], eval_data=[held], n=3, select="first"))
    found = prepare_phase(config, TEXT, collator, write=True)
    assert ids(found.train) == ["r0", "r1"] and ids(found.held_out) == ["rx", "rz"]  # n cuts the training data alone
    assert [(r["id"], r["field"]) for r in found.rejected] == [("r2", "prompt"), ("ry", "response 1")]
    assert [r["id"] for r in listed(config, TEXT)] == ["r2"]
    assert [r["id"] for r in listed(config, TEXT, "rejected-eval.jsonl")] == ["ry"]
    with pytest.raises(UserError, match="1 of 3 rows are bad.*rejected-eval.jsonl"):
        prepare_phase(replace(config, max_bad_fraction=0.2), TEXT, collator, write=True)


def test_eval_data_that_leave_nothing_to_train_on(collator, settings, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", *[pair(i) for i in range(4)])
    config = settings(text=PhaseConfig(data=[file], eval_data=[file]))
    said = r"leave no example to train on \(4 good ones for training, 4 of them share an image or prompt with text"
    with pytest.raises(UserError, match=said) as caught:
        prepare_phase(config, TEXT, collator, write=True)
    assert "or leave text.eval_data out" in str(caught.value)
    assert len(listed(config, TEXT)) == 4


# ---- several phases, several runs ------------------------------------------------------------------------------------


def finish(config: TrainConfig, phase: Phase) -> None:
    """As training leaves it behind."""
    for file in ("settings.json", "phase.json"):
        (phase.folder(config.out) / file).write_text("{}")


def pictured(tmp_path: Path, count: int = 24, **fields: Any) -> list[Row]:
    names = draw(tmp_path, *[f"{i}.png" for i in range(count)])
    return [pair(i, image=name, caption=f"C {i}.", **fields) for i, name in enumerate(names)]


def test_eval_data_of_one_phase_train_in_no_other(collator, settings, tmp_path: Path, capsys) -> None:
    """Counted, listed with the reason, printed once, and not bad rows."""
    rows = pictured(tmp_path)
    data = write_lines(tmp_path / "all.jsonl", *rows)
    held = write_lines(tmp_path / "held.jsonl", *[row | {"id": f"x{i}"} for i, row in enumerate(rows[:6])])
    config = settings(
        caption=CaptionConfig(data=[data]),
        visual=PhaseConfig(data=[data], eval_data=[held]),
        eval_fraction=0.3,
        max_bad_fraction=0.0,
    )
    caption, visual = prepare_phases(config, [CAPTION, VISUAL], collator, [CAPTION, VISUAL]).values()
    first = {f"r{i}" for i in range(6)}
    assert not all_ids(caption) & first and len(visual.held_out) == 6
    assert {r["id"] for r in listed(config, CAPTION)} == first and listed(config, CAPTION) == caption.rejected
    assert all("visual.eval_data has the same image" in r["reason"] for r in caption.rejected)
    # What the caption phase holds out does not train in the visual phase either, which has its own to hold out.
    assert caption.held_out and not set(ids(caption.held_out)) & set(ids(visual.train))
    assert {r["id"] for r in listed(config, VISUAL)} == first | set(ids(caption.held_out))
    shown = capsys.readouterr().out
    assert shown.count("caption: 6 training rows share an image or prompt with visual.eval_data: left out") == 1
    assert len(caption.train) + len(caption.held_out) + 6 == len(visual.train) + len(visual.rejected) == 24


def test_a_resumed_run_keeps_to_the_split_of_its_finished_phases(collator, settings, tmp_path: Path) -> None:
    """They are not read again, and joined images have another key without them."""
    names = draw(tmp_path, *[f"{i}.png" for i in range(24)])
    joined = write_lines(
        tmp_path / "a.jsonl", *[pair(i, images=[names[2 * i], names[2 * i + 1]], caption="C.") for i in range(12)]
    )
    single = write_lines(tmp_path / "b.jsonl", *[pair(i, image=name) for i, name in enumerate(names)])
    config = settings(caption=CaptionConfig(data=[joined]), visual=PhaseConfig(data=[single]))
    caption, visual = prepare_phases(config, [CAPTION, VISUAL], collator, [CAPTION, VISUAL]).values()
    finish(config, CAPTION)
    again = prepare_phase(config, VISUAL, collator, write=True)
    assert (ids(again.train), ids(again.held_out)) == (ids(visual.train), ids(visual.held_out))
    trained = {f"r{2 * int(e.id[1:]) + k}" for e in caption.train for k in (0, 1)}
    assert set(ids(again.train)) == trained
    assert set(read_json(Path(config.out) / "split.json")) == {"phase2-caption", "phase3-visual"}


def test_eval_data_that_finished_phases_trained_on_are_dropped(collator, settings, tmp_path: Path, capsys) -> None:
    rows = pictured(tmp_path, 12)
    config = settings(caption=CaptionConfig(data=[write_lines(tmp_path / "a.jsonl", *rows[:8])]))
    caption = prepare_phase(config, CAPTION, collator, write=True)
    finish(config, CAPTION)
    held, data = (
        write_lines(tmp_path / "b.jsonl", *rows),
        write_lines(tmp_path / "c.jsonl", *pictured(tmp_path, 20)[12:]),
    )
    config = replace(config, visual=PhaseConfig(data=[data], eval_data=[held]))
    visual = prepare_phase(config, VISUAL, collator, write=True)
    trained = set(ids(caption.train))
    assert trained and set(ids(visual.held_out)) == {f"r{i}" for i in range(12)} - trained
    assert {r["id"] for r in listed(config, VISUAL, "rejected-eval.jsonl")} == trained
    shown = f"visual: {len(trained)} rows of visual.eval_data share an image or prompt with what an earlier phase"
    assert shown in capsys.readouterr().out
    only = write_lines(tmp_path / "d.jsonl", *[row for row in rows if row["id"] in trained])
    config = replace(config, visual=PhaseConfig(data=[data], eval_data=[only]))
    with pytest.raises(UserError, match=f"leave no example held out .*{len(trained)} more share an image or prompt"):
        prepare_phase(config, VISUAL, collator, write=True)


def test_init_from_brings_the_split_of_its_run(collator, settings, tmp_path: Path, capsys) -> None:
    """With another seed, and through a run between."""
    rows = pictured(tmp_path)
    data = write_lines(tmp_path / "a.jsonl", *rows)
    first = settings(text=PhaseConfig(data=[write_lines(tmp_path / "t.jsonl", *[pair(i) for i in range(9)])]), out="")
    first = replace(first, out=str(tmp_path / "one"), caption=CaptionConfig(data=[data]))
    caption = prepare_phases(first, [TEXT, CAPTION], collator, [TEXT, CAPTION])[CAPTION]
    between = settings(
        phase="2", text=first.text, caption=CaptionConfig(data=[data]), seed=5, out=str(tmp_path / "two"),
        init_from=str(CAPTION.folder(first.out)),
    )  # fmt: skip
    assert ids(prepare_phase(between, CAPTION, collator, write=True).held_out) == ids(caption.held_out)
    others = [row | {"id": f"{row['id']}-v"} for row in rows]
    last = settings(
        phase="3", visual=PhaseConfig(data=[write_lines(tmp_path / "b.jsonl", *others)]), seed=7,
        init_from=str(CAPTION.folder(between.out) / "adapter"),
    )  # fmt: skip
    visual = prepare_phase(last, VISUAL, collator, write=True)
    assert {e.id.removesuffix("-v") for e in visual.held_out} == set(ids(caption.held_out))
    assert {e.id.removesuffix("-v") for e in visual.train} == set(ids(caption.train))
    assert "would" not in capsys.readouterr().err
    plain = prepare_phase(replace(last, init_from=""), VISUAL, collator, write=False)
    assert ids(plain.held_out) != ids(visual.held_out)  # the seed alone would leak
    elsewhere = replace(last, init_from=str(tmp_path / "merged"))
    prepare_phase(elsewhere, VISUAL, collator, write=True)
    assert "merged has no split.json beside it" in capsys.readouterr().out


def test_rows_trained_before_leave_nothing_to_hold_out(collator, settings, tmp_path: Path) -> None:
    rows = pictured(tmp_path)
    first = settings(caption=CaptionConfig(data=[write_lines(tmp_path / "a.jsonl", *rows)]), eval_fraction=0.1)
    trained = set(ids(prepare_phase(first, CAPTION, collator, write=True).train))
    some = write_lines(tmp_path / "b.jsonl", *[row for row in rows if row["id"] in trained])
    config = settings(
        phase="3", out=str(tmp_path / "on"), visual=PhaseConfig(data=[some]), init_from=str(CAPTION.folder(first.out))
    )
    with pytest.raises(UserError, match=r"no example held out .* share an image or prompt with .*; give .*eval_data"):
        prepare_phase(config, VISUAL, collator, write=True)


def test_a_run_begun_without_a_split_goes_on_as_it_was(collator, settings, tmp_path: Path, capsys) -> None:
    rows = pictured(tmp_path)
    data = write_lines(tmp_path / "a.jsonl", *rows)
    config = settings(caption=CaptionConfig(data=[data]), visual=PhaseConfig(data=[data]))
    CAPTION.folder(config.out).mkdir(parents=True)
    finish(config, CAPTION)
    assert len(all_ids(prepare_phase(config, VISUAL, collator, write=True))) == 24
    assert "was begun by a version that kept no split.json" in capsys.readouterr().out
    assert not (Path(config.out) / "split.json").exists()


def test_only_one_process_writes_the_split(collator, settings, tmp_path: Path) -> None:
    """Nor does a dry run, which is to leave nothing that decides."""
    config = settings(text=PhaseConfig(data=[write_lines(tmp_path / "a.jsonl", *[pair(i) for i in range(9)])]))
    prepare_phase(replace(config, dry_run=True), TEXT, collator, write=True)
    assert not (Path(config.out) / "split.json").exists()
    prepare_phase(config, TEXT, collator, write=True)
    assert sorted(os.listdir(config.out)) == ["phase1-text", "split.json"]


# ---- what is written -------------------------------------------------------------------------------------------------


def test_rejected_rows_are_listed_whatever_refused_them(collator, settings, tmp_path: Path) -> None:
    draw(tmp_path, *[f"{i}.png" for i in range(4)])
    (tmp_path / "3.png").write_bytes(b"")
    rows = [pair(i, image=f"{i}.png") for i in range(4)] + [
        pair(4, image="none.png"),
        pair(5, chosen="", image="0.png"),
    ]
    file = write_lines(tmp_path / "a.jsonl", *rows, '{"prompt": "broken')
    config = settings(visual=PhaseConfig(data=[file]), max_bad_fraction=4 / 7)
    found = prepare_phase(config, VISUAL, collator, write=True)
    assert listed(config, VISUAL) == found.rejected
    assert {r["location"]: r["field"] for r in found.rejected} == {
        f"{file}, row 4": "image 1",
        f"{file}, row 5": "image",
        f"{file}, row 6": "response 1",
        f"{file}, row 7": "row",
    }
    assert len(found.train) + len(found.held_out) + len(found.rejected) == 7
    with pytest.raises(UserError, match=f"4 of 7 rows are bad.*{VISUAL.folder(config.out)}/rejected.jsonl"):
        prepare_phase(replace(config, max_bad_fraction=0.5), VISUAL, collator, write=True)
    assert listed(config, VISUAL) == found.rejected  # also when the run stops


def test_over_long_rows_are_not_bad(collator, settings, tmp_path: Path, capsys) -> None:
    """They are skipped, counted apart, listed with their reason and said once; long_rows=error counts them as bad."""
    rows = [pair(i) for i in range(8)] + [pair(8, chosen="Yes. " * 200), pair(9, prompt="Why? " * 200)]
    held = write_lines(tmp_path / "held.jsonl", pair("h"), pair("long", chosen="Yes. " * 200))
    section = PhaseConfig(data=[write_lines(tmp_path / "a.jsonl", *rows, pair(10, chosen=""))], eval_data=[held])
    config = settings(text=section, max_length=256, max_bad_fraction=0.1)
    found = prepare_phase(config, TEXT, collator, write=True)
    assert (len(found.train), len(found.held_out), len(found.rejected), found.n_long) == (8, 1, 4, 3)
    lists = [listed(config, TEXT), listed(config, TEXT, "rejected-eval.jsonl")]
    assert [[row["id"] for row in rows] for rows in lists] == [["r10", "r8", "r9"], ["rlong"]]
    assert "over-long, max_length=256; raise max_length" in lists[0][1]["reason"]
    printed = capsys.readouterr().out
    assert printed.count("longer than") == 1 and "text: 3 rows are longer than max_length=256 tokens: skip" in printed
    with pytest.raises(UserError, match=r"text.data: 3 of 11 rows are bad.*(?s:.*)text.eval_data: 1 of 2 rows are bad"):
        prepare_phase(replace(config, long_rows="error"), TEXT, collator, write=True)
    found = prepare_phase(replace(config, long_rows="error", max_bad_fraction=0.5), TEXT, collator, write=True)
    assert (len(found.train), len(found.held_out), len(found.rejected), found.n_long) == (8, 1, 4, 0)
    with pytest.raises(
        UserError, match=r"leaves no example .*0 good ones.*; 10 more are longer than max_length=9, rai"
    ):
        prepare_phase(replace(config, max_length=9, text=PhaseConfig(data=section.data)), TEXT, collator, write=True)


@pytest.mark.parametrize("source", ["{a}", "{a}?n=12", "{a},{b}", "{a}?n=6,{b}?n=6", "{a}?weight=0.5,{b}?weight=0.5"])
@pytest.mark.parametrize("select", ["random", "first"])
def test_n_counts_usable_rows(collator, settings, tmp_path: Path, source: str, select: str, caplog) -> None:
    """Most rows are too long, and too long rows are found only when they are measured."""
    long = "really, " * 400
    files = {}
    for name in "ab":
        rows = [pair(f"{name}{i}", chosen=f"{long if i % 5 else 'Yes'} {i}.") for i in range(100)]
        files[name] = write_lines(tmp_path / f"{name}.jsonl", *rows)
    section = PhaseConfig(data=source.format(**files).split(","), n=12, select=select)
    config = settings(text=section, max_length=256)
    found = prepare_phase(config, TEXT, collator, write=True)
    assert len(all_ids(found)) == 12 and found.n_long == len(found.rejected) > 12
    assert len(listed(config, TEXT)) == found.n_long
    assert "asked for" not in caplog.text
    assert all_ids(prepare_phase(config, TEXT, collator, write=False)) == all_ids(found)

    config = replace(config, text=replace(section, n=99, data=[entry.partition("?")[0] for entry in section.data]))
    count = 20 * len(config.text.data)  # all that are usable
    assert len(all_ids(prepare_phase(config, TEXT, collator, write=True))) == count
    assert f"n=99 asked for, {count} usable rows found: all taken" in caplog.text


def test_n_counts_usable_pairs_and_captions(collator, settings, tmp_path: Path) -> None:
    lists = [{"prompt": f"{i}?", "responses": ["a", "b", "c"], "id": f"r{i}"} for i in range(20)]
    for row in lists[::2]:
        row["responses"] = ["a", "b", "b"]  # of three pairs one is the same text twice
    config = settings(text=PhaseConfig(data=[f"{write_lines(tmp_path / 'a.jsonl', *lists)}?pairs=true"], n=40))
    assert len(all_ids(prepare_phase(config, TEXT, collator, write=True))) == 40
    config = settings(text=replace(config.text, n=60))
    assert len(all_ids(prepare_phase(config, TEXT, collator, write=True))) == 50
    rows = [pair(i, image=f"{i}.png", caption="A cup." if i % 3 == 0 else None) for i in range(30)]
    section = CaptionConfig(data=[write_lines(tmp_path / "c.jsonl", *rows)], n=10)
    assert len(all_ids(prepare_phase(settings(caption=section), CAPTION, collator, write=True))) == 10


def test_a_draw_ends_where_too_many_rows_are_bad(collator, settings, tmp_path: Path) -> None:
    rows = [pair(i, rejected="") for i in range(100)]
    section = PhaseConfig(data=[write_lines(tmp_path / "a.jsonl", *rows)], n=10)
    with pytest.raises(UserError, match="10 of 10 rows are bad"):
        prepare_phase(settings(text=section, max_bad_fraction=0.1), TEXT, collator, write=True)


def test_columns_that_are_not_read_are_listed_once(collator, settings, tmp_path: Path, caplog) -> None:
    rows = [pair(i, reason="because", models=["m"], score_chosen=2, score_rejected=1) for i in range(8)]
    config = settings(text=PhaseConfig(data=[write_lines(tmp_path / "a.jsonl", *rows)]))
    prepare_phase(config, TEXT, collator, write=True)
    assert [record.message.partition(": ")[2] for record in caplog.records] == ["not read: reason, models"]


def test_misread_scores_of_ultrafeedback_are_counted(collator, settings, tmp_path: Path, caplog) -> None:
    def completion(response: str, overall: float, rating: str) -> Row:
        return {"response": response, "overall_score": overall, "annotations": {"honesty": {"Rating": rating}}}

    completions = [completion("Bad.", 10, "1"), completion("Good.", 8, "5")]
    rows = [{"instruction": f"{i}?", "completions": completions} for i in range(6)]
    config = settings(text=PhaseConfig(data=[write_lines(tmp_path / "a.jsonl", *rows)]))
    found = prepare_phase(config, TEXT, collator, write=True)
    assert {example.responses[0] for example in found.train} == {"Good."}
    assert "6 answers with an overall_score of 10 beside ratings of 1 or 2 are ranked as 1" in caplog.text


def test_bad_rows_of_all_phases_are_said_at_once(collator, settings, tmp_path: Path) -> None:
    draw(tmp_path, "0.png")
    bad = write_lines(tmp_path / "bad.jsonl", pair(0), pair(1, chosen=""))
    unread = write_lines(tmp_path / "unread.jsonl", pair(2, image="none.png"), pair(3, image="none.png"))
    pictured = write_lines(tmp_path / "pictured.jsonl", pair(4, image="0.png", caption="C"), pair(5, caption=""))
    config = settings(
        text=PhaseConfig(data=[bad]), caption=CaptionConfig(data=[pictured]), visual=PhaseConfig(data=[unread])
    )
    with pytest.raises(UserError) as caught:
        prepare_phases(
            replace(config, max_bad_fraction=0.4), [TEXT, CAPTION, VISUAL], collator, [TEXT, CAPTION, VISUAL]
        )
    text, caption, visual = (f"{phase.folder(config.out)}/rejected.jsonl" for phase in PHASES)
    message = str(caught.value)
    for part in (
        f"text.data: 1 of 2 rows are bad, more than max_bad_fraction=0.4 allows (all of them: {text})",
        f"{bad}, row 2: response 1 = \"''\": the response is empty",
        f"caption.data: 1 of 2 rows are bad, more than max_bad_fraction=0.4 allows (all of them: {caption})",
        "no caption for image",
        f"visual.data: {unread}: not one row can be used. 2 rows cannot be used; the first, {unread}, row 1: image =",
        f"(all of them: {visual})",
    ):
        assert part in message
    assert [len(listed(config, phase)) for phase in PHASES] == [1, 1, 2]


def test_a_phase_may_have_a_limit_of_its_own(collator, settings, tmp_path: Path) -> None:
    """A finished phase stays finished when the limits change: which rows are skipped does not depend on them."""
    file = write_lines(tmp_path / "a.jsonl", *[pair(i) for i in range(4)], pair(9, chosen=""))
    text = PhaseConfig(data=[file], max_bad_fraction=0.2)
    assert len(prepare_phase(settings(text=text, max_bad_fraction=0.0), TEXT, collator, write=True).rejected) == 1
    strict = replace(text, max_bad_fraction=0.1)
    assert settings_of(settings(text=text), TEXT) == settings_of(settings(text=strict, long_rows="error"), TEXT)
    with pytest.raises(
        UserError, match="1 of 5 rows are bad, more than text.max_bad_fraction=0.1 allows.*raise text.m"
    ):
        prepare_phase(settings(text=strict), TEXT, collator, write=True)


def test_only_one_process_writes(collator, settings, tmp_path: Path) -> None:
    config = settings(text=PhaseConfig(data=[write_lines(tmp_path / "a.jsonl", *[pair(i) for i in range(4)])]))
    prepare_phase(config, TEXT, collator, write=False)
    assert not Path(config.out).exists()


def test_the_list_is_whole_or_the_old_one(collator, settings, tmp_path: Path, monkeypatch) -> None:
    config = settings(
        text=PhaseConfig(data=[write_lines(tmp_path / "a.jsonl", *[pair(i) for i in range(4)], pair(4, chosen=""))])
    )
    prepare_phase(config, TEXT, collator, write=True)
    before = listed(config, TEXT)

    def full(*paths: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(UserError, match=r"rejected.jsonl cannot be written \(No space left on device\); .* out="):
        prepare_phase(config, TEXT, collator, write=True)
    assert listed(config, TEXT) == before and len(before) == 1
    assert os.listdir(TEXT.folder(config.out)) == ["rejected.jsonl"]


# ---- how many --------------------------------------------------------------------------------------------------------


def test_n_and_select(collator, settings, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", *[pair(i) for i in range(30)])

    def drawn(seed: int, **section: Any) -> set[str]:
        config = settings(text=PhaseConfig(data=[file], **section), seed=seed)
        return all_ids(prepare_phase(config, TEXT, collator, write=False))

    assert drawn(0, n=5, select="first") == {f"r{i}" for i in range(5)}
    assert len(drawn(0, n=5)) == 5
    assert drawn(0, n=5) == drawn(0, n=5) != drawn(1, n=5)
    assert len(drawn(0, n=99)) == len(drawn(0)) == 30


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_fractions_that_leave_nothing(collator, settings, tmp_path: Path, fraction: float) -> None:
    file = write_lines(tmp_path / "a.jsonl", *[pair(i) for i in range(4)])
    config = settings(text=PhaseConfig(data=[file]), eval_fraction=fraction)
    with pytest.raises(UserError, match=f"eval_fraction={fraction:g} leaves phase 1 nothing.*or text.eval_data"):
        prepare_phase(config, TEXT, collator, write=False)
    given = replace(config, text=PhaseConfig(data=[file], eval_data=[write_lines(tmp_path / "b.jsonl", pair("x"))]))
    assert len(prepare_phase(given, TEXT, collator, write=False).train) == 4  # with eval_data it plays no part


def test_one_group_cannot_be_split(collator, settings, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", *[pair(i, prompt="The same?") for i in range(4)])
    config = settings(text=PhaseConfig(data=[file]))
    with pytest.raises(UserError, match=r"text.data leaves no example (held out|to train on) \(4 good ones"):
        prepare_phase(config, TEXT, collator, write=False)


@pytest.mark.parametrize("phase", [TEXT, CAPTION, VISUAL])
def test_no_data(collator, settings, phase: Phase) -> None:
    with pytest.raises(UserError, match=f"phase {phase.number} needs data: set {phase.name}.data"):
        prepare_phase(settings(), phase, collator, write=False)


# ---- the run folder --------------------------------------------------------------------------------------------------


# ---- real data -------------------------------------------------------------------------------------------------------

real = pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not here")


def count_rows(*files: str) -> int:
    texts = [(REAL / file).read_text() for file in files]
    return sum(len(json.loads(t)) if t.startswith("[") else len(t.splitlines()) for t in texts)


def sources(*files: str) -> list[str]:
    return [str(REAL / file) for file in files]


def accounted_for(config: TrainConfig, phase: Phase, collator: RewardCollator, read: int) -> PhaseData:
    found = prepare_phase(replace(config, max_length=16384, max_bad_fraction=0.2), phase, collator, write=True)
    good = found.train + found.held_out
    assert len(good) + len(found.rejected) == read
    assert listed(config, phase) == found.rejected
    assert len({e.id for e in good}) == len(good) and all(e.lengths for e in good)
    assert 0 < len(found.held_out) < 0.25 * len(good)
    return found


@real
def test_real_text(collator, settings) -> None:
    files = ("text_prefs/llmbar.jsonl", "text_prefs/llamafactory_dpo_en_demo.json")
    long = f"{REAL}/text_prefs/alpaca_eval_gpt4turbo.jsonl?n=100"  # its rows take most of the time
    config = settings(text=PhaseConfig(data=[*sources(*files), long]), eval_fraction=0.05)
    found = accounted_for(config, TEXT, collator, read=count_rows(*files) + 100)
    assert not any(e.images for e in found.train)
    assert {e.source for e in found.train} == {"llmbar", "alpaca_eval_gpt4turbo", "llamafactory_dpo_en_demo"}
    assert {r["reason"].split(",")[0] for r in found.rejected} <= {"all responses are tied"}


@real
def test_real_captions(collator, settings) -> None:
    file = "caption_prefs/coco_caption_vs_foil.jsonl"
    section = CaptionConfig(data=sources(file), captions=str(REAL / "coco_photos/photos.jsonl"))
    config = settings(caption=section, eval_fraction=0.05)
    found = accounted_for(config, CAPTION, collator, read=count_rows(file))
    assert all(e.prompt[0]["content"].startswith("Image description: ") for e in found.train)
    assert not any(e.responses[0] in e.prompt[0]["content"] for e in found.train + found.held_out)
    assert {r["field"] for r in found.rejected} == {"caption"}  # leaks, and photos without a caption


@real
def test_real_pictures(collator, settings) -> None:
    files = ("caption_prefs/coco_caption_vs_foil.jsonl", "scienceqa/visual_prefs.jsonl", "mmvet/visual_prefs.jsonl")
    drawn = f"{REAL}/nlvr/nlvr_dev.jsonl?n=100"
    config = settings(visual=PhaseConfig(data=[*sources(*files), drawn]), eval_fraction=0.05)
    found = accounted_for(config, VISUAL, collator, read=count_rows(*files) + 100)
    assert not found.rejected and all(e.images for e in found.train)
    held_out = {ref.path for e in found.held_out for ref in e.images}
    assert not held_out & {ref.path for e in found.train for ref in e.images}
