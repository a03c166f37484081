"""Shards of features: round trip, going on after a kill, and refusing what is stale."""

import pytest
import torch
from helpers import read_json

from data_selection.store import Store, StoreError

IDS = [f"row-{i}" for i in range(23)]
MADE_FROM = {"model": "tiny", "seed": 0, "width": 6}


def features() -> torch.Tensor:
    return 1e3 * torch.randn(23, 6, generator=torch.Generator().manual_seed(0))


def filled(folder, shards=None) -> Store:
    store = Store(folder, IDS, MADE_FROM, shard=5)
    for shard in store.missing() if shards is None else shards:
        rows = store.rows(shard)
        store.write(shard, features()[rows.start : rows.stop])
    return store


def test_round_trip(tmp_path):
    store = filled(tmp_path)
    assert len(store) == 5 and list(store.rows(4)) == [20, 21, 22] and store.missing() == []
    units, norms = store.load()
    assert read_json(tmp_path / "ids.json") == IDS
    assert units.dtype == torch.float16 and norms.dtype == torch.float32
    assert torch.equal(norms, features().norm(dim=1))  # 2,400 and more: beyond what a sum of halves would keep
    assert torch.allclose(units.float() * norms[:, None], features(), rtol=2e-3, atol=2e-3 * 1e3)


def test_goes_on_with_what_is_missing_and_ends_in_the_same_bytes(tmp_path):
    filled(tmp_path / "straight")
    filled(tmp_path / "killed", [0, 3])
    (tmp_path / "killed" / "features-00003.safetensors").write_bytes(b"cut off")
    (tmp_path / "killed" / "features-00001.99.tmp").write_bytes(b"half")
    store = Store(tmp_path / "killed", IDS, MADE_FROM, shard=5)
    assert store.missing() == [1, 2, 3, 4]
    with pytest.raises(StoreError, match="4 of 5 shards are missing"):
        store.load()
    filled(tmp_path / "killed")
    for file in (tmp_path / "straight").iterdir():
        assert (tmp_path / "killed" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("ids", "made_from", "named"),
    [
        (IDS, MADE_FROM | {"model": "large"}, "model: 'tiny', now 'large'"),
        (IDS, MADE_FROM | {"width": 7}, "width: 6, now 7"),
        (IDS[:-1], MADE_FROM, "ids"),
        (IDS[::-1], MADE_FROM, "ids"),
        (IDS, MADE_FROM | {"layers": "q_proj"}, "layers: None, now 'q_proj'"),
    ],
)
def test_stale_features_are_refused(tmp_path, ids, made_from, named):
    filled(tmp_path)
    with pytest.raises(StoreError, match=named):
        Store(tmp_path, ids, made_from, shard=5)


def test_a_store_without_a_mark_is_taken_and_goes_on(tmp_path):
    """One of before there were marks: it says so, its shards stay whole and new ones fit them; one with another mark is
    refused."""
    filled(tmp_path / "old")
    (tmp_path / "old" / "features-00001.safetensors").unlink()
    store = Store(tmp_path / "old", IDS, MADE_FROM, shard=5, marks={"images": "a"})
    assert store.unmarked == ["images"] and store.missing() == [1]
    store.write(1, features()[5:10])
    assert Store(tmp_path / "old", IDS, MADE_FROM, shard=5).missing() == []
    assert Store(tmp_path / "new", IDS, MADE_FROM, shard=5, marks={"images": "a"}).unmarked == []
    assert Store(tmp_path / "new", IDS, MADE_FROM, shard=5, marks={"images": "a"}).unmarked == []
    with pytest.raises(StoreError, match="images: 'a', now 'b'"):
        Store(tmp_path / "new", IDS, MADE_FROM, shard=5, marks={"images": "b"})


def test_a_shard_of_another_store_is_not_taken(tmp_path):
    filled(tmp_path / "one")
    other = Store(tmp_path / "other", IDS, MADE_FROM | {"seed": 1}, shard=5)
    (tmp_path / "one" / "features-00002.safetensors").rename(tmp_path / "other" / "features-00002.safetensors")
    assert 2 in other.missing()


def test_what_cannot_be_a_store(tmp_path):
    for ids in ([], ["a", "a"]):
        with pytest.raises(StoreError, match="give every row a name of its own"):
            Store(tmp_path / "a", ids, MADE_FROM)
    Store(tmp_path / "b", ["a\nb", "c"], MADE_FROM)
    with pytest.raises(StoreError, match="made from something else .ids"):
        Store(tmp_path / "b", ["a", "b\nc"], MADE_FROM)
    (tmp_path / "b" / "store.json").write_text("{")
    with pytest.raises(StoreError, match=r"store\.json is broken .* to extract anew"):
        Store(str(tmp_path / "b"), ["a"], MADE_FROM)
    store = Store(tmp_path / "c", ["a", "b"], {}, shard=1)
    store.write(0, torch.ones(1, 4))
    store.write(1, torch.ones(1, 5))
    with pytest.raises(StoreError, match=r"holds features of widths \[4, 5\]"):
        store.load()


def test_rows_without_a_direction_are_named(tmp_path):
    store = Store(tmp_path, IDS, MADE_FROM, shard=5)
    bad = features()[5:10]
    bad[2] = 0
    with pytest.raises(StoreError, match="'row-7' is all zero: its responses are the same"):
        store.write(1, bad)
    bad[2, 1] = float("nan")
    with pytest.raises(StoreError, match="'row-7' is not finite"):
        store.write(1, bad)
    with pytest.raises(StoreError, match="shard 4 takes 3 rows, got 5"):
        store.write(4, features()[:5])
    assert store.missing() == [0, 1, 2, 3, 4]
