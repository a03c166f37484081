"""Scores against solvers and double loops on small problems: POT, scipy and the obvious twin."""

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from data_selection import transport
from data_selection.features import Features, prepare
from data_selection.transport import METHODS, capped_ot, gotd, knn, max_cos, mean_l2, nearest, round_robin, soft_nn


def problem(seed: int, n: int = 60, m: int = 12, width: int = 5):
    generator = torch.Generator().manual_seed(seed)
    pool, target = (torch.randn(rows, width, generator=generator, dtype=torch.float64) for rows in (n, m))
    return Features(pool), target, torch.cdist(pool, target).numpy()


def best(scores: torch.Tensor, k: int) -> list[int]:
    return sorted(scores.topk(k).indices.tolist())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("times", (1, 2, 3))
def test_capped_ot_is_partial_transport(seed: int, times: int):
    pool, target, cost = problem(seed)
    n, m, k = *cost.shape, times * cost.shape[1]
    plan = ot.partial.partial_wasserstein(np.full(n, 1 / k), np.full(m, 1 / m), cost, m=1.0, numItermax=10**7)
    chosen = best(capped_ot(pool, target, k), k)
    assert chosen == np.flatnonzero(plan.sum(1) > 0.5 / k).tolist()
    assert ot.emd2([], [], cost[chosen]) == pytest.approx((plan * cost).sum(), rel=1e-9)
    rows = linear_sum_assignment(np.repeat(cost, times, axis=1))[0]  # every target stands for `times` rows
    assert chosen == sorted(rows.tolist())


@pytest.mark.parametrize("seed", range(3))
def test_capped_ot_is_a_bound_for_any_k(seed: int):
    """k no multiple of the targets: a plan may split rows, but no k rows are nearer than its cost."""
    pool, target, cost = problem(seed)
    n, m, k = *cost.shape, 20
    plan = ot.partial.partial_wasserstein(np.full(n, 1 / k), np.full(m, 1 / m), cost, m=1.0, numItermax=10**7)
    near = nearest(pool, target, n)
    (rows, share), prices, spent = transport._capped_plan(near[0].numpy(), near[1].numpy(), k)
    assert spent == pytest.approx((plan * cost).sum(), rel=1e-9)
    mass = np.zeros(n)
    mass[rows] = share
    assert mass.sum() == pytest.approx(k) and mass.max() <= 1 + 1e-9
    taken = capped_ot(pool, target, k).topk(k).indices.numpy()
    assert set(np.flatnonzero(mass > 0.999)) <= set(taken.tolist())
    assert ot.emd2([], [], cost[taken]) >= spent - 1e-9


