"""The whole choice on mixtures whose worth is known, its checks, and its command."""

import re

import numpy as np
import pytest
import torch
from helpers import error_line, output_of, read_json
from mixtures import mixture, quality
from safetensors.torch import save_file

from data_selection.__main__ import main
from data_selection.choose import SelectionError, choose, near_duplicates, representative
from data_selection.features import Features, prepare, side_price
from data_selection.transport import METHODS, PRICED, wasserstein

K = 400


@pytest.fixture(scope="module")
def mix():
    return mixture(0)


def of(mix, method: str, preprocess=None) -> dict[str, float]:
    chosen = choose(mix.pool, mix.target, K, method, preprocess)
    distance = wasserstein(mix.pool[torch.from_numpy(chosen.indices)], mix.held_out)
    return quality(mix, chosen.indices) | {"distance": distance}


def test_the_paper_takes_decoys_on_the_mean_of_several_modes(mix):
    found = of(mix, "paper")
    assert found["decoys"] > 0.95 and found["precision"] < 0.05
    assert found["distance"] > of(mix, "random")["distance"] - 0.05  # no better than chance


@pytest.mark.parametrize(
    ("method", "unique", "worst"),
    [
        ("capped_ot", 0.88, 0.75),
        ("capped_sinkhorn", 0.92, 0.3),
        ("round_robin", 0.88, 0.75),
        ("knn", 0.95, 0.7),
        ("soft_nn", 0.95, 0.6),
    ],
)
def test_methods_that_cover_the_target(mix, method: str, unique: float, worst: float):
    found = of(mix, method)
    assert found["unique"] > unique and found["worst"] > worst
    assert found["distance"] < 0.7 * of(mix, "random")["distance"]


@pytest.mark.parametrize("method", ("max_cos", "gotd"))
def test_methods_that_starve_a_mode(mix, method: str):
    """Everything they take is on target, but one mode gets far less than its share."""
    found = of(mix, method)
    assert found["unique"] > 0.95 and found["worst"] < 0.7


def test_capped_transport_is_the_nearest_set(mix):
    """Of all methods it is the nearest to the target it sees, by construction; duplicates left in."""
    target = prepare(Features(mix.pool), Features(mix.target), unit=True, centre=False)[1].all()
    distances = {}
    for method in ("capped_ot", "knn", "round_robin", "soft_nn", "max_cos", "gotd"):
        rows = mix.pool[torch.from_numpy(choose(mix.pool, mix.target, K, method, ["unit"]).indices)]
        distances[method] = wasserstein(rows, target)
    assert min(distances, key=distances.__getitem__) == "capped_ot"


def test_centring_takes_away_what_pool_and_target_share():
    """Preferences have a sign. Where nine tenths of a pool and the whole target share a direction, the rows that point
    against it are left out by default, and less surely once the pool's mean is gone."""
    generator = torch.Generator().manual_seed(0)
    shared = 0.3 * torch.nn.functional.one_hot(torch.tensor(0), 64)
    sign = torch.ones(2000, 1)
    sign[:200] = -1
    pool = sign * shared + torch.randn(2000, 64, generator=generator) / 8
    target = shared + torch.randn(200, 64, generator=generator) / 8
    kept = {
        steps: (choose(pool, target, 600, "capped_ot", steps.split(",")).indices < 200).mean() / 0.1
        for steps in ("unit", "unit,centre")
    }
    assert kept["unit"] < 0.15 and kept["unit,centre"] > 3 * kept["unit"], kept
    assert choose(pool, target, 600).preprocess == ["unit", "dedup"]


def test_copies_count_once(mix):
    twice = torch.cat([mix.pool, mix.pool[:100] * 3.0])
    dropped = near_duplicates(prepare(Features(twice), Features(mix.target), True, True)[0], mix.target, K)
    assert not dropped[:100][~near_duplicates(Features(mix.pool, unit=True), mix.target, K)[:100]].any()
    on_target = mix.mode[:100] >= 0
    assert dropped[len(mix.pool) :][on_target].mean() > 0.8  # far from every target row nobody looks
    chosen = choose(mix.pool, mix.target, K, "knn").indices
    copies = np.bincount(mix.copy[chosen])
    assert copies.max() <= 2  # of 50: copies at the edge of every target's list may be missed


