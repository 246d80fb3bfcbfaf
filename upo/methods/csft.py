"""CSFT, conditional supervised fine-tuning (Korbak et al., 2023), https://arxiv.org/abs/2302.08582.

Differs from SFT: all responses are imitated, desirable ones behind the token `<|good|>`, undesirable ones behind
`<|bad|>`; the trained model generates behind `<|good|>`. The token stands between prompt and response: it is the last
token of the prompt and the first that a response looks at, so it costs no loss itself. (HALOs count it as the first
token of the response and mask it there, which is the same; their `target` begins with it.)

Both tokens are added to the tokenizer, and the model grows by as many embeddings as it lacks, each the mean of the
others. The tokenizer remembers the good one: checkpoints, exported folders, evaluation and sampling stand behind it.
Deviations: pairs are split, with a prompt of its own for each response, because the tokens differ.
"""

from attrs import evolve, frozen

from upo.data.batch import SingleBatch
from upo.data.example import Example
from upo.methods.common.base import Stage
from upo.methods.common.needs import Needs
from upo.methods.sft import SFT
from upo.models.logps import ResponseLogps

GOOD, BAD = "<|good|>", "<|bad|>"


@frozen(eq=False)
class ControlledBatch(SingleBatch):
    """Labelled responses, each behind the token that says its label."""

    @classmethod
    def views(cls, example: Example, max_pairs: int) -> list[Example]:
        views = SingleBatch.views(example, max_pairs)
        return [evolve(view, control=GOOD if view.responses[0].desirable else BAD) for view in views]


class CSFT(SFT):
    """Conditional SFT: all responses behind a control token, good or bad; generation stands behind the good one."""

    batch_type = ControlledBatch
    needs = Needs(control_tokens=(GOOD, BAD))
    metric_names = ("nll_per_token", "nll_per_token/good", "nll_per_token/bad")

    def track(self, stage: Stage, batch: SingleBatch, logps: ResponseLogps) -> None:
        good = batch.desirable
        self.means(stage).update(**{
            "nll_per_token": (-logps.mean, logps.lengths),
            "nll_per_token/good": (-logps.mean[good], logps.lengths[good]),
            "nll_per_token/bad": (-logps.mean[~good], logps.lengths[~good]),
        })  # fmt: skip
