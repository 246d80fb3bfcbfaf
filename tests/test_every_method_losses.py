"""What holds for every method: its loss as a function of log-probs."""

import every_method
import made_up
import pytest
import torch
from cases import case_of
from every_method import CORE_OR_SIXTH

pairs, run = every_method.pairs, every_method.run

FAR = (-1.0, -1.0), (-1e-9, -1e-9), (-1.0, -1e4 - 1), (-1e4 - 1, -1.0), (-1e-9, -1e4), (-1e4, -1e-9), (-40.0, -42.0)
"""Log-probs under policy and reference: log-ratios of 0 and of +-1e4, and responses that are all but certain."""


@pytest.mark.parametrize("kind", CORE_OR_SIXTH)
def test_far_out_the_loss_and_its_gradient_stay_finite(kind, run, monkeypatch):
    """Whatever stands beside what in a pair, a list or a step; also for responses of one token."""
    done = run(kind)
    monkeypatch.setattr(done.method, "value_warmup_steps", 0, raising=False)
    for tokens in (None, 1):
        step = made_up.one_step(done.method, done.data.train, tokens=tokens)
        n = len(step.micro_batches[0].responses.lengths)
        for seed in range(12):
            drawn = torch.randint(len(FAR), (n,), generator=torch.Generator().manual_seed(seed))
            logps, reference = torch.tensor(FAR)[drawn].unbind(1)
            logps = logps.clone().requires_grad_()
            loss = made_up.loss(done.method, step, logps, reference)
            (slope,) = torch.autograd.grad(loss, logps)
            assert loss.isfinite(), (tokens, seed)
            assert slope.isfinite().all(), (tokens, seed)
    done.method.train_means.reset()


@pytest.mark.parametrize("kind", [x for x in CORE_OR_SIXTH if not case_of(x.values[0]).stops_gradients])
def test_gradient_is_that_of_the_loss(kind, run, monkeypatch):
    """In float64, with the step's statistics as they are; one that was cut off, or runs where none should, shows."""
    done = run(kind)
    monkeypatch.setattr(done.method, "value_warmup_steps", 0, raising=False)
    step = made_up.one_step(done.method, done.data.train)
    n = len(step.micro_batches[0].responses.lengths)
    generator = torch.Generator().manual_seed(1)
    reference = -20 - 5 * torch.rand(n, generator=generator, dtype=torch.float64)
    logps = reference + 2 * torch.randn(n, generator=generator, dtype=torch.float64)
    known = made_up.statistics(done.method, step, logps, reference)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return made_up.loss(done.method, step, x, reference, known)

    assert torch.autograd.gradcheck(loss, logps.requires_grad_())
    assert torch.autograd.grad(loss(logps), logps)[0].abs().max() > 1e-5
    done.method.train_means.reset()
