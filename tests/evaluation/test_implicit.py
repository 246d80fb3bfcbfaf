"""Implicit rewards of pairs, against log-probs taken one sequence at a time."""

from pathlib import Path

import pytest
import torch
from tiny import PAIRS, plain_logps
from training import make, pairs_file

from upo.data.module import PreferenceData
from upo.data.report import DataReport
from upo.data.source import Source
from upo.data.tokenize import Encoder
from upo.errors import UserError
from upo.evaluation.implicit import implicit_rewards
from upo.methods import DPO, SFT, SimPO


@pytest.fixture
def data(tmp_path: Path) -> PreferenceData:
    return PreferenceData((Source("hh", path=pairs_file(tmp_path)),), validation=4, max_length=256)


def trained(kind: type, **options):
    """A method whose policy has moved away from its reference."""
    method = make(kind, **options)
    method.configure_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in method.policy.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    return method


def test_dpo_one_sequence_at_a_time(data: PreferenceData) -> None:
    method = trained(DPO, beta=0.3)
    pairs = implicit_rewards(method, data)
    assert len(pairs) == 4
    examples = data.examples()[1]
    units = Encoder(method.policy.tokenizer).encode(examples, DataReport())
    known = {chosen for _, chosen, _ in PAIRS}
    for pair, unit in zip(pairs, units, strict=True):
        assert pair.texts == tuple(r.text for r in unit.example.responses) and pair.prompt == unit.example.prompt
        assert pair.texts[0].strip() in known
        for reward, ids in zip((pair.chosen, pair.rejected), unit.responses, strict=True):
            gap = plain_logps(method.policy, unit.prompt, ids) - plain_logps(method.reference.model, unit.prompt, ids)
            assert reward == pytest.approx(0.3 * gap.sum().item(), abs=1e-4)
        assert pair.margin == pair.chosen - pair.rejected != 0


def test_given_examples_and_a_method_without_reference(data: PreferenceData) -> None:
    training = data.examples()[0]
    pairs = implicit_rewards(trained(SimPO), data, training[:3])
    assert [p.example.responses for p in pairs] == [e.responses for e in training[:3]]


def test_mistakes_get_a_sentence(data: PreferenceData) -> None:
    with pytest.raises(UserError, match="SFT defines no implicit reward"):
        implicit_rewards(trained(SFT), data)
    with pytest.raises(UserError, match="no pair of responses"):
        implicit_rewards(trained(DPO), data, [])
