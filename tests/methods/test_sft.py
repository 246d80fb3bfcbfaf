"""SFT."""

import torch
from cases import Case
from tiny import batch_of, plain_logps, policy, units

from upo.data.batch import Step
from upo.data.views import DemonstrationView
from upo.methods.sft import SFT, sft_loss

CASES = {SFT: Case(metrics={"lengths/chosen", "logps/chosen", "nll_per_token"})}


def test_by_hand():
    assert sft_loss(torch.tensor([-3.0, -0.5])).tolist() == [3.0, 0.5]


def test_the_loss_is_the_token_mean_over_the_step_however_it_is_cut():
    work = units([(3, [9]), (5, [1]), (2, [4]), (7, [2])])
    method = SFT(policy())
    logps = torch.cat([plain_logps(method.policy, u.prompt, u.responses[0]) for u in work])
    counts = {"prompts": 4, "responses": 4, "tokens": 16}
    for cut in ([work], [work[:1], work[1:]], [[u] for u in work]):
        batches = tuple(batch_of(part, DemonstrationView()) for part in cut)
        loss = sum(method.loss_of(b, Step(batches, counts), {}, "train") for b in batches)
        torch.testing.assert_close(loss, -logps.mean())
        seen = method.compute_metrics("train")
        torch.testing.assert_close(seen["loss"], -logps.mean())
        torch.testing.assert_close(seen["nll_per_token"], -logps.mean())
        torch.testing.assert_close(seen["lengths/chosen"], torch.tensor(4.0))
