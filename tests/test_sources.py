"""Sources: how they are written, and what each kind of file gives; images stay unread."""

import json
from pathlib import Path

import pytest
from helpers import write_lines

from rovrm.common.errors import UserError
from rovrm.data import sources
from rovrm.data.images import ImageRef
from rovrm.data.raw_rows import Rows
from rovrm.data.sources import load_rows, parse_source, parse_sources

GARBAGE = b"these bytes are no image: reading them would fail"


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return datasets


def load(name: object) -> Rows:
    return load_rows(parse_source(str(name)))


def values(rows: Rows) -> list:
    return [row.values for row in rows.take(range(len(rows)))]


def test_options() -> None:
    source = parse_source("owner/name?split=test&n=5&weight=0.5&columns.prompt=q&reader=plain&config=c&revision=r")
    assert (source.name, source.split, source.n, source.weight) == ("owner/name", "test", 5, 0.5)
    assert (source.columns, source.reader, source.config, source.revision) == ({"prompt": "q"}, "plain", "c", "r")
    assert not source.pairs and parse_source("owner/name?pairs=true").pairs
    assert not parse_source("owner/name?pairs=false").pairs
    assert parse_source("part-?.jsonl?n=2").name == "part-?.jsonl"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a.json?splt=x", r"unknown option 'splt'; valid are split, config, .*columns\.CANONICAL=THEIRS"),
        ("a.json?n=0", "n='0' takes a whole number above 0"),
        ("a.json?n=1.5", "n='1.5' takes a whole number"),
        ("a.json?weight=nan", "weight='nan' takes a number above 0"),
        ("a.json?pairs=yes", "pairs='yes' takes true or false"),
        ("a.json?split=", "option 'split' has no value"),
        ("a.json?n=1&n=2", "'n' is given twice"),
    ],
)
def test_wrong_options(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        parse_source(text)
    assert text in str(caught.value)


def test_lists() -> None:
    for text in ("a,b", "[a,b]", "[a, 'b']", ["a", "b"]):
        assert [source.name for source in parse_sources(text)] == ["a", "b"]
    with pytest.raises(UserError, match="no data source given"):
        parse_sources("[]")
    with pytest.raises(UserError, match="'a' is named twice"):
        parse_sources("a,a")


def test_jsonl_with_a_broken_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"x": "line\u2028separator"}, {"y": [1]}, '{"x": ', "", [1], {"x": 2})
    rows = load(path)
    listed = list(rows.take(range(len(rows))))
    assert [row.values is None for row in listed] == [False, False, True, True, False]
    assert listed[2].location == f"{path}, row 3"
    assert "broken JSON at column" in listed[2].problem and "mend or delete the line" in listed[2].problem
    assert "a row is a JSON object, got list" in listed[3].problem
    assert listed[4].location == f"{path}, row 6"  # the line number, blank lines counted
    assert rows.columns == ["x", "y"]


