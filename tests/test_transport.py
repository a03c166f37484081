"""Scores against solvers and double loops on small problems: POT, scipy and the obvious twin."""

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp

from data_selection import transport
from data_selection.features import Features, prepare
from data_selection.transport import (
    METHODS,
    capped_ot,
    capped_sinkhorn,
    gotd,
    knn,
    max_cos,
    mean_l2,
    nearest,
    round_robin,
    soft_nn,
)


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
    (rows, share, paid), prices, spent = transport._capped_plan(near[0].numpy(), near[1].numpy(), k)
    assert spent == pytest.approx((plan * cost).sum(), rel=1e-9)
    assert (share * paid).sum() / k == pytest.approx(spent)
    mass = np.zeros(n)
    mass[rows] = share
    assert mass.sum() == pytest.approx(k) and mass.max() <= 1 + 1e-9
    taken = capped_ot(pool, target, k).topk(k).indices.numpy()
    assert set(np.flatnonzero(mass > 0.999)) <= set(taken.tolist())
    assert ot.emd2([], [], cost[taken]) >= spent - 1e-9


def test_capped_ot_does_not_depend_on_the_rows_order():
    """Also where k is less than, or no multiple of, the number of targets, and rows are split."""
    generator = torch.Generator().manual_seed(0)
    pool, target = torch.randn(600, 8, generator=generator), torch.randn(40, 8, generator=generator)
    order = torch.randperm(600, generator=generator)
    for k in (15, 40, 70, 120):
        one, other = (capped_ot(Features(rows), target, k) for rows in (pool, pool[order]))
        assert best(one, k) == sorted(order[other.topk(k).indices].tolist())


def test_capped_ot_where_target_rows_are_in_the_pool():
    """The cost is nothing but noise of the distances, and no bound can be near to it in parts of itself."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(40, 64, generator=generator, dtype=torch.float64)
    pool = torch.cat([target, torch.randn(200, 64, generator=generator, dtype=torch.float64)])
    assert best(capped_ot(Features(pool), target, 40), 40) == list(range(40))


def test_an_offset_of_all_rows_changes_no_distance():
    generator = torch.Generator().manual_seed(0)
    rows, target = torch.randn(50, 16, generator=generator), torch.randn(9, 16, generator=generator)
    moved = transport.distances(rows + 1000, target + 1000)
    assert torch.allclose(moved, torch.cdist(rows, target), atol=1e-3)


def test_capped_ot_orders_rows_of_any_size():
    pool, target, _ = problem(0)
    large = capped_ot(Features(1e6 * pool.all()), 1e6 * target, 12)
    assert best(large, 12) == best(capped_ot(pool, target, 12), 12)
    assert len(set(large.tolist())) == len(pool)  # no two alike: "best first" means something


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


def near_gap(cost: np.ndarray, k: int) -> float:
    ordered = np.sort(cost, axis=0)
    gaps = np.sort(ordered[max(10, k // 10) - 1] - ordered[0])
    return transport.SOFT * gaps[(len(gaps) - 1) // 2]  # torch's median: the lower of two


def entropic(cost: np.ndarray, k: int, epsilon: float) -> np.ndarray:
    """(n, m) the capped plan, by scaling all of the kernel in turns."""
    n, m = cost.shape
    kernel, u, v = -cost / epsilon, np.zeros((n, 1)), np.zeros((1, m))
    for _ in range(100_000):
        old = u
        v = -logsumexp(kernel - u, axis=0, keepdims=True) - np.log(m)
        u = np.maximum(0, logsumexp(kernel + v, axis=1, keepdims=True) + np.log(k))
        if np.abs(u - old).max() < 1e-11:
            return np.exp(kernel + v - u)
    raise AssertionError("no fixed point")


@pytest.mark.parametrize(("n", "m", "k"), [(60, 12, 20), (300, 20, 40), (300, 20, 150), (300, 20, 270)])
def test_capped_sinkhorn_is_the_plan_of_the_whole_pool(n: int, m: int, k: int):
    """The lists hold a part of the pool only; POT and the twin see all of it."""
    pool, target, cost = problem(11, n, m, 8)
    score = capped_sinkhorn(pool, target, k).numpy()
    epsilon = near_gap(cost, k)
    plan = entropic(cost, k, epsilon)
    mass = np.exp(np.minimum(score, 0)) / k
    assert mass == pytest.approx(plan.sum(1), rel=1e-4)
    assert 0 < (mass > 0.999999 / k).sum() < k  # some rows at their cap, some not
    pot = ot.partial.entropic_partial_wasserstein_logscale(
        np.full(n, 1 / k), np.full(m, 1 / m), cost, epsilon, m=1.0, numItermax=5000, stopThr=1e-12
    )
    assert mass == pytest.approx(pot.sum(1), rel=1e-4)
    kernel = -cost / epsilon - np.maximum(score, 0)[:, None]
    received = np.exp(kernel - logsumexp(kernel, axis=0)).sum(1) / m  # every target gives exactly its mass
    assert received.max() * k < 1 + 1e-6
    assert received[score > 0] * k == pytest.approx(1, abs=1e-6)
    assert received[score < 0] == pytest.approx(mass[score < 0], rel=1e-6)


def test_capped_sinkhorn_looks_further_where_its_lists_are_too_short(monkeypatch):
    """150 targets in one place: their 60 nearest rows are nearly the same, with room for less than half of the mass."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(400, 4, generator=generator, dtype=torch.float64)
    target = 0.01 * torch.randn(150, 4, generator=generator, dtype=torch.float64)
    cost, depths = torch.cdist(pool, target).numpy(), []
    monkeypatch.setattr(transport, "nearest", lambda *given: depths.append(given[2]) or nearest(*given))
    score = capped_sinkhorn(Features(pool), target, 150).numpy()
    twin = entropic(cost, 150, near_gap(cost, 150)).sum(1)
    assert np.exp(np.minimum(score, 0)) / 150 == pytest.approx(twin, rel=1e-4)
    assert depths[:2] == [60, 120]


