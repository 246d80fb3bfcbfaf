"""A sample of the data, and one optimizer step on it as `upo.fit` takes it."""

import copy
import math
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from attrs import frozen

from upo.check.resolve import Resolved
from upo.data.module import PreferenceData
from upo.data.samplers import StepPlan, StepSampler
from upo.errors import UserError
from upo.methods.common.base import Method
from upo.models.policy import Policy
from upo.models.reference import FrozenReference, Reference
from upo.models.stored_reference import StoredReference

EXAMPLES = 256
"""Training examples that are tokenised; a sixteenth as many held-out ones."""
PAIRS = 4
"""Pairs of the trial step."""
LARGEST = 60_000_000
"""Parameters beyond which a small model stands in for the trial step."""
SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def prepare_sample(data: PreferenceData, method: Method) -> tuple[float, float]:
    """Reads all examples, tokenises and measures a sample of them.

    Returns:
        Estimates of the training and validation units of the whole data.
    """
    train, held_out = data.examples()
    sample = train[:: max(1, len(train) // EXAMPLES)][:EXAMPLES], held_out[: EXAMPLES // 16]
    policy = method.policy
    data.prepare(policy.tokenizer, method.view, method.rewards, policy.context, examples=sample)
    return len(data.train) * len(train) / len(sample[0]), len(data.val) * len(held_out) / max(1, len(sample[1]))


def heaviest(data: PreferenceData, devices: int, steps: int = 4) -> tuple[StepPlan, list[int]]:
    """Micro-batches of rank 0 in the step with the heaviest one, and that one's units; the sample is gone through again
    where it is shorter than a few steps."""
    number = len(data.train)
    units = [i % number for i in range(max(number, steps * data.pairs_per_step))]
    sampler = StepSampler(
        [data.train.cost(i) for i in units],
        units_per_step=data.pairs_per_step,
        tokens_per_microbatch=data.tokens_per_microbatch,
        shuffle=True,
        seed=0,
        world_size=devices,
        bucket_by_length=data.layout == "padded",
    )
    plans = [sampler.plan(step) for step in sampler.steps(0)]
    weight = lambda micro: sum(sampler.costs[u] for u in micro)  # noqa: E731
    plan = max(plans, key=lambda p: max(map(weight, p.micro_batches)))
    return plan, [units[u] for u in max(plan.micro_batches, key=weight)]


@frozen
class Trial:
    """What one step gave."""

    term: str
    """Which loss `loss` is."""
    loss: float
    expected: float | None
    gradient: float
    """Norm over all trained parameters."""
    stand_in: bool
    """Whether a small model stood in for the policy."""


class _Gradients(pl.Callback):
    """Keeps the norm of all gradients; the Trainer's own log knows the first group's."""

    norm = math.nan

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.norm = math.sqrt(sum(g.float().norm().item() ** 2 for g in grads))


def trial_method(cli: Resolved, policy: Policy, parameters: int) -> tuple[Method, bool]:
    """The method for one step on the CPU, and whether a small model with the policy's tokenizer stands in.

    Args:
        policy: one that has no weights yet.
        parameters: of the policy; beyond `LARGEST` the small model is taken. A stored reference is replaced by a live
            one: a store would be filled with all the data.
    """
    stand_in, given = parameters > LARGEST, cli.model.reference
    if stand_in:
        small = SMALL | {"max_position_embeddings": 1 << 20}
        policy = Policy(None, small, policy.tokenizer_path, **policy.text)
    reference = None
    if (stand_in and given is not None) or isinstance(given, StoredReference):
        reference = FrozenReference(None if stand_in else getattr(given, "path", None))
    return cli.method(policy, reference), stand_in


def try_step(method: Method, data: PreferenceData, trainer: Any, stand_in: bool) -> Trial:
    """One step on a few units of the sample, on the CPU, in fp32 unless the policy says otherwise.

    Args:
        method: one whose policy has no weights yet.
        trainer: the config's Trainer settings.

    Raises:
        UserError: loss or gradient are not finite or 0, or the reference differs from the policy.
    """
    gradients, few = _Gradients(), copy.copy(data)
    few.pairs_per_step = min(PAIRS, data.pairs_per_step)
    precision = trainer.precision if str(trainer.precision).endswith("-true") else "32-true"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = pl.Trainer(
            accelerator="cpu", devices=1, max_steps=1, limit_val_batches=0, num_sanity_val_steps=0, logger=False,
            precision=precision, accumulate_grad_batches=trainer.accumulate_grad_batches, callbacks=[gradients],
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False,
        )  # fmt: skip
        small.fit(method, datamodule=few)
    term = "train/loss/preference" if "train/loss/preference" in small.callback_metrics else "train/loss"
    found = float(small.callback_metrics[term])
    reference: Reference | None = method.reference  # type: ignore[assignment]
    expected = method.initial_loss if reference is None or reference.starts_as_policy else None
    name = type(method).__name__
    if not math.isfinite(found):
        raise UserError(f"{name}: the first step's loss is {found}; is a reward or a score in the data not finite?")
    if expected is not None and abs(found - expected) > 1e-3:
        raise UserError(
            f"{name}: the first step's loss is {found:.5f}, and {expected:.5f} while policy and reference agree: the "
            "reference differs from the policy"
        )
    if not (math.isfinite(gradients.norm) and gradients.norm > 0):
        raise UserError(f"{name}: the first step's gradient has the norm {gradients.norm}; nothing would be learned")
    return Trial(term, found, expected, gradients.norm, stand_in)


def warm_up(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> tuple[int, float]:
    """How many steps pass before the learning rate is highest, and that rate."""
    optimizer.zero_grad()
    rates = []
    for _ in range(max(1, min(steps, 20_000))):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    highest = max(rates)
    return next(i for i, x in enumerate(rates) if x >= highest * (1 - 1e-9)), highest


def state_bytes(method: Method, dtype: torch.dtype) -> tuple[float, torch.optim.Optimizer]:
    """Bytes that the optimizer keeps for each parameter, found by one step on a parameter of its own."""
    p = torch.nn.Parameter(torch.zeros(1 << 16, dtype=dtype))
    optimizer = method.make_optimizer([{"params": [p]}])  # type: ignore[arg-type]
    p.grad = torch.zeros_like(p)
    optimizer.step()
    kept = [x for x in optimizer.state[p].values() if isinstance(x, torch.Tensor)]
    return sum(x.numel() * x.element_size() for x in kept if x.numel() > 1) / p.numel(), optimizer