def test_capped_ot_looks_further_where_its_lists_are_too_short():
    """100 targets in one place and k = 100: their 16 nearest rows are the same, and too few."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(400, 4, generator=generator, dtype=torch.float64)
    target = 0.01 * torch.randn(100, 4, generator=generator, dtype=torch.float64)
    cost = torch.cdist(pool, target).numpy()
    chosen = best(capped_ot(Features(pool), target, 100), 100)
    rows, columns = linear_sum_assignment(cost)
    assert ot.emd2([], [], cost[chosen]) == pytest.approx(cost[rows, columns].mean(), rel=1e-9)


def test_a_solver_that_stops_short_is_never_believed(monkeypatch):
    real = ot.emd
    monkeypatch.setattr(ot, "emd", lambda *a, **k: real(*a, **(k | {"numItermax": 3})))
    pool, target, _ = problem(0)
    with pytest.raises(ArithmeticError, match="stopped short"), pytest.warns(UserWarning):
        capped_ot(pool, target, 12)
    with pytest.raises(ArithmeticError, match="stopped short"), pytest.warns(UserWarning):
        gotd(pool, target, 12)


def test_mean_l2_is_the_mean_transport_distance_of_two_diracs():
    pool, target, cost = problem(1, n=9, m=6)
    twin = [-np.mean([ot.emd2([1.0], [1.0], cost[i : i + 1, j : j + 1]) for j in range(6)]) for i in range(9)]
    assert mean_l2(pool, target, 3).numpy() == pytest.approx(np.array(twin), rel=1e-9)


def test_mean_l2_of_unit_rows_is_nearly_cosine_to_the_mean():
    pool, target, _ = problem(2, n=300, m=40, width=64)
    pool, target = prepare(pool, Features(target), unit=True, centre=False)
    aim = target.all()
    cosine = torch.nn.functional.normalize(pool.all(), dim=1) @ torch.nn.functional.normalize(aim.mean(0), dim=0)
    ranks = [values.argsort().argsort().double() for values in (mean_l2(pool, aim, 10), cosine)]
    assert torch.corrcoef(torch.stack(ranks))[0, 1] > 0.99


def test_gotd_is_the_dual_of_the_whole_pool():
    pool, target, cost = problem(3, n=61)  # 60 rows would be 5 a target: a degenerate plan has many potentials
    n, m = cost.shape
    scores = gotd(pool, target, 10).numpy()
    value = ot.emd2([], [], cost)
    prices = (cost + scores[:, None]).min(0)  # what -scores leave to the targets
    assert -scores.mean() + prices.mean() == pytest.approx(value, rel=1e-9)
    for row in scores.argsort()[[0, n // 2, -1]]:  # more mass on a row changes the distance by its potential
        more = np.full(n, 1 / n)
        more[row] += 1e-4
        more /= more.sum()
        change = (ot.emd2(more, np.full(m, 1 / m), cost) - value) / 1e-4
        assert change == pytest.approx(-scores[row] + scores.mean(), abs=1e-3)


def test_entropic_gotd_comes_close_to_the_exact_one(monkeypatch):
    pool, target, _ = problem(4, n=200, m=30)
    exact = gotd(pool, target, 20)
    monkeypatch.setattr(transport, "EXACT_CELLS", 10)
    ranks = torch.stack([exact, gotd(pool, target, 20)]).argsort(1).argsort(1).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.95
    monkeypatch.setattr(transport, "DENSE_CELLS", 10)
    with pytest.raises(MemoryError, match="take knn or capped_ot"):
        gotd(pool, target, 20)


def test_knn_counts_lists():
    pool, target, cost = problem(5)
    depth = 10  # 10 k / m, with k = m
    twin, closest = np.zeros(60), np.full(60, np.inf)
    for j in range(12):
        rows = np.argsort(cost[:, j])[:depth]
        twin[rows] += 1
        closest[rows] = np.minimum(closest[rows], cost[rows, j])
    scores = knn(pool, target, 12).numpy() * depth * 12
    assert np.floor(scores).tolist() == twin.tolist()
    lonely = [i for i in range(60) if twin[i] == 1]
    assert sorted(lonely, key=lambda i: -scores[i]) == sorted(lonely, key=lambda i: closest[i])


def test_soft_nn_gives_out_the_targets_mass():
    pool, target, cost = problem(6)
    scores = soft_nn(pool, target, 20).numpy()
    assert scores.sum() == pytest.approx(1, abs=1e-6)
    ordered = np.sort(cost, axis=0)
    plan = np.exp((ordered[0] - cost) / (transport.SOFT * (ordered[1] - ordered[0])))
    assert scores == pytest.approx((plan / plan.sum(0)).mean(1), abs=1e-6)


def test_round_robin_takes_turns():
    pool, target, cost = problem(7)
    taken: list[int] = []
    while len(taken) < 30:
        offers = np.where(np.isin(np.arange(60), taken)[:, None], np.inf, cost)
        for j in offers.min(0).argsort(kind="stable"):
            offers = np.where(np.isin(np.arange(60), taken)[:, None], np.inf, cost)
            if len(taken) < 30:
                taken.append(int(offers[:, j].argmin()))
    assert round_robin(pool, target, 30).topk(30).indices.tolist() == taken


def test_max_cos():
    pool, target, _ = problem(8)
    twin = [max(float(torch.cosine_similarity(x, t, dim=0)) for t in target) for x in pool.all()]
    assert max_cos(pool, target, 5).numpy() == pytest.approx(np.array(twin))


@pytest.mark.parametrize("method", METHODS)
def test_blocks_change_nothing(method: str, monkeypatch):
    generator = torch.Generator().manual_seed(9)
    pool, target = torch.randn(300, 8, generator=generator), torch.randn(20, 8, generator=generator)
    whole = METHODS[method](Features(pool), target, 40)
    blocks = Features.blocks
    monkeypatch.setattr(Features, "blocks", lambda self, size=7: blocks(self, 7))
    assert METHODS[method](Features(pool), target, 40).numpy() == pytest.approx(whole.numpy(), rel=1e-4, abs=1e-5)


def test_half_precision_on_disk_is_read_like_memory(tmp_path):
    pool, target, _ = problem(10)
    np.save(tmp_path / "pool.npy", pool.source.numpy().astype(np.float16))
    mapped = np.load(tmp_path / "pool.npy", mmap_mode="r")
    near = knn(Features(mapped), target.float(), 12)
    assert best(near, 12) == best(knn(pool, target, 12), 12)
