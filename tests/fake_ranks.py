"""Ranks as threads that take turns: collectives without processes, for any function of a rank."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import upo.runtime.collectives


def on_ranks(function: Callable[[int], Any], world_size: int, monkeypatch: Any) -> list[Any]:
    """What `function(rank)` returns on each rank; they wait for one another in `upo.runtime.collectives` alone."""
    turn, barrier = threading.Lock(), threading.Barrier(world_size, timeout=60)
    here, sent, results = threading.local(), {}, {}

    def exchange(x: Tensor) -> list[Tensor]:
        here.calls += 1
        sent[here.calls, here.rank] = x.detach().clone()
        turn.release()
        barrier.wait()
        turn.acquire()
        return [sent[here.calls, rank] for rank in range(world_size)]

    def all_reduce(x: Tensor) -> None:
        x.copy_(torch.stack(exchange(x)).sum(0))

    def all_gather(into: list[Tensor], x: Tensor) -> None:
        for place, part in zip(into, exchange(x), strict=True):
            place.copy_(part)

    def work(rank: int) -> None:
        here.rank, here.calls = rank, 0
        with turn:
            try:
                results[rank] = function(rank)
            except BaseException as error:
                results[rank] = error
                barrier.abort()

    fake = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, get_world_size=lambda: world_size,
        get_rank=lambda: here.rank, all_reduce=all_reduce, all_gather=all_gather,
    )  # fmt: skip
    monkeypatch.setattr(upo.runtime.collectives, "dist", fake)
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    for result in results.values():
        if isinstance(result, BaseException) and not isinstance(result, threading.BrokenBarrierError):
            raise result
    return [results[rank] for rank in range(world_size)]