@pytest.mark.parametrize("method", ("max_cos", "mean_l2", "capped_ot", "knn", "random"))
def test_rows_with_many_copies_are_taken_once(method: str):
    """Every target's nearest rows are copies of one row, so no list holds a second."""
    generator = torch.Generator().manual_seed(0)
    different = torch.randn(60, 16, generator=generator)
    choice = choose(different.repeat_interleave(50, 0), torch.randn(40, 16, generator=generator), 40, method)
    assert len(set((choice.indices // 50).tolist())) == 40
    assert not choice.duplicates[choice.indices].any()
    with pytest.raises(SelectionError, match="k=61, but .* of the pool's 3000 rows are near-duplicates"):
        choose(different.repeat_interleave(50, 0), torch.randn(40, 16, generator=generator), 61, method)


def test_scores_rows_and_targets_agree(mix):
    choice = choose(mix.pool, mix.target, K)
    assert len(set(choice.indices.tolist())) == K == len(choice.nearest)
    values = choice.scores[choice.indices]
    assert (np.diff(values) <= 0).all() and values.min() >= np.delete(choice.scores, choice.indices).max()
    assert np.isneginf(choice.scores[choice.duplicates]).all() and not choice.duplicates[choice.indices].any()
    everything = choose(mix.pool, mix.target, 0, "all")
    assert everything.indices.tolist() == list(range(len(mix.pool)))


def test_random_is_seeded(mix):
    first, again, other = (choose(mix.pool, mix.target, K, "random", seed=seed).indices for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()


@pytest.mark.parametrize("method", ("kmeans", "random"))
def test_representatives(mix, method: str):
    rows = representative(mix.held_out, 40, method)
    assert len(set(rows.tolist())) == 40 and rows.max() < 1000
    assert rows.tolist() == representative(mix.held_out, 40, method).tolist()
    if method == "kmeans":
        drawn = representative(mix.held_out, 40, "random")
        assert wasserstein(mix.held_out[rows], mix.held_out) < wasserstein(mix.held_out[drawn], mix.held_out)


def test_representatives_of_few_different_rows():
    rows = torch.eye(4).repeat(5, 1)
    assert len(set(representative(rows, 10).tolist())) == 10
    with pytest.raises(SelectionError, match="at most as many"):
        representative(rows, 21)


def rows(n: int, width: int = 4) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(n))


def spoiled(value: float) -> torch.Tensor:
    bad = rows(30)
    bad[17] = value
    return bad


@pytest.mark.parametrize(
    ("pool", "target", "k", "options", "told"),
    [
        (rows(30), rows(9), 31, {}, "k=31 of a pool of 30 rows; .*method=all"),
        (rows(30), rows(9), 0, {}, "k=0; give the number of rows"),
        (rows(30), rows(7), 5, {}, "the target has 7 rows; give at least 8"),
        (rows(30), rows(9, 5), 5, {}, "width 4, the target's 5"),
        (spoiled(float("nan")), rows(9), 5, {}, "pool row 17 is not finite"),
        (spoiled(0.0), rows(9), 5, {}, "pool row 17 is all zero"),
        (rows(30), spoiled(float("inf")), 5, {}, "target row 17 is not finite"),
        (rows(30)[0], rows(9), 5, {}, r"pool has shape \(4,\)"),
        (rows(1).repeat(30, 1), rows(9), 5, {"preprocess": ["unit", "centre"]}, "all point the same way"),
        (rows(30), rows(9), 5, {"method": "best"}, "method='best'; takes capped_ot, "),
        (rows(30), rows(9), 5, {"preprocess": ["white"]}, "preprocess has 'white'; takes unit, centre, dedup"),
        (rows(1).repeat(30, 1) + 0.001 * rows(30), rows(9), 5, {"preprocess": ["unit", "dedup"]}, "near-duplicates"),
    ],
)
def test_bad_input_is_named(pool, target, k, options, told):
    with pytest.raises(SelectionError, match=told):
        choose(pool, target, k, **options)


@pytest.mark.parametrize("kind", ("npy", "safetensors"))
def test_command(mix, tmp_path, kind: str, capsys):
    for name, values in (("pool", mix.pool), ("target", mix.target)):
        if kind == "npy":
            np.save(tmp_path / f"{name}.npy", values.numpy().astype(np.float16))
        else:
            save_file({"features": values.half(), "norms": values.norm(dim=1)}, tmp_path / f"{name}.safetensors")
    words = [f"pool={tmp_path}/pool.{kind}", "--target", f"{tmp_path}/target.{kind}", "k=50", f"out={tmp_path}/out"]
    assert re.search(
        r"50 of 4000 rows by knn: .*; \d{2,} near-duplicates passed over",
        output_of(capsys, main, *words, "--method=knn", "preprocess=unit,dedup"),
    )
    record = read_json(tmp_path / "out" / "selected.json")
    assert (record["method"], record["k"], record["preprocess"]) == ("knn", 50, ["unit", "dedup"])
    twin = choose(mix.pool.half(), mix.target.half(), 50, "knn", ["unit", "dedup"])
    assert record["indices"] == twin.indices.tolist()
    assert np.load(tmp_path / "out" / "scores.npy").tolist() == twin.scores.tolist()
    assert main([*words, "method=paper"]) == 0
    assert read_json(tmp_path / "out" / "selected.json")["preprocess"] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "pool= is missing"),
        (["pool=nowhere.npy", "target=b.npy", "k=5", "out=o"], "nowhere.npy: no such file"),
        (["pool=a.txt", "target=b.npy", "k=five", "out=o"], "k and seed take whole numbers"),
        (["pool=a.npy", "taget=b.npy"], "got 'taget=b.npy'; takes pool=, target="),
        (["--pool"], "got '--pool'"),
    ],
)
def test_bad_commands(words, told, capsys):
    assert told in error_line(capsys, main, *words)


