"""Rebirth tuning: the trained policy's answers, as a data set for the model from before."""

import json
from pathlib import Path

import pytest
import torch
from test_sharded import config, sharded
from training import fit, make

from upo.callbacks.rebirth import FILE, RebirthTargets, target
from upo.callbacks.run_end import TrainedRun
from upo.data.module import PreferenceData
from upo.data.source import Source
from upo.methods import DPO, KTO, SFT
from upo.rollout.sampling import sample


@pytest.mark.parametrize("kind", [DPO, KTO])
def test_the_first_model_learns_what_the_last_one_says(kind, tmp_path, monkeypatch):
    """Any method writes the targets; SFT from the start of that run reads them and makes them likelier."""
    monkeypatch.chdir(tmp_path)
    targets = RebirthTargets(max_new_tokens=6, temperature=0)
    done = fit(make(kind), tmp_path, targets, steps=4)
    targets.on_run_end(TrainedRun(done.method, done.data, tmp_path))
    file = tmp_path / FILE
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    prompts = [u.example.prompt for u in done.data.train.units]
    assert [tuple(r["prompt"]) for r in rows] == prompts and all(r["label"] for r in rows)
    last = done.method.policy
    written = sample(last.model, last.tokenizer, prompts, max_new_tokens=6, temperature=0)
    assert [r["completion"] for r in rows] == [[{"role": "assistant", "content": s.text}] for (s,) in written]
    reborn = fit(make(SFT), tmp_path, steps=8, pairs=str(file), source="trl")
    assert reborn.watch.losses[7] < reborn.watch.losses[0]
    assert torch.equal(reborn.watch.policies[0], done.watch.policies[0]), "from the model before preference training"
    read = PreferenceData((Source("trl", path=str(file)),), validation=0, max_length=256)
    read.prepare(last.tokenizer, SFT.view, (), None)
    assert [u.example.responses[0].text for u in read.train.units] == [s.text for (s,) in written]


def test_a_limit_and_plain_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = fit(make(DPO), tmp_path, steps=1)
    RebirthTargets(prompts=3, max_new_tokens=4).on_run_end(TrainedRun(done.method, done.data, tmp_path))
    assert len((tmp_path / FILE).read_text().splitlines()) == 3
    assert target("Once", " upon") == {"prompt": "Once", "completion": " upon", "label": True}


@pytest.mark.slow
def test_a_run_that_was_killed_over_its_targets_writes_them(upo_fit, tmp_path: Path) -> None:
    """Its last checkpoint is of the last step, so that nothing is left to train."""
    config(file := tmp_path / "DPO.yaml", "DPO", True)
    callback = {"class_path": "upo.callbacks.rebirth.RebirthTargets", "init_args": {"max_new_tokens": 4}}
    args = ("--config", file, "--trainer.devices", "1", "--trainer.default_root_dir", "run", "--trainer.callbacks")
    run = tmp_path / "run"
    assert upo_fit(*args, json.dumps([callback])).code == 0
    whole = (run / FILE).read_text()
    for name in (FILE, "summary.json"):
        (run / name).unlink()
    done = upo_fit(*args, json.dumps([callback]), "--ckpt_path", "last")
    assert done.code == 0 and (run / FILE).read_text() == whole, done.text
    refused = upo_fit(*args, json.dumps([callback]), *sharded(), "--overwrite", "--trainer.devices", "2", ranks=2)
    assert refused.code == 2 and "cannot sample from a sharded policy" in refused.text, refused.text