def test_capped_sinkhorn_on_shorter_lists_is_the_same(monkeypatch):
    pool, target, _ = problem(11, 300, 20, 8)
    score = capped_sinkhorn(pool, target, 40).numpy()
    depths = []
    monkeypatch.setattr(transport, "nearest", lambda *given: depths.append(given[2]) or nearest(*given))
    monkeypatch.setattr(transport, "LIST_CELLS", 20 * 10)  # room for no longer lists: more passes instead
    assert capped_sinkhorn(pool, target, 40).numpy() == pytest.approx(score, abs=1e-5)
    assert depths == [10]


@pytest.mark.parametrize("seed", range(3))
def test_capped_sinkhorn_comes_to_the_exact_plan(seed: int, monkeypatch):
    """As eps gets small. The rounds then get slow, but the choice is right before the marginals are."""
    monkeypatch.setattr(transport, "SOFT", 0.005)
    monkeypatch.setattr(transport, "MARGIN", 0.01)
    pool, target, _ = problem(seed, 300, 20, 8)
    for k in (20, 40, 60):
        assert best(capped_sinkhorn(pool, target, k), k) == best(capped_ot(pool, target, k), k)


def test_capped_sinkhorn_treats_copies_alike_and_takes_a_whole_pool():
    pool, target, _ = problem(13, 100, 12)
    twice = Features(torch.cat([pool.source, pool.source[:50]]))
    score = capped_sinkhorn(twice, target, 30)
    assert score[:50].numpy() == pytest.approx(score[100:].numpy(), rel=1e-9)
    assert best(capped_sinkhorn(pool, target, 100), 100) == list(range(100))
    nearly = capped_sinkhorn(pool, target, 99)
    assert (nearly.clamp(max=0).exp() / 99).sum() == pytest.approx(1, rel=1e-5)


def test_capped_sinkhorn_that_does_not_settle_is_never_believed(monkeypatch):
    monkeypatch.setattr(transport, "PASSES", 2)
    monkeypatch.setattr(transport, "ROUNDS", 5)
    pool, target, _ = problem(0)
    with pytest.raises(ArithmeticError, match="after 2 passes a round still moves .* take capped_ot or knn"):
        capped_sinkhorn(pool, target, 24)


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
