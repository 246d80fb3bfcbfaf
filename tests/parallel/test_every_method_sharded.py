"""Every method in shards on two CPU ranks: it ends in time, with the losses of one device.

Two processes train one method after another, so that a method costs a second or two instead of a start of Python. A
third one trains them alone: what other tests leave in this process has no say.
"""

import os
import queue
import socket
import traceback
from collections.abc import Iterator, Mapping
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import every_method
import pytest
from every_method import METHODS, fit
from rotation import taking_turns

import upo.methods
from upo.methods.common.base import Method
from upo.parallel.strategy import Sharded

pairs = every_method.pairs

LIMIT = 120
"""Seconds after which ranks that have not finished a method hang."""
CASES = [pytest.param(upo.methods.BCO, {"match_prompts": True}, id="match_prompts")]
CASES += [pytest.param(*method.values, {}, id=method.id) for method in METHODS]


def work(rank: int, size: int, port: int, tasks: Any, done: Any) -> None:
    """A rank: trains what it is given until that is None."""
    if size > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "GROUP_RANK": "0",
            "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test",
        }  # fmt: skip
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    rank_zero_only.rank = rank
    done.put((rank, []))
    while (task := tasks.get()) is not None:
        name, options, pairs, folder = task
        try:
            kind, strategy = getattr(upo.methods, name), Sharded(param_dtype=None) if size > 1 else "auto"
            rows = fit(kind, pairs, Path(folder), 3, 1e-3, strategy=strategy, devices=size, options=options).rows
            done.put((rank, rows))
        except BaseException:
            done.put((rank, traceback.format_exc()))


class Ranks:
    """Processes that train together; started anew where a method has stopped them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.processes: list[Any] = []

    def start(self) -> None:
        context = get_context("forkserver")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.tasks, self.done = [context.Queue() for _ in range(self.size)], context.Queue()
        calls = [(i, self.size, port, self.tasks[i], self.done) for i in range(self.size)]
        self.processes = [context.Process(target=work, args=call) for call in calls]
        for process in self.processes:
            process.start()
        for _ in range(self.size):
            self.done.get()

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.processes = []

    def train(self, kind: type[Method], options: Mapping[str, Any], pairs: str, folder: Path) -> list[Any]:
        """Metrics of each step, by rank."""
        if not self.processes:
            self.start()
        for tasks in self.tasks:
            tasks.put((kind.__name__, options, pairs, str(folder)))
        rows: dict[int, Any] = {}
        try:
            for _ in range(self.size):
                rank, result = self.done.get(timeout=LIMIT)
                assert isinstance(result, list), f"rank {rank}: {result}"
                rows[rank] = result
        except queue.Empty:
            self.stop()
            pytest.fail(f"{kind.__name__} hangs in shards; finished were ranks {sorted(rows)}")
        except AssertionError:
            self.stop()
            raise
        return [rows[rank] for rank in range(self.size)]


@pytest.fixture(scope="module")
def ranks() -> Iterator[tuple[Ranks, Ranks]]:
    """One process, and two."""
    sizes = Ranks(1), Ranks(2)
    yield sizes
    for ranks in sizes:
        ranks.stop()


@pytest.mark.parametrize(
    ("kind", "options"),
    taking_turns(CASES, days=6, suite=pytest.mark.slow, rest=pytest.mark.nightly, always=("match_prompts",)),
)
def test_two_ranks_equal_one(kind: type[Method], options: dict, pairs: str, ranks: Any, tmp_path: Path) -> None:
    one, two = ranks
    (expected,) = one.train(kind, options, pairs, tmp_path)
    for rows in two.train(kind, options, pairs, tmp_path):
        assert [row["train/loss"] for row in rows] == pytest.approx([row["train/loss"] for row in expected], rel=1e-4)
        assert [row["train/grad_norm"] for row in rows] == pytest.approx(
            [row["train/grad_norm"] for row in expected], rel=1e-3
        )
