"""An evaluation at the end of training, shared by ranks: the texts and figures of one process."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from test_sharded import sharded, train  # noqa: F401  a fixture

from upo.callbacks.metrics_csv import read_metrics
from upo.runtime.run_folder import RunPaths

pytestmark = pytest.mark.turns(3)

EVALUATION = {"prompts": 5, "max_new_tokens": 12, "batch_size": 2, "objective": {"length": 0.1}, "samples": 1}
EVALUATION |= {"rewards": {"length": "Words"}}
WAYS = {"DDP": ("--trainer.strategy", "ddp"), "sharded": sharded()}
SAMPLING = {"prompts": 3, "max_new_tokens": 6}
CALLBACKS = [
    {"class_path": "upo.callbacks.generation_metrics.GenerationMetrics", "init_args": SAMPLING | {"judge": "Words"}},
    {"class_path": "upo.callbacks.sample_table.SampleTable", "init_args": SAMPLING | {"every_n_steps": 2}},
]
WHILE = ("--trainer.callbacks", json.dumps(CALLBACKS))
STORED = ("--model.reference", "StoredReference", "--model.reference.folder", "kept")
CASES = [
    pytest.param("DPO", "sharded", WHILE, marks=pytest.mark.slow, id="DPO, while it trains"),
    pytest.param("KTO", "DDP", WHILE, marks=pytest.mark.nightly, id="KTO, DDP, while it trains"),
    pytest.param("UPO", "DDP", (), marks=pytest.mark.slow, id="UPO, DDP"),
    pytest.param("UPO", "sharded", (), marks=pytest.mark.slow, id="UPO"),
    pytest.param("LoRA", "sharded", (), marks=pytest.mark.nightly, id="LoRA"),
    pytest.param("LoRA", "sharded", STORED, marks=pytest.mark.nightly, id="LoRA, stored reference"),
    pytest.param("QLoRA", "sharded", (), marks=pytest.mark.nightly, id="QLoRA"),
]


def generated(paths: RunPaths) -> list[dict[str, float]]:
    """What was measured of the policy's responses at each validation."""
    rows = [{k: x for k, x in row.items() if "/generated/" in k} for row in read_metrics(paths.metrics)]
    return [row for row in rows if row]


@pytest.mark.parametrize(("method", "way", "more"), CASES)
def test_ranks_evaluate_as_one_does(
    method: str,
    way: str,
    more: tuple[str, ...],
    train: Callable,  # noqa: F811
    tmp_path: Path,
) -> None:
    args = ("--trainer.max_steps", "3", "--data.validation", "3", "--evaluation", json.dumps(EVALUATION), *more)
    train(method, "one", *args)
    train(method, "two", *args, *WAYS[way], ranks=2)
    one, two = (RunPaths(tmp_path / name) for name in ("one", "two"))
    assert two.samples.read_text() == one.samples.read_text()
    expected, found = (json.loads(paths.evaluation.read_text())["metrics"] for paths in (one, two))
    assert list(found) == list(expected) and "policy/kl" in found
    assert found == pytest.approx(expected, abs=1e-4)  # sums of log-probs, whose weights differ by 1e-6
    if more == WHILE:
        assert two.training_samples.read_text() == one.training_samples.read_text() != ""
        expected, found = (generated(p) for p in (one, two))
        assert expected and found == [pytest.approx(row, abs=1e-4) for row in expected]
    assert not list((tmp_path / "two").glob(".evaluation*"))
