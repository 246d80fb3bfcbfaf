"""`python -m upo.bench`: both contestants in turn, in one run, each in a process of its own."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from tqdm import tqdm

from upo.bench.cases import Case
from upo.bench.cases import suite as cases_of
from upo.bench.floor import head_gradient, needed, rate
from upo.bench.report import show, verdict, write
from upo.bench.work import Work, rows
from upo.cli.command import command
from upo.errors import UserError


class Contestant:
    """A worker process that trains one block at a time."""

    def __init__(self, work: Work):
        self.work = work
        environment = os.environ | {"OMP_NUM_THREADS": str(work.threads), "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "upo.bench.worker", json.dumps(work.plain())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self._answer()  # two steps to warm up

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout and self.process.stderr
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"{self.work.engine} failed: {self.process.stderr.read()[-1500:]}")
        return json.loads(line)

    def block(self) -> dict[str, float]:
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def __enter__(self) -> "Contestant":
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait()


def blocks(case: Case, alternations: int) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Ours and the other one's answer, turn by turn."""
    for _ in range(0 if case.apart else case.starts):
        with Contestant(case.ours) as ours, Contestant(case.other) as other:
            for number in range(alternations):
                first, second = (ours, other) if number % 2 == 0 else (other, ours)
                answers = {id(first): first.block(), id(second): second.block()}
                yield answers[id(ours)], answers[id(other)]
    for number in range(alternations if case.apart else 0):
        order = 1 if number % 2 == 0 else -1
        answers = []
        for work in (case.ours, case.other)[::order]:
            with Contestant(work) as alone:
                answers.append(alone.block())
        ours, other = answers[::order]
        yield ours, other


def measure(case: Case, alternations: int) -> dict[str, Any]:
    """Both in turn, the other one first every second time, and the matrix rate beside them.

    A ratio is the median of the turns' own, so that what slows the machine for a while slows both.
    """
    turns = [(*answers, rate(case.ours)) for answers in blocks(case, alternations)]

    def median(of: Callable[[float, float, float], float]) -> float:
        return statistics.median(of(a["seconds"], b["seconds"], r) for a, b, r in turns)

    left_out = [head_gradient(work) if case.leave_out_head else 0 for work in (case.ours, case.other)]
    memory, other_memory = (max(t[i]["memory"] for t in turns) - left_out[i] for i in (0, 1))
    work, floor = case.ours, None
    pairs, other_pairs = work.pairs * work.steps, case.other.pairs * case.other.steps
    tokens = sum(len(r) + 1 for _, responses in rows(work, pairs) for r in responses)
    if work.method in ("DPO", "SFT"):  # KTO and UPO also score mismatched responses
        operations = pairs * needed(work, {"forward": 3, "upo": 3 if work.stored else 4}[work.engine])
        floor = median(lambda seconds, _, rate: operations / rate / seconds)
    return {
        "case": case.name,
        "other": _name(case),
        "pairs_per_second": median(lambda seconds, *_: pairs / seconds),
        "other_pairs_per_second": median(lambda _, seconds, __: other_pairs / seconds),
        "tokens_per_second": median(lambda seconds, *_: tokens / seconds),
        "ratio": median(lambda seconds, other_seconds, _: other_seconds / seconds),
        "memory": memory,
        "memory_ratio": memory / other_memory,
        "floor": floor,
        "matrix_rate": median(lambda *turn: turn[2]),
        "turns": [{"ours": a, "other": b, "matrix_rate": r} for a, b, r in turns],
        "at_least": case.at_least,
        "at_most_memory": case.at_most_memory,
        "at_least_floor": case.at_least_floor,
    }


def _name(case: Case) -> str:
    if case.other.engine == "trl":
        return "TRL"
    changed = [f"{k}={v}" for k, v in case.other.plain().items() if v != getattr(case.ours, k)]
    return ", ".join(changed)


def bench(
    suite: Literal["cpu", "short", "gpu"] = "cpu",
    only: str | None = None,
    alternations: PositiveInt = 5,
    threads: PositiveInt = 2,
    tolerance: ClosedUnitInterval = 1.0,
    out: Path = Path("runs/bench"),
) -> None:
    """Measures speed and memory against TRL, our own twins and the machine's limit; exits 1 where a target is missed.

    Ratios of one run mean something, its absolute figures only on this machine. TRL comes with `pip install
    "upo[bench]"`; it runs its fastest setting for each case.

    Args:
        suite: which cases: cpu (all), short (the guard of continuous integration), gpu.
        only: run only the cases whose names contain this text.
        alternations: number of turns that both sides take; medians are reported. Where a target is narrow, both are
            started two to four times with so many turns each.
        threads: CPU threads of each side.
        tolerance: share of each target that is enough to pass, e.g. 0.7 on a noisy machine.
        out: folder for bench.json and bench.png.
    """
    from attrs import evolve

    cases = [c for c in cases_of(suite) if only is None or only.lower() in c.name.lower()]
    if not cases:
        raise UserError(f"no case is called like `{only}`; known: {', '.join(c.name for c in cases_of(suite))}")
    if find_spec("trl") is None and any(c.other.engine == "trl" for c in cases):
        raise UserError('the bench runs against TRL: pip install "upo[bench]"')
    done = []
    for case in tqdm(cases, desc="bench", unit="case", disable=None):
        case = evolve(
            case,
            ours=evolve(case.ours, threads=threads),
            other=evolve(case.other, threads=threads),
            at_least=case.at_least and case.at_least * tolerance,
            at_most_memory=case.at_most_memory and case.at_most_memory / tolerance,
            at_least_floor=case.at_least_floor and case.at_least_floor * tolerance,
        )
        done.append(measure(case, alternations))
        write(done, {"suite": suite, "threads": threads, "alternations": alternations, "tolerance": tolerance}, out)
    show(done)
    if any(verdict(row) not in ("", "pass") for row in done):
        sys.exit(1)


def main(args: Sequence[str] | None = None) -> None:
    """Runs `bench` with the arguments of a command line."""
    command(bench, "bench", args)


if __name__ == "__main__":
    main()
