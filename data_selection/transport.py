"""Scores of pool rows against target rows: how much each helps to cover the target. One function per method.

    values = capped_ot(Features(pool), target, k=1000)      # (n,), higher is better; the k best are the choice

Every function takes `pool` (Features, n rows), `target` (m, d; on a GPU, distances are computed there) and `k`, makes
one or more passes over the pool in blocks, and returns (n,) float64 scores.

A transport plan P (n, m) says how much of target j's mass, 1/m, is fetched from pool row i; the ground cost C is the
Euclidean distance ||x_i - t_j||, as in RoVRM (arXiv 2408.12109), in PRICED methods plus the price that a row may have
(`features.side_price`). These are the transport problems behind the scores:

    capped_ot        min <P, C>, P1 <= 1/k, P'1 = 1/m      the k-subset nearest to the target in Wasserstein distance
    capped_sinkhorn  the same, entropic                    for more targets than POT can take, or noisy ones
    soft_nn          entropic without the cap              every target takes from its softmax of near rows
    gotd             P1 = 1/n: the whole pool; score = -dual potential  (GOT-D, Kang et al. 2024)
    knn              every target gives equal mass to its near rows
    round_robin      the targets choose their nearest free row in turns
    max_cos          cosine to the nearest target row  (LESS, Xia et al. 2024, every target row a subtask)
    mean_l2          minus the mean transport distance of Dirac to Dirac, ||x_i - t_j||, over targets  (the paper)
    random           a seeded draw
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from data_selection.features import Features

MARGIN = 1e-6  # relative error of the marginals at which an entropic plan counts as solved
PASSES, ROUNDS = 60, 500  # over the pool, and over the lists between two of them, before `capped_sinkhorn` gives up
LIST_CELLS = 20_000_000  # beyond which `capped_sinkhorn` makes its lists no longer: 1.5 GB
CERTAIN = 1e-6  # relative gap between a plan's cost and its dual bound that counts as solved
SOFT = 0.25  # epsilon over the gap from a target's nearest row to its k/10-th nearest: chosen on synthetic mixtures
EXACT_CELLS = 10_000_000  # of the dense problem that `gotd` solves exactly; beyond it is entropic
DENSE_CELLS = 2_000_000_000  # of the cost matrix that the entropic `gotd` keeps in float32: 8 GB


# ---- scores ----------------------------------------------------------------------------------------------------------


def mean_l2(pool: Features, target: Tensor, k: int) -> Tensor:
    """Minus the mean distance to the target's rows."""
    return _by_rows(pool, lambda rows: -distances(rows, target).double().mean(1))


def max_cos(pool: Features, target: Tensor, k: int) -> Tensor:
    """The cosine to the nearest of the target's rows."""
    unit_target = torch.nn.functional.normalize(target, dim=1)

    def closest(rows: Tensor) -> Tensor:
        units = torch.nn.functional.normalize(rows, dim=1)
        return (units.to(unit_target.device) @ unit_target.to(units.dtype).T).max(1).values.double().cpu()

    return _by_rows(pool, closest)