@pytest.mark.parametrize(
    "text",
    [
        '[{"x": 1}, {"x": "2"}]',
        '{"x": 1}\n{"x": "2"}\n',
        '{"data": [{"x": 1}, {"x": "2"}]}',
        '\ufeff[{"x":1},{"x":"2"}]',
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_in_every_form(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert values(load(tmp_path / name)) == [{"x": 1}, {"x": "2"}]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b"a,b\n1,2\n", r"neither a JSON list nor JSONL; .*row 1: broken JSON .*write one JSON object per line"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
        (b"[]", "no rows"),
    ],
)
def test_files_that_are_not_data(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(UserError, match=reason) as caught:
        load(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(caught.value)


def test_globs_and_folders(tmp_path: Path) -> None:
    write_lines(tmp_path / "part-1.jsonl", {"x": 1})
    write_lines(tmp_path / "part-2.jsonl", {"x": 2})
    (tmp_path / "dataset_info.json").write_text("{}")
    both = [{"x": 1}, {"x": 2}]
    assert values(load(tmp_path / "part-?.jsonl")) == both
    assert values(load(tmp_path)) == both
    with pytest.raises(UserError, match="no file matches"):
        load(tmp_path / "none-*.jsonl")


def test_splits_of_a_folder(tmp_path: Path) -> None:
    write_lines(tmp_path / "data" / "train-0.jsonl", {"x": 1})
    write_lines(tmp_path / "data" / "test-0.jsonl", {"x": 2})
    assert values(load(tmp_path)) == [{"x": 1}]
    assert values(load(f"{tmp_path}?split=test")) == [{"x": 2}]
    with pytest.raises(UserError, match="no split 'val'; it has test, train"):
        load(f"{tmp_path}?split=val")
    (tmp_path / "data" / "train-0.jsonl").rename(tmp_path / "data" / "val-0.jsonl")
    with pytest.raises(UserError, match=r"which split\? It has test, val; add \?split=NAME"):
        load(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder, and not a hub id"):
        load(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match="the folder holds no .json"):
        load(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"cannot read \.txt files; takes \.json"):
        load(tmp_path / "a.txt")


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t"), ("a.csv", "\t")])
def test_tables(tmp_path: Path, name: str, separator: str) -> None:
    file = tmp_path / name
    lines = [
        "prompt|chosen|margin|responses",
        '"two\nlines, ""quoted"" ; \t"|a|0.5|',
        "",
        "Q||1| ",
        "a|b",
        "x|y|1|2|3",
        "Q|b||[1",
    ]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).replace("|", separator).encode())
    rows = list(load(file).take(range(5)))
    assert [row.values for row in rows] == [
        {"prompt": 'two\nlines, "quoted" ; \t', "chosen": "a", "margin": 0.5, "responses": None},
        {"prompt": "Q", "chosen": None, "margin": 1, "responses": None},
        None,
        None,
        {"prompt": "Q", "chosen": "b", "margin": None, "responses": "[1"},
    ]
    assert [row.location for row in rows] == [f"{file}, row {number}" for number in (2, 5, 6, 7, 8)]
    assert rows[2].problem.startswith("2 cells, where the header has 4") and rows[3].problem.startswith("5 cells")


def test_tables_that_other_tools_wrote(tmp_path: Path, datasets) -> None:
    """Messages and lists are written as their text; what only looks like a list stays a text."""
    messages = [{"role": "user", "content": "It's one?"}]
    rows = [{"prompt": messages, "responses": ["a", "b"], "chosen": "[1]", "x": "[{'a': 1}]"}] * 2
    datasets.Dataset.from_list(rows).to_csv(tmp_path / "a.csv")
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(rows).to_csv(tmp_path / "b.tsv", index=False, sep="\t")
    for name in ("b.tsv", "a.csv"):
        found = values(load(tmp_path / name))
        assert len(found) == 2
        assert [found[0][column] for column in ("prompt", "chosen", "x")] == [messages, "[1]", "[{'a': 1}]"]
    assert values(load(tmp_path / "b.tsv"))[0]["responses"] == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"prompt,chosen\n", "no rows below its header"),
        (b"prompt,,chosen\na,b,c", r"names the columns, each once; got 'prompt,,chosen'"),
        (b"prompt,prompt\na,b", "names the columns, each once"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(UserError, match=reason) as caught:
        load(tmp_path / "a.csv")
    assert str(tmp_path / "a.csv") in str(caught.value)


def test_broken_quotes_of_a_table_are_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f'x,y\n"a"b,c\n{"d" * 200_000},e\n"f,g\nh,i\n')
    rows = list(load(tmp_path / "a.csv").take(range(3)))
    assert [row.values and row.values["y"] for row in rows] == [None, "e", None]
    assert all("broken quotes" in rows[i].problem and "mend or delete the row" in rows[i].problem for i in (0, 2))
    with pytest.raises(UserError, match="no split 'test'; it has train"):
        load(f"{tmp_path / 'a.csv'}?split=test")


def test_splits_inside_a_json_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"train": [{"x": 1}], "test": [{"x": 2}], "empty": []}))
    for name in (tmp_path / "a.json", tmp_path):
        assert values(load(name)) == [{"x": 1}]
        assert values(load(f"{name}?split=test")) == [{"x": 2}]
        with pytest.raises(UserError, match="no split 'val'; it has train, test, empty"):
            load(f"{name}?split=val")
        with pytest.raises(UserError, match="no rows"):
            load(f"{name}?split=empty")
    (tmp_path / "a.json").write_text(json.dumps({"easy": [{"x": 1}], "hard": [{"x": 2}]}))
    with pytest.raises(UserError, match=r"which split\? It has easy, hard; add \?split=NAME"):
        load(tmp_path / "a.json")
    row = {"prompt": [{"role": "user", "content": "Q"}], "chosen": [{"from": "gpt", "value": "A"}]}
    (tmp_path / "a.json").write_text(json.dumps(row))  # a file of one row
    assert values(load(tmp_path / "a.json")) == [row]


def pictures(datasets):
    features = datasets.Features(
        {"x": datasets.Value("string"), "image": datasets.Image(), "images": datasets.List(datasets.Image())}
    )
    cell = {"bytes": GARBAGE, "path": "in/a.png"}
    listed = [{"x": "a", "image": cell, "images": [cell, cell]}, {"x": "b", "image": None, "images": []}]
    return datasets.Dataset.from_list(listed, features=features)


def assert_pictures(rows: Rows) -> None:
    first, second = rows.take([0, 1])
    assert first.values and second.values
    assert (first.values["x"], second.values) == ("a", {"x": "b", "image": None, "images": None})
    assert isinstance(first.values["image"], ImageRef)
    assert [ref.item for ref in first.values["images"]] == [0, 1]
    assert first.values["image"].name in ("in/a.png", "a.png")  # save_to_disk keeps the file name only
    with pytest.raises(UserError, match=r"column 'images', row 1, image 2: not an image"):
        first.values["images"][1].open()
    assert [row.number for row in rows.take([1, 0])] == [2, 1]


