"""FSDP2 on CPU ranks, through the command line: the losses of one device."""

from pathlib import Path

import pytest
from test_trajectories import config, losses

SHARDED = ("--trainer.strategy.class_path", "upo.strategy.Sharded", "--trainer.strategy.init_args.param_dtype", "null")


@pytest.mark.parametrize("method", ["DPO", "KTO", "UPO"])
def test_x(method, upo_fit, tmp_path: Path) -> None:
    args = ("--config", config(tmp_path, method, tokens_per_microbatch=900), "--trainer.max_epochs", "1")
    one = upo_fit(*args, "--trainer.default_root_dir", "one")
    assert one.code == 0, one.text
    done = upo_fit(*args, "--trainer.default_root_dir", "two", "--trainer.devices", "2", *SHARDED, ranks=2)
    assert done.code == 0, done.text
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
