"""CSFT, conditional supervised fine-tuning (Korbak et al., 2023), https://arxiv.org/abs/2302.08582.

Differs from SFT: all responses are imitated, desirable ones behind the token `<|good|>`, undesirable ones behind
`<|bad|>`; the trained model generates behind `<|good|>`. The token stands between prompt and response: it is the last
token of the prompt and the first that a response looks at, so it costs no loss itself. (HALOs count it as the first
token of the response and mask it there, which is the same; their `target` begins with it.)

Both tokens are added to the tokenizer, and the model grows by as many embeddings as it lacks, each the mean of the
others. The tokenizer remembers the good one: checkpoints, exported folders, evaluation and sampling stand behind it.
Deviations: pairs are split, with a prompt of its own for each response, because the tokens differ.
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
    """Labelled responses, each behind the token that says its label."""

    def drafts(self, example: Example, max_pairs: int) -> list[Draft]:
        singles = (draft.example for draft in super().drafts(example, max_pairs))
        return [Draft(evolve(e, control=GOOD if e.responses[0].desirable else BAD)) for e in singles]


class CSFT(SFT):
    """Conditional SFT: all responses behind a control token, good or bad; generation stands behind the good one."""

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