def test_images_are_not_read_at_load(tmp_path: Path, datasets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("decoded at load"))
    table = pictures(datasets)
    table.save_to_disk(str(tmp_path / "saved"))
    table.to_parquet(tmp_path / "train.parquet")
    with monkeypatch.context() as patch:
        patch.setattr(ImageRef, "_source", lambda self: pytest.fail("bytes read at load"))
        saved, parquet = load(tmp_path / "saved"), load(tmp_path / "train.parquet")
        assert [len(values(rows)) for rows in (saved, parquet)] == [2, 2]
    assert_pictures(saved)
    assert_pictures(parquet)
    assert list(parquet.take([1]))[0].location == f"{tmp_path / 'train.parquet'}, row 2"


def test_saved_dict_and_selected_rows(tmp_path: Path, datasets) -> None:
    table = pictures(datasets)
    datasets.DatasetDict(test=table, validation=table).save_to_disk(str(tmp_path / "saved"))
    assert_pictures(load(f"{tmp_path / 'saved'}?split=test"))
    with pytest.raises(UserError, match="which split"):
        load(tmp_path / "saved")
    rows = sources.dataset_rows(table.select([1, 0]), "memory", "memory")
    assert [isinstance(v["image"], ImageRef) for v in values(rows)] == [False, True]
    with pytest.raises(UserError, match="no rows"):
        sources.dataset_rows(table.select([]), "memory", "memory")


def test_hub_with_a_network(datasets, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub cannot be reached from the tests: what we ask of it is asserted, not what it answers."""
    asked = {}
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: ["validation"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.update(k, args=a) or pictures(datasets))
    rows = load("owner/name?config=c&revision=r")
    assert asked == {"args": ("owner/name", "c"), "split": "validation", "revision": "r"}
    assert next(rows.take([0])).location == "owner/name, row 1"


def test_hub_without_a_network(datasets, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_, **__):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "get_dataset_split_names", offline)
    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match=r"owner/name is not a local path, and no such hub .* be reached .*Couldn't"):
        load("owner/name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"; HF_HUB_OFFLINE=1 is set, so only what is in the cache is found: unset it"):
        load("owner/name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "yes")
    with pytest.raises(UserError, match="HF_DATASETS_OFFLINE=yes is set"):
        load("owner/name")


def test_a_folder_named_like_a_hub_id_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "owner" / "name" / "a.jsonl", {"x": 1})
    monkeypatch.chdir(tmp_path)
    assert values(load("owner/name")) == [{"x": 1}]


def test_a_video_column_is_marked_and_not_read(datasets) -> None:
    features = datasets.Features({"x": datasets.Value("int64"), "video": datasets.Video()})
    cells = [{"x": 1, "video": {"bytes": GARBAGE, "path": None}}, {"x": 2, "video": None}]
    rows = sources.dataset_rows(datasets.Dataset.from_list(cells, features=features), "m", "m")
    assert values(rows) == [{"x": 1, "video": "video"}, {"x": 2, "video": None}]


@pytest.mark.parametrize("line", ['{"n": ' + "9" * 5000 + "}", "[" * 100_000], ids=["digits", "brackets"])
def test_absurd_json_is_a_bad_row(tmp_path: Path, line: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "a"}\n' + line + "\n")
    rows = list(load_rows(parse_source(str(file))).take(range(2)))
    assert rows[1].values is None and "mend or delete the line" in rows[1].problem


@pytest.mark.parametrize("name", ["a" * 5000, "a\0.jsonl", "~\0", "\ud800.jsonl", "a/" * 3000 + "b.json", "[z-a].json"])
def test_odd_names_are_not_found(name: str) -> None:
    with pytest.raises(UserError, match="mend"):
        load(name)


def test_what_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*given, **options):  # root may read everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        load(tmp_path)
    write_lines(tmp_path / "a.json", {"a": 1})
    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(UserError, match=r"a.json: cannot be read \(Permission denied\)"):
        load(tmp_path / "a.json")


def test_a_damaged_saved_data_set(datasets, tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"a": 1}]).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"saved'?: cannot be read .*; mend or replace it"):
        load(tmp_path / "saved")


def test_a_row_that_holds_no_text_is_that_rows_problem(datasets) -> None:
    import pyarrow

    cells = pyarrow.array([b"one", b"\xff\xfe", b"three"], pyarrow.binary()).view(pyarrow.utf8())
    table = datasets.Dataset(pyarrow.table({"prompt": cells}))
    rows = list(sources.dataset_rows(table, "damaged", stem="damaged").take([0, 1, 2]))
    assert [row.values for row in rows] == [{"prompt": "one"}, None, {"prompt": "three"}]
    assert "cannot be read (UnicodeDecodeError" in rows[1].problem and rows[1].location == "damaged, row 2"


def test_a_list_nested_too_deeply_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"a": 1}, ' + "[" * 900 + "]" * 900 + "]")
    assert [row.values for row in load(tmp_path / "a.json").take([0, 1])] == [{"a": 1}, None]
