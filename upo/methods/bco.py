"""BCO, Binary Classifier Optimization (Jung et al., 2024), https://arxiv.org/abs/2404.04656.

Unpaired: a logistic classifier of desirable against undesirable responses whose logit is the implicit reward minus a
shift delta. Its loss bounds DPO's from above, most tightly where delta is the midpoint of the two classes' mean
rewards. delta is computed from the running means over all training steps so far, the current one included, and is kept
in checkpoints. Where desirable and undesirable responses answer different prompts, undesirable ones can be weighted by
the density ratio of the prompts (UDM, underlying distribution matching).

Partly verified: loss, UDM and a cumulative delta, in TRL 0.12. Deviations from it: delta averages the responses of each
class, then the two class means, as in the theory; TRL averages over both classes together. Whether the paper uses a
plain or an exponential mean is uncertain. UDM represents a prompt by the reference model's hidden state at its last
token.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from jsonargparse.typing import PositiveFloat
from torch import Tensor
from torch.nn.functional import logsigmoid

from upo.data.batch import Step
from upo.data.layout import collate_responses
from upo.data.steps import StepData
from upo.data.units import Group
from upo.errors import UserError
from upo.methods.common.families import UnpairedMethod
from upo.methods.common.needs import Needs
from upo.methods.common.stepwise import step_logps
from upo.models.logps import ResponseLogps
from upo.runtime.collectives import sum_over_ranks


def bco_loss(
    logratio: Float[Tensor, "N"],
    desirable: Bool[Tensor, "N"],
    delta: Float[Tensor, ""],
    density_ratio: Float[Tensor, "N"] | None = None,
    *,
    beta: float,
) -> Float[Tensor, "N"]:
    """-log sigmoid(R - delta) if desirable, else -w(x) log sigmoid(-(R - delta)), R = beta r.

    One value per response, unreduced; w(x) is `density_ratio`, 1 without it.
    """
    shifted = beta * logratio - delta
    undesirable = -logsigmoid(-shifted)
    if density_ratio is not None:
        undesirable = density_ratio * undesirable
    return torch.where(desirable, -logsigmoid(shifted), undesirable)


def running_delta(totals: Float[Tensor, "2 2"]) -> Float[Tensor, ""]:
    """(E[R | desirable] + E[R | undesirable]) / 2.

    Args:
        totals: sum and number of rewards, row 0 of desirable and row 1 of undesirable responses; a class without any
            is left out of the mean.
    """
    seen = totals[:, 1] > 0
    means = totals[:, 0] / totals[:, 1].clamp(min=1)
    return means.sum() / seen.sum().clamp(min=1)


def udm_weights(logits: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """w(x) = clamp(p / (1 - p), 0.5, 10), p = p(desirable | x) = sigmoid(logit); one value per prompt."""
    return logits.clamp(math.log(0.5), math.log(10)).exp()


def fit_classifier(hidden: Float[Tensor, "n D"], desirable: Bool[Tensor, "n"]) -> Float[Tensor, "D+1"]:
    """Coefficients and intercept of a logistic regression with balanced classes.

    Balanced, so that its logit estimates the log density ratio of the two kinds of prompts whatever their numbers.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(class_weight="balanced", solver="newton-cg", tol=1e-8)  # hidden may be ill-scaled
    model.fit(hidden.double().numpy(), desirable.numpy())
    return torch.tensor([*np.ravel(model.coef_), *np.ravel(model.intercept_)], dtype=torch.float32)


class BCO(UnpairedMethod):
    """Binary Classifier Optimization."""

    logged_statistics = ("delta",)
    metric_names = (*UnpairedMethod.metric_names, *logged_statistics)
    initial_loss = 0.693147
    reward_totals: Tensor
    """Sum and number of rewards, of desirable and of undesirable responses, over all steps so far [2, 2]."""
    classifier: Tensor
    """UDM's coefficients and intercept [D + 1]; with zeros every weight is 1."""

    def __init__(self, *args: Any, beta: PositiveFloat = 0.01, match_prompts: bool = False, **kwargs: Any):
        """
        Args:
            beta: scale of the implicit reward, in 1/nats; larger stays closer to the reference (paper: 0.01; TRL: 0.1).
            match_prompts: weight undesirable responses by UDM, for data whose desirable and undesirable responses
                answer different prompts (TRL: off). The classifier is fitted before the first step on up to 1024
                prompts of each class.
        """
        if match_prompts:
            self.needs |= Needs(reference={"prompt_hidden"})
        super().__init__(*args, **kwargs)
        self.beta, self.match_prompts = beta, match_prompts
        self.register_buffer("reward_totals", torch.zeros(2, 2, dtype=torch.float64))

    def configure_model(self) -> None:
        super().configure_model()
        if self.match_prompts and not hasattr(self, "classifier"):
            self.register_buffer("classifier", torch.zeros(self.policy.hidden_size + 1))

    def on_train_start(self) -> None:
        super().on_train_start()
        if self.match_prompts and self.global_step == 0:
            self.classifier.copy_(self.fit_prompts(self.trainer.datamodule.train))  # type: ignore[attr-defined]

    def fit_prompts(self, data: StepData, at_most: int = 1024) -> Tensor:
        """UDM's classifier [D + 1] of prompts with desirable against prompts with undesirable responses.

        A prompt that has both kinds counts in both classes. At most `at_most` prompts per class are drawn, from seed 0.
        """
        reference = self.reference
        assert reference is not None
        hidden, labels = [], []
        generator = torch.Generator().manual_seed(0)
        for label in (True, False):
            units = [u for u in data.units if any(r.desirable is label for r in u.example.responses)]
            if not units:
                raise UserError("UDM compares prompts of desirable and undesirable responses; set match_prompts: false")
            sample = torch.randperm(len(units), generator=generator)[:at_most].tolist()
            for start in range(0, len(sample), 16):
                prompts = [units[i].prompt for i in sample[start : start + 16]]
                groups = [Group(p, (p[-1:],)) for p in prompts]  # any response will do: only the prompt's state is read
                responses = collate_responses(groups, data.layout, row_tokens=data.row_tokens, pad_id=data.pad_id)
                outputs = reference.outputs(responses.to(self.device), ("prompt_hidden",))
                hidden.append(outputs["prompt_hidden"].float().cpu())
                labels += [label] * len(prompts)
        return fit_classifier(torch.cat(hidden), torch.tensor(labels))

    def statistics(self, step: Step) -> dict[str, Tensor]:
        """delta, in units of the reward; training steps first add their rewards to the running means."""
        if self.training:
            rewards = self.beta * step_logps(self, step).logratio.double()
            batches: list[Any] = step.micro_batches  # type: ignore[assignment]
            desirable = torch.cat([b.preferred[: 0 if b.dummy else None] for b in batches])
            classes = torch.stack([desirable, ~desirable]).double()
            self.reward_totals += sum_over_ranks(torch.stack([classes @ rewards, classes.sum(1)], dim=1))
        return {"delta": running_delta(self.reward_totals).float()}

    def loss(self, logps: ResponseLogps, desirable: Tensor, statistics: dict[str, Tensor]) -> Tensor:
        density_ratio = None
        if self.match_prompts:
            logits = logps.reference_outputs["prompt_hidden"].float() @ self.classifier[:-1] + self.classifier[-1]
            density_ratio = udm_weights(logits)[logps.prompt_index]
        return bco_loss(logps.logratio, desirable, statistics["delta"], density_ratio, beta=self.beta)

    def reward(self, logps: ResponseLogps) -> Tensor:
        return self.beta * logps.logratio