def test_bad_files(tmp_path, capsys):
    (tmp_path / "a.npy").write_bytes(b"no array")
    (tmp_path / "a.safetensors").write_bytes(b"no tensors")
    (tmp_path / "a.txt").write_text("1 2")
    save_file({"a": rows(9), "b": rows(9)}, tmp_path / "two.safetensors")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez(tmp_path / "several.npz", a=np.ones(3))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    np.save(tmp_path / "words.npy", np.array([["a", "b"]]))
    np.save(tmp_path / "complex.npy", np.ones((9, 4), complex))
    np.save(tmp_path / "swapped.npy", np.ones((9, 4), ">f4"))
    for name, told in (
        ("a.npy", "is no array of numbers"),
        ("empty.npy", "is no array of numbers"),
        ("several.npy", "is no array of numbers"),
        ("words.npy", "holds <U1; write it as float16, float32 or float64"),
        ("complex.npy", "holds complex128"),
        ("swapped.npy", "holds >f4"),
        ("a.safetensors", "is no safetensors file"),
        ("a.txt", "takes .npy or .safetensors"),
        ("two.safetensors", "holds a, b; name the matrix 'features'"),
    ):
        assert told in error_line(
            capsys, main, f"pool={tmp_path / name}", f"target={tmp_path / name}", "k=5", f"out={tmp_path}/out"
        )


def test_places_that_cannot_be_used_are_named_first(tmp_path, capsys, monkeypatch):
    np.save(tmp_path / "a.npy", rows(30).numpy())
    monkeypatch.setattr("data_selection.choose.choose", None)  # not reached
    words = [f"pool={tmp_path}/a.npy", f"target={tmp_path}/a.npy", "k=5"]
    for more, told in (
        ([f"out={tmp_path}/a.npy"], "cannot be written"),
        ([f"out={tmp_path}/out", "device=abacus"], "device='abacus' is not there"),
        ([f"out={tmp_path}/out", "device=cuda:99"], "device='cuda:99' is not there"),
        ([f"out={tmp_path}/out", f"seed={2**70}"], "give a whole number from 0 to"),
    ):
        assert told in error_line(capsys, main, *words, *more)
    assert not list(tmp_path.rglob("scores.npy"))


@pytest.mark.parametrize("method", PRICED)
def test_the_price_keeps_rows_of_the_wrong_side_out(method):
    """Rows of both signs around directions of their own, one direction being shared by all of a sign."""
    generator = torch.Generator().manual_seed(0)
    content = torch.nn.functional.normalize(torch.randn(300, 64, generator=generator), dim=1)
    shared = torch.nn.functional.normalize(torch.randn(64, generator=generator), dim=0)
    sign = torch.where(torch.arange(300) % 2 == 0, 1.0, -1.0)
    pool = content + 0.25 * sign[:, None] * shared
    target = torch.nn.functional.normalize(torch.randn(40, 64, generator=generator), dim=1) + 0.25 * shared
    wrong = [
        int((sign[torch.from_numpy(choose(pool, target, 100, method, price=price).indices)] < 0).sum())
        for price in (0.0, 0.5)
    ]
    assert 2 * wrong[1] < wrong[0], wrong


def test_prices_are_part_of_the_optimum():
    """capped_ot with prices, against the linear programme of POT on the costs with the prices added."""
    import ot

    generator = torch.Generator().manual_seed(1)
    rows, target = torch.randn(60, 8, generator=generator), torch.randn(10, 8, generator=generator)
    price = torch.rand(60, generator=generator).double() * 3
    k = 20
    scores = METHODS["capped_ot"](Features(rows, price=price), target, k)
    chosen = torch.sort(scores, descending=True).indices[:k]
    cost = torch.cdist(rows.double(), target.double()) + price[:, None]
    _, log = ot.partial.partial_wasserstein(np.full(60, 1 / k), np.full(10, 0.1), cost.numpy(), m=1.0, log=True)
    of_chosen = ot.emd2(np.full(k, 1 / k), np.full(10, 0.1), cost[chosen].numpy())
    assert of_chosen == pytest.approx(log["partial_w_dist"], rel=1e-5)
    plain = torch.sort(METHODS["capped_ot"](Features(rows), target, k), descending=True).indices[:k]
    assert set(plain.tolist()) != set(chosen.tolist())


def test_side_price_is_one_minus_the_cosine_in_the_first_directions():
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(200, 24, generator=generator) * torch.linspace(3, 0.1, 24)
    target = torch.randn(12, 24, generator=generator) + 1
    found = side_price(Features(rows), target)
    _, _, directions = torch.linalg.svd(rows.double(), full_matrices=False)
    first = directions[:8].T
    want = 1 - torch.nn.functional.cosine_similarity(rows.double() @ first, (target.double().mean(0) @ first)[None])
    assert torch.allclose(found, want, atol=1e-4)


def test_prices_are_refused_where_no_method_heeds_them():
    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(SelectionError, match="with capped_ot, knn, soft_nn"):
        choose(rows, rows[:10], 5, "gotd", price=0.1)
    with pytest.raises(SelectionError, match="price=-1"):
        choose(rows, rows[:10], 5, "knn", price=-1.0)