def knn(pool: Features, target: Tensor, k: int) -> Tensor:
    """Each target shares its mass among its 10 k / m nearest rows; equal shares are told apart by distance."""
    depth = min(len(pool), max(1, -(-10 * k // len(target))))  # rounded up
    near, distance = nearest(pool, target, depth)  # (m, depth)
    counts = torch.bincount(near.flatten(), minlength=len(pool)).double()  # (n,) lists that a row is on
    closest = torch.full((len(pool),), torch.inf, dtype=torch.float64)  # (n,) distance to the nearest of their targets
    closest.scatter_reduce_(0, near.flatten(), distance.flatten().double(), "amin")
    far = distance.max().double() * 2 + 1  # beyond every distance, so that the second term is less than one count
    return (counts + 0.5 * (1 - closest.clamp(max=far) / far)) / (depth * len(target))


def soft_nn(pool: Features, target: Tensor, k: int) -> Tensor:
    """P_ij = softmax_i(-C_ij / eps_j) / m; the score is the mass that row i receives. Two passes."""
    depth = min(len(pool), max(2, k // 10))
    _, distance = nearest(pool, target, depth)
    epsilon = (SOFT * (distance[:, -1] - distance[:, 0])).clamp_min(1e-6)  # (m,)
    total = torch.full((len(target),), -torch.inf, dtype=torch.float64)
    for start, rows in pool.blocks():
        logits = (-costs(pool, start, rows, target) / epsilon).double()
        total = torch.logaddexp(total, logits.logsumexp(0))
    parts = []
    for start, rows in pool.blocks():
        parts.append(((-costs(pool, start, rows, target) / epsilon).double() - total).exp().mean(1))
    return torch.cat(parts)


def round_robin(pool: Features, target: Tensor, k: int) -> Tensor:
    """The targets, nearest first in each round, take their nearest free row until k rows are taken."""
    depth = min(len(pool), max(16, -(-4 * k // len(target))))
    while True:
        near, distance = nearest(pool, target, depth)
        order = _turns(near.numpy(), distance.numpy(), len(pool), k)
        if order is not None:
            break
        depth = min(len(pool), 2 * depth)  # some target had no free row left among its nearest
    scores = max_cos(pool, target, k) - 2.0  # at most -1: below every chosen row
    scores[torch.from_numpy(order)] = torch.arange(k, 0, -1, dtype=torch.float64)
    return scores


def capped_ot(pool: Features, target: Tensor, k: int) -> Tensor:
    """Exact partial transport: no row gives more than its cap, 1/k, so that at least k rows share the target.

    Rows of the plan come first, by the share of their cap that it uses and then by the mean distance that they go; the
    others by s_i = max_j (v_j - C_ij), with v the targets' dual prices. By complementary slackness s is at least 0 for
    every row of the plan and at most 0 for every other.

    Solved by POT on each target's nearest rows; s over the *whole* pool then gives the dual bound
    mean(v) - sum_i max(0, s_i) / k. If the plan costs more than that, the lists are made longer: what is returned is
    the optimum of the full problem. Where k is no multiple of m a plan splits some rows, and the k best are no longer
    exactly the nearest set. Raises ArithmeticError where POT stops short."""
    depth = min(len(pool), max(16, -(-4 * k // len(target))))
    while True:
        near, distance = nearest(pool, target, depth)
        plan, prices, cost = _capped_plan(near.numpy(), distance.double().numpy(), k)
        # Is the plan on the lists also the best on the whole pool? Then its cost is the dual bound of the whole.
        slack = _slack(pool, target, torch.from_numpy(prices))
        bound = prices.mean() - slack.clamp_min(0).sum().item() / k
        if cost is not None and cost - bound <= CERTAIN * max(cost, 1e-3 * distance.max().item()):
            break
        if depth == len(pool):
            raise ArithmeticError(
                f"capped_ot: the plan costs {cost}, its dual bound is {bound}: POT stopped short of the "
                "optimum; take capped_sinkhorn or knn"
            )
        depth = min(len(pool), 2 * depth)
    used, share, paid = map(torch.from_numpy, plan)
    mass = torch.zeros(len(pool), dtype=torch.float64).index_put((used,), share)
    rank = slack / slack.abs().max().clamp_min(1e-300)
    rank[used] = -paid / paid.max().clamp_min(1e-300)  # prices are no order here: they may all be the same
    return mass + rank * 0.4 / len(target)  # less than two shares differ by


def capped_sinkhorn(pool: Features, target: Tensor, k: int) -> Tensor:
    """Entropic partial transport: min <P, C> + eps sum P log P, P1 <= 1/k, P'1 = 1/m.

    The plan is P_ij = exp(v_j - u_i - C_ij / eps), with u_i = 0 where row i gets less than its cap. eps is SOFT times
    the median over targets of the gap of `soft_nn` (one eps for each would leave u_i without a closed form), taken to
    the 10th nearest row at least (smaller, the rounds crawl).

    The score log(k sum_j exp(v_j - C_ij / eps)) compares what is asked of a row with its cap. The row's mass is
    min(1, exp(score)) / k; rows at their cap are told apart by their price u_i = max(0, score), all others by mass.

    Rounds of v and u run on each target's nearest rows, with the sums over all other pairs as they were at the last
    pass over the pool. Both steps are monotone, so from u = 0 the potentials only rise to the solution, with old sums
    too; it is found when a round on new sums moves nothing, and the marginals then hold over the *whole* pool. Raises
    ArithmeticError where PASSES do not suffice."""
    n, m = len(pool), len(target)
    if k == n:
        return soft_nn(pool, target, k)  # every row is taken and full; without the cap they differ
    at = min(n, max(10, k // 10))
    near, distance = nearest(pool, target, min(n, max(at, min(4 * at, LIST_CELLS // m))))
    epsilon = max(SOFT * (distance[:, at - 1] - distance[:, 0]).median().item(), 1e-6)
    u, v = torch.zeros(n, dtype=torch.float64), torch.full((m,), -torch.inf, dtype=torch.float64)
    before = np.inf
    for _ in range(PASSES):
        # A pass over the pool, for the pairs that are on no list, then rounds on the lists alone.
        rest_v, rest_u = _off_lists(pool, target, near, epsilon, u, v)
        kernel, moved = distance.double() / -epsilon, []  # (m, depth)
        while not moved or (moved[-1] > MARGIN / 2 and len(moved) < ROUNDS):
            old_u, old_v = u, v
            logits = kernel - u[near]
            v = -torch.logaddexp(logits.logsumexp(1), rest_v) - np.log(m)
            plan = (logits + v[:, None]).exp()  # at most 1/m; of a row with u > 0 more than its cap, never 0
            mass = torch.bincount(near.flatten(), plan.flatten(), minlength=n)
            score = torch.logaddexp(u + mass.log(), rest_u) + np.log(k)
            u = score.clamp_min(0)
            moved.append(((u - old_u).abs().max() + (v - old_v).abs().max()).item())
        if moved[0] <= MARGIN:
            return score
        if moved[-1] <= MARGIN / 2 and moved[0] > before / 2 and near.shape[1] < n and 2 * near.numel() <= LIST_CELLS:
            near, distance = nearest(pool, target, min(n, 2 * near.shape[1]))  # too much lies off the lists
        before = moved[0]
    raise ArithmeticError(
        f"capped_sinkhorn: after {PASSES} passes a round still moves the plan by {before:.2g}: eps = {epsilon:.2g} is "
        f"too small (copies in the pool?), k={k} near all {n} rows, or all targets want the same; take capped_ot or knn"
    )


def gotd(pool: Features, target: Tensor, k: int) -> Tensor:
    """Minus the dual potential of every pool row in the transport of the whole pool to the target: how the distance
    falls as the row gains mass. Exact up to EXACT_CELLS; beyond, entropic with a tenth of the near-target gap."""
    cells = len(pool) * len(target)
    if cells > DENSE_CELLS:
        raise MemoryError(
            f"gotd: {len(pool)} x {len(target)} costs do not fit; take knn or capped_ot, or fewer targets"
        )
    cost = torch.cat([distances(rows, target) for _, rows in pool.blocks()])
    if cells > EXACT_CELLS:
        depth = min(len(pool), max(2, k // 10))
        near = cost.topk(depth, dim=0, largest=False).values
        return -_sinkhorn_potential(cost, 0.1 * (near[-1] - near[0]).median().item())
    import ot

    _, log = ot.emd([], [], cost.double().numpy(), numItermax=100_000_000, log=True)
    if log["warning"]:
        raise ArithmeticError(f"gotd: POT stopped short of the optimum ({log['warning']}); take capped_ot")
    return -torch.from_numpy(log["u"])


def random(pool: Features, target: Tensor, k: int, seed: int = 0) -> Tensor:
    """A seeded draw."""
    return torch.rand(len(pool), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


METHODS: dict[str, Callable[..., Tensor]] = {
    "capped_ot": capped_ot,
    "capped_sinkhorn": capped_sinkhorn,
    "knn": knn,
    "soft_nn": soft_nn,
    "round_robin": round_robin,
    "gotd": gotd,
    "max_cos": max_cos,
    "mean_l2": mean_l2,
    "random": random,
}


PRICED = ("capped_ot", "knn", "soft_nn")  # the methods that heed the price of a row


def wasserstein(rows: Tensor, target: Tensor) -> float:
    """W1 of two sets of vectors (n, d), (m, d) of equal weights, Euclidean, by POT."""
    import ot

    cost = distances(rows, target).double().numpy()
    value, log = ot.emd2([], [], cost, numItermax=100_000_000, log=True)
    if log["warning"]:
        raise ArithmeticError(f"wasserstein: POT stopped short of the optimum ({log['warning']}); give fewer rows")
    return float(value)


# ---- passes over the pool --------------------------------------------------------------------------------------------


def distances(rows: Tensor, target: Tensor) -> Tensor:
    """(rows, m) Euclidean distances, computed where the target lies and returned on the CPU: on a GPU the products over
    the width, nearly all of the work, take no time there, and everything behind them is the same. Both are moved by the
    target's mean, or an offset that all rows share would cost the distances their digits."""
    mean = target.mean(0)
    return torch.cdist(rows.to(target.device) - mean.to(rows.dtype), (target - mean).to(rows.dtype)).cpu()


def costs(pool: Features, start: int, rows: Tensor, target: Tensor) -> Tensor:
    """(rows, m) what it costs to transport mass from the pool's rows that begin at `start`: distance and price."""
    of_block = distances(rows, target)
    return of_block if pool.price is None else of_block + pool.price[start : start + len(rows), None].to(of_block)


def _by_rows(pool: Features, score: Callable[[Tensor], Tensor]) -> Tensor:
    """(n,) a score that each row has by itself, block by block."""
    return torch.cat([score(rows) for _, rows in pool.blocks()])


def _slack(pool: Features, target: Tensor, prices: Tensor) -> Tensor:
    """(n,) max_j (prices_j - C_ij)"""
    parts = []
    for start, rows in pool.blocks():
        parts.append((prices - costs(pool, start, rows, target).double()).max(1).values)
    return torch.cat(parts)


def _off_lists(
    pool: Features, target: Tensor, near: Tensor, epsilon: float, u: Tensor, v: Tensor
) -> tuple[Tensor, Tensor]:
    """log sum_i exp(-u_i - C_ij / eps) (m,) and log sum_j exp(v_j - C_ij / eps) (n,) over the pairs where i is not
    among the nearest rows of j."""
    by_target, by_row = torch.full_like(v, -torch.inf), []
    for start, rows in pool.blocks():
        logits = distances(rows, target).double() / -epsilon
        column, place = ((near >= start) & (near < start + len(rows))).nonzero(as_tuple=True)
        logits[near[column, place] - start, column] = -torch.inf
        by_row.append((logits + v).logsumexp(1))
        logits -= u[start : start + len(rows), None]
        by_target = torch.logaddexp(by_target, logits.logsumexp(0))
    return by_target, torch.cat(by_row)


def nearest(pool: Features, target: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """(m, depth) indices and costs of each target's nearest pool rows, nearest first. The costs are distances where the
    rows have no price."""
    index = torch.empty(len(target), 0, dtype=torch.long)
    distance = torch.empty(len(target), 0)
    for start, rows in pool.blocks():
        of_block = costs(pool, start, rows, target).T  # (m, block)
        here = torch.arange(start, start + len(rows)).expand(len(target), -1)
        distance, index = torch.cat([distance.to(of_block), of_block], 1), torch.cat([index, here], 1)
        distance, order = distance.topk(min(depth, distance.shape[1]), dim=1, largest=False)
        index = index.gather(1, order)
    return index, distance


# ---- solvers ---------------------------------------------------------------------------------------------------------


def _turns(near: np.ndarray, distance: np.ndarray, rows: int, k: int) -> np.ndarray | None:
    """The first k rows taken in turns; None where a target's list runs out before that."""
    targets, depth = near.shape
    taken = np.zeros(rows, dtype=bool)
    at = np.zeros(targets, dtype=np.int64)  # of each target: the place on its list of the nearest row that may be free
    order: list[int] = []
    while len(order) < k:  # a round, in which every target takes one row
        for j in range(targets):
            while at[j] < depth and taken[near[j, at[j]]]:
                at[j] += 1
            if at[j] == depth and depth < rows:
                return None
        free = np.flatnonzero(at < depth)
        for j in free[np.argsort(distance[free, at[free]], kind="stable")]:
            # another target of this round may have taken the row
            while at[j] < depth and taken[near[j, at[j]]]:
                at[j] += 1
            if at[j] < depth and len(order) < k:
                taken[near[j, at[j]]] = True
                order.append(int(near[j, at[j]]))
    return np.array(order)


def _capped_plan(
    near: np.ndarray, distance: np.ndarray, k: int
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray, float | None]:
    """Partial transport on the graph of nearest rows. Returns ((rows of the plan, share of their cap, mean distance
    paid), the targets' prices (m,), the cost, or None where the graph holds too few rows).

    As a balanced problem in whole numbers: every row sends m, every target takes k; what the rows keep goes to an
    absent target at no cost, and an absent row serves, at a cost no plan would pay, targets that cannot be filled."""
    import ot
    from scipy.sparse import coo_matrix

    targets, depth = near.shape
    rows, local = np.unique(near, return_inverse=True)
    n = len(rows)  # the absent row is number n, the absent target number `targets`
    dear = 1e3 * (distance.max() + 1e-9)
    # Edges: a target with each row of its list; each row with the absent target; the absent row with every target.
    source = np.concatenate([local.ravel(), np.arange(n), np.full(targets + 1, n)])
    sink = np.concatenate([np.repeat(np.arange(targets), depth), np.full(n, targets), np.arange(targets + 1)])
    costs = np.concatenate([distance.ravel(), np.zeros(n), np.full(targets, dear), [0.0]])
    sends = np.append(np.full(n, float(targets)), float(k * targets))
    takes = np.append(np.full(targets, float(k)), float(n * targets))
    graph = coo_matrix((costs, (source, sink)), shape=(n + 1, targets + 1))
    plan, log = ot.emd(sends, takes, graph, numItermax=1_000_000_000, log=True, center_dual=False)
    if log["warning"]:
        raise ArithmeticError(f"capped_ot: POT stopped short of the optimum ({log['warning']}); take knn")
    plan = plan.tocoo()
    real = (plan.col < targets) & (plan.data > 0.5)  # the flow is in whole numbers
    prices = log["v"][:targets] - log["v"][targets]  # what a row keeps costs nothing, so the absent target's price is 0
    if (plan.row[real] == n).any():
        return (rows[:0], np.zeros(0), np.zeros(0)), prices, None
    used, place = np.unique(plan.row[real], return_inverse=True)
    sent = np.bincount(place, weights=plan.data[real])
    paid = np.bincount(place, weights=graph.tocsr()[plan.row[real], plan.col[real]].A1 * plan.data[real])
    return (rows[used], sent / targets, paid / sent), prices, float(paid.sum() / (k * targets))


def _sinkhorn_potential(cost: Tensor, epsilon: float, limit: int = 2000) -> Tensor:
    """(n,) dual potential of the pool in entropic transport between equal weights, in units of the cost; log domain."""
    n, m = cost.shape
    epsilon = max(epsilon, 1e-6)
    price = torch.zeros(m, dtype=torch.float64)
    for _ in range(limit):
        # One pass over the rows for both halves of a round: f from the prices, and the next prices from f.
        total = torch.full((m,), -torch.inf, dtype=torch.float64)
        potential = []
        for part in cost.split(4096):
            part = part.double()
            f = -epsilon * (((price - part) / epsilon).logsumexp(1) - np.log(m))
            total = torch.logaddexp(total, ((f[:, None] - part) / epsilon).logsumexp(0))
            potential.append(f)
        new = -epsilon * (total - np.log(n))
        step, price = (new - price).abs().max().item(), new
        if step < 1e-3 * epsilon:
            return torch.cat(potential)
    raise ArithmeticError(f"gotd: no fixed point after {limit} rounds (last step {step:.2g}); take capped_ot")
