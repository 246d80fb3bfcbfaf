"""CSFT, conditional supervised fine-tuning (Korbak et al., 2023), https://arxiv.org/abs/2302.08582.

Differs from SFT: all responses are imitated, desirable ones after the control token `<|good|>`, undesirable ones after
`<|bad|>`; generation uses `<|good|>`. The token is the last one of the prompt, so it has no loss of its own. (HALOs
counts it as the first token of the response and masks its loss, which is the same.)

Both tokens are added to the tokenizer, and the model gets embeddings for them where it has too few, each the mean of
the others. The tokenizer stores the good token; checkpoints, exported folders, evaluation and sampling put it behind
every prompt. Deviations: pairs are split into single responses, because each has a control token in its prompt.
"""

from attrs import evolve

from upo.data.batch import Batch
from upo.data.example import Example
from upo.data.units import Draft
from upo.data.views import SingleView
from upo.methods.common.base import Stage
from upo.methods.common.needs import Needs
from upo.methods.sft import SFT
from upo.models.logps import ResponseLogps

GOOD, BAD = "<|good|>", "<|bad|>"


class ControlledView(SingleView):
    """Labelled responses, each after the control token of its label."""

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        singles = (draft.example for draft in super().drafts(example, max_pairs))
        return [Draft(evolve(e, control=GOOD if e.responses[0].desirable else BAD)) for e in singles]


class CSFT(SFT):
    """Conditional SFT: every response after a control token, good or bad; generation uses the good one."""

    view = ControlledView()
    needs = Needs(control_tokens=(GOOD, BAD))
    metric_names = ("nll_per_token", "nll_per_token/good", "nll_per_token/bad")

    def update_metrics(self, stage: Stage, batch: Batch, logps: ResponseLogps) -> None:
        good = batch.preferred
        self.means(stage).update(**{
            "nll_per_token": (-logps.mean, logps.lengths),
            "nll_per_token/good": (-logps.mean[good], logps.lengths[good]),
            "nll_per_token/bad": (-logps.mean[~good], logps.lengths[~good]),
        })  # fmt: skip
