"""Health of the advantage weights, against plain NumPy."""

import multiprocessing

import numpy as np
import pytest
import torch
import torch.distributed as dist

from upo.metrics.weights import AdvantageWeights


def test_against_numpy_over_several_updates():
    rng = np.random.default_rng(0)
    w, r, v = rng.lognormal(size=500), rng.beta(2, 1, 500), rng.beta(2, 2, 500)
    metric = AdvantageWeights()
    for part in np.split(np.arange(500), [7, 8, 300]):
        metric.update(*(torch.from_numpy(x[part]) for x in (w, r, v)))
    got = {k: x.item() for k, x in metric.compute().items()}
    assert got == pytest.approx(
        {
            "weights/mean": w.mean(),
            "weights/max": w.max(),
            "weights/p99": np.quantile(w, 0.99),
            "weights/ess": w.sum() ** 2 / (500 * (w**2).sum()),
            "value/mean": v.mean(),
            "value/explained_variance": 1 - np.var(r - v) / np.var(r),
        },
        rel=1e-6,
    )


def test_effective_sample_size_is_1_for_equal_weights_and_1_over_n_for_one_owner():
    for weights, share in (([2.0] * 5, 1.0), ([1.0, 0.0, 0.0, 0.0], 0.25)):
        metric = AdvantageWeights()
        metric.update(torch.tensor(weights), torch.zeros(len(weights)), torch.zeros(len(weights)))
        assert metric.compute()["weights/ess"].item() == pytest.approx(share)


def test_explained_variance_by_hand():
    r = torch.tensor([0.0, 1.0, 0.0, 1.0])
    for value, explained in ((r, 1.0), (torch.full((4,), 0.3), 0.0), (1 - r, -3.0), (r + 7, 1.0)):
        metric = AdvantageWeights()
        metric.update(torch.ones(4), r, value)
        assert metric.compute()["value/explained_variance"].item() == pytest.approx(explained, abs=1e-6)


def test_nothing_to_explain_is_left_out():
    metric = AdvantageWeights()
    metric.update(torch.ones(3), torch.full((3,), 0.4), torch.rand(3))
    assert "value/explained_variance" not in metric.compute()


def test_a_step_without_any_response_gives_no_numbers():
    """A rank that only has dummies in a step measures nothing."""
    assert AdvantageWeights().compute() == {}


def _rank(rank: int, store: str, queue) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metric = AdvantageWeights()
    if rank == 0:
        metric.update(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]))
    queue.put({name: x.item() for name, x in metric.compute().items()})
    dist.destroy_process_group()


def test_two_ranks_of_which_one_only_has_fillers(tmp_path):
    """The last step of an epoch may have fewer units than there are ranks."""
    server = multiprocessing.get_context("forkserver")
    queue = server.Queue()
    ranks = [server.Process(target=_rank, args=(r, str(tmp_path / "store"), queue)) for r in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    seen = [queue.get(timeout=5) for _ in ranks]
    assert seen[0] == seen[1]
    assert seen[0]["weights/mean"] == 2 and seen[0]["weights/ess"] == pytest.approx(0.8)
