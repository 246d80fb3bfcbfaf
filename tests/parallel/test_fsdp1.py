"""Lightning's FSDPStrategy on CPU ranks, as far as it goes there: losses, clipping, checkpoints."""

import json
from pathlib import Path

import pytest
import yaml
from test_sharded import config, train  # noqa: F401  a fixture

from upo.evaluation.runs import load_run
from upo.models.checkpoint import load_model
from upo.models.merged_adapter import probe

pytestmark = pytest.mark.turns(3)

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "experiments" / "hardware" / "fsdp1_8gpu.yaml"


def on_cpu() -> tuple[str, ...]:
    """The strategy of the YAML in float32, which equals one device."""
    strategy = yaml.safe_load(FILE.read_text())["trainer"]["strategy"]
    init = {k: v for k, v in strategy["init_args"].items() if k != "mixed_precision"}
    return ("--trainer.strategy", json.dumps({"class_path": "fsdp1.OnCPU", "init_args": init}))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["DPO", "KTO"])
def test_two_ranks_equal_one_and_go_on(method: str, train, tmp_path: Path) -> None:  # noqa: F811
    """Clipped, with several micro-batches; the checkpoint goes on on one device and can be loaded."""
    expected = train(method, "one")
    assert train(method, "two", *on_cpu(), "--trainer.max_steps", "5", ranks=2) == pytest.approx(expected[:5], abs=1e-5)
    (tmp_path / "two" / "summary.json").unlink()
    gap = probe(load_run(tmp_path / "two", trust=True)[0].policy.model) - probe(load_model(tmp_path / "two")[0])
    assert gap.abs().max() < 1e-5
    (tmp_path / "two").rename(tmp_path / "alone")
    assert train(method, "alone", "--ckpt_path", "last") == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_value_heads_are_refused(upo_fit, tmp_path: Path) -> None:
    config(file := tmp_path / "UPO.yaml", "UPO", True)
    done = upo_fit("--config", file, "--trainer.devices", "2", *on_cpu(), ranks=2)
    assert done.code == 2 and "FSDPStrategy does not train value_head" in done.text, done.text
