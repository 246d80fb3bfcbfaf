"""Base of all methods: one Lightning batch is one optimizer step, and losses are means over the GLOBAL step.

The GLOBAL step is all data of one optimizer step, over all micro-batches and ranks. A method declares its view of the
data, what it needs, and its loss; micro-batches, ranks, log-probs, metrics, clipping and checkpoints are handled here.
"""

from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from upo.data.batch import Batch, Step
from upo.data.layout import Responses
from upo.data.module import PreferenceData
from upo.data.rounds import Round
from upo.data.steps import REFERENCE_LOGPS
from upo.data.views import View
from upo.errors import UserError
from upo.methods.common.finite import check_means, check_start
from upo.methods.common.first_steps import learnable
from upo.methods.common.needs import SUMS, Needs, check_needs
from upo.methods.common.term import LossTerm, common, total
from upo.methods.common.trained import Trained
from upo.metrics.means import Means
from upo.models.logps import ResponseLogps
from upo.models.policy import Policy
from upo.models.reference import Reference
from upo.runtime.lightning_patches import quick_logs

Stage = Literal["train", "val"]

SUMS_OF_BOTH = Needs(reference=SUMS)
"""Log-probs of whole responses under policy and reference."""


class Method(Trained):
    """Base of all methods: owns the policy, the reference, the optimizer and the logging."""

    view: ClassVar[View]
    """What is made of an example: pairs, labelled responses, lists, ..."""
    needs: Needs = Needs()
    """What it needs of policy, reference and data. Where options decide, `__init__` adds to it before calling
    `super().__init__`, which checks it."""
    metric_names: tuple[str, ...] = ()
    """Names of its metrics beside the loss, without the prefix of a split; each is a plain mean."""
    logged_statistics: ClassVar[tuple[str, ...]] = ()
    """Those of `metric_names` that are scalars of `statistics`, one per step; `update_metrics` gives the others."""
    length_normalized: ClassVar[bool] = False
    """Whether the loss reads mean log-probs per token (`.mean`) instead of sums; shown in the list of methods."""
    reward_is_log_odds: ClassVar[bool] = False
    """Whether sigmoid(reward difference) is the probability of being preferred that the method fits (Bradley-Terry)."""
    initial_loss: ClassVar[float | None] = None
    """The preference loss while policy and reference are the same, where that is a constant, in nats."""

    def __init__(
        self,
        policy: Policy,
        reference: Reference | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.RMSprop(p, lr=5e-7),
        scheduler: LRSchedulerCallable = lambda o: torch.optim.lr_scheduler.LinearLR(
            o, start_factor=0.00667, total_iters=150
        ),
    ):
        """
        Args:
            policy: the model to train.
            reference: where reference log-probs come from; null for methods that need none.
            optimizer: class path and arguments (UPO and DPO papers: RMSprop with a learning rate of 5e-7).
            scheduler: class path and arguments, advanced once per step (UPO and DPO papers: 150 steps of linear
                warm-up, then constant).
        """
        super().__init__()
        if (self.needs.reward is None) != (type(self).reward is Method.reward):
            raise UserError(
                f"{type(self).__name__} must define both `reward(logps)` and `needs.reward`, what that reads (SUMS: "
                "log-probs only), or neither"
            )
        self.policy = policy
        policy.take_controls(self.needs.control_tokens)
        self.set_reference(reference)
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.data_seed, self._configured = 0, False
        self.train_means, self.val_means = Means(self.logged_names), Means(self.logged_names)

    def set_reference(self, reference: Reference | None) -> None:
        """Replaces the reference.

        Raises:
            UserError: the reference does not provide what the method needs.
        """
        check_needs(type(self).__name__, self.needs, self.policy, reference)
        object.__setattr__(self, "reference", reference)  # kept out of the module tree: never sharded, never saved

    @property
    def rewards(self) -> tuple[str, ...]:
        """Names of the auxiliary rewards that the method reads."""
        return self.needs.rewards

    @property
    def logged_names(self) -> list[str]:
        """All metrics that are plain means, without the prefix of a split."""
        return ["loss", *self.metric_names]

    def means(self, stage: Stage) -> Means:
        return self.train_means if stage == "train" else self.val_means

    # ---- what a method defines -------------------------------------------------------------------------------

    def terms(self, batch: Any, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        """The terms of the loss by name, unreduced."""
        raise NotImplementedError

    def statistics(self, step: Step) -> dict[str, Tensor]:
        """Values of the whole GLOBAL step that the loss needs, by name; computed before the first backward pass."""
        return {}

    def update_metrics(self, stage: Stage, batch: Any, logps: ResponseLogps) -> None:
        """Adds a micro-batch to the metrics of a split."""

    def compute_metrics(self, stage: Stage) -> dict[str, Tensor]:
        """Metrics of a split by name, over all ranks, since the last call."""
        values = self.means(stage).compute()
        self.means(stage).reset()
        return values

    def reward(self, logps: ResponseLogps) -> Tensor:
        """The implicit reward of each response [N]."""
        raise NotImplementedError(f"{type(self).__name__} needs `reward(logps)`: each response's implicit reward")

    # ---- one optimizer step ----------------------------------------------------------------------------------

    def response_logps(self, responses: Responses, wanted: Needs = SUMS_OF_BOTH) -> ResponseLogps:
        """Log-probs of responses, and the other quantities `wanted` of policy and reference."""
        reference_values, divergence_from = {}, None
        if self.reference is not None and wanted.reference is not None:
            reference_values = dict(self.reference.score(responses, sorted(wanted.of_reference)))
            if wanted.divergences:
                divergence_from = (hidden := reference_values["hidden"], self.reference.linear_head().to(hidden.dtype))
        values = self.policy(responses, sorted(wanted.policy), divergence_from)
        return ResponseLogps(
            values.pop("logps"),
            responses.lengths,
            responses.prompt_index,
            reference_values.pop("logps", None),
            responses.rewards,
            outputs=values,
            reference_outputs={name: reference_values[name] for name in wanted.reference or ()},
            response_index=responses.response_index,
        )

    def loss_of(self, batch: Batch, step: Step, statistics: dict[str, Tensor], stage: Stage) -> Tensor:
        """A micro-batch's share of the loss of the GLOBAL step; also updates the metrics."""
        logps = self.response_logps(batch.responses, self.needs)
        terms = self.terms(batch, logps, statistics)
        loss = total(terms.values(), step.counts)
        if stage == "train":
            self.first_steps.watch(logps)
        if batch.dummy:
            return 0.0 * loss
        self.step_values.add(loss, terms, logps)
        means, mean_over = self.means(stage), common(terms.values())
        count = batch.counts[mean_over]  # as weights they make the mean over several steps that of all their data
        means.update(loss=(loss[None] * step.counts[mean_over] / count, count))
        means.update(**{f"loss/{n}": t.values for n, t in terms.items() if f"loss/{n}" in means.names})
        with torch.no_grad():
            self.update_metrics(stage, batch, logps)
        return loss

    def step_statistics(self, step: Step, stage: Stage) -> dict[str, Tensor]:
        """`statistics` of the step; logs those in `logged_statistics`."""
        statistics = self.statistics(step)
        self.means(stage).update(**{name: statistics[name][None] for name in self.logged_statistics})
        return statistics

    def training_step(self, step: Step, batch_idx: int) -> Tensor:
        """One optimizer step; Lightning gets the last micro-batch's loss and does the rest.

        In order:
            1. Gradients are cleared, here: Lightning's own call would come between this and the last backward pass.
            2. `statistics(step)`: values of the GLOBAL step that the loss needs, without gradient.
            3. For every micro-batch: `response_logps` (forward pass of the policy, and of the reference where nothing
               is stored), `terms`, division by the step's global counts, `update_metrics`, backward pass. Gradients
               add up. The last one's loss is returned: Lightning runs its backward pass, in which sharded and
               replicated policies exchange their gradients.
            4. `configure_gradient_clipping`: the norm is logged, gradients are clipped, each group to its limit; a loss
               or a norm that is not finite ends the run here, as do first steps that do not reach what is trained.
            5. The optimizer's update, the scheduler's, then callbacks: moving references, metrics.csv, checkpoints.
        """
        self.step_values.clear()
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad(set_to_none=True)  # type: ignore[union-attr]
        if self.global_step == 0 and self.reference is not None and self.reference.starts_as_policy:
            with torch.no_grad():
                check_start(self.response_logps(step.micro_batches[0].responses).logratio)
        statistics = self.step_statistics(step, "train")
        world_size = self.trainer.world_size  # strategies average gradients over ranks; losses are shares of a sum
        scale = self.trainer.precision_plugin.pre_backward  # Lightning calls it for the last one; fp16 needs it for all
        for batch in step.micro_batches:
            loss = learnable(self.loss_of(batch, step, statistics, "train") * world_size)
            if batch is not step.micro_batches[-1]:
                scale(loss, self).backward()
        self._log("train")
        return loss

    def validation_step(self, step: Step, batch_idx: int) -> None:
        self.step_values.clear()
        statistics = self.step_statistics(step, "val")
        for batch in step.micro_batches:
            self.loss_of(batch, step, statistics, "val")

    def on_validation_epoch_end(self) -> None:
        self._log("val")

    def _log(self, stage: Stage) -> None:
        values = self.compute_metrics(stage)
        if stage == "val":
            check_means(values, self.global_step)
        for name, x in values.items():
            shown = stage == "train" and name in ("loss", "rewards/accuracies")
            self.log(f"{stage}/{name}", x, prog_bar=shown, batch_size=1)

    # ---- set-up ----------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        if self._configured:
            return
        self._configured = True
        if not hasattr(self.policy, "model"):
            self.policy.build()
        if self.reference is not None:
            self.reference.build(self.policy)
        self.add_heads()

    def prepare(self, round: Round) -> Round:
        """A new round with the columns that are computed before the first step; the given one stays as it is.

        Here: reference log-probs, where the reference stores them.
        """
        stored = self.reference and self.reference.stored(self.trainer, round)
        if not stored:
            return round
        return round.map(lambda split: split.with_column(REFERENCE_LOGPS, stored(tuple(split.groups()))))

    def on_fit_start(self) -> None:
        """Takes the run's seed from the data and prepares their first round."""
        quick_logs()
        if isinstance(data := getattr(self.trainer, "datamodule", None), PreferenceData):
            self.data_seed = data.seed % 2**64
            data.begin(self)
