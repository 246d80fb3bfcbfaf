"""What a check finds about one config."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from torch._subclasses.fake_tensor import FakeTensorMode

from upo.check import plan
from upo.check.plan import Memory, Setting, Shape, Work
from upo.check.probe import activation_bytes, shape_of, skeleton
from upo.check.resolve import Resolved, check_monitors, devices_of, starting_policy, strategy_of
from upo.check.trial import Trial, heaviest, prepare_sample, state_bytes, trial_method, try_step, warm_up
from upo.methods.common.base import Method
from upo.models.policy import Policy
from upo.models.reference import FrozenReference
from upo.runtime.flops import Cost, Gpu


@frozen
class Found:
    """Everything that is printed."""

    cli: Resolved
    method: Method
    remark: str | None
    shape: Shape
    work: Work
    setting: Setting
    where: str
    """The strategy in words."""
    note: str | None
    """What is assumed of the strategy."""
    memory: Memory
    trial: Trial
    units: tuple[float, float]
    """Training and validation units of the whole data, estimated."""
    steps: int | None
    """None for a run without an end."""
    warm_up: tuple[int, float]
    operations: float
    """Needed for one training unit."""
    activations_known: bool


def find(files: Sequence[Path], overrides: Sequence[str], devices: int | None, gpu: Gpu | None) -> Found:
    """Resolves, reads, probes and tries one config.

    Raises:
        UserError: whatever would stop the run.
    """
    cli = Resolved([word for file in files for word in ("--config", str(file))] + list(overrides))
    check_monitors(cli)
    data, trainer = cli.datamodule, cli.config.trainer
    policy, remark = starting_policy(cli)
    method = cli.method(copy.deepcopy(policy))
    units = prepare_sample(data, method)
    number = devices_of(cli, devices)
    strategy, where, note = strategy_of(cli, number)
    on_gpu = gpu is not None or trainer.accelerator not in ("cpu", "auto")
    mixed = str(trainer.precision).endswith("-mixed")

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    method.policy.model = skeleton(method.policy, mode)
    shape = shape_of(method, mode)
    micro_batches, heavy = heaviest(data, number)
    responses = data.train.batch(heavy).responses
    kept = activation_bytes(method.policy, responses, mode, mixed=mixed, gpu=on_gpu)
    tokens = int((responses.prompt_segment_ids >= 0).sum())
    work = Work(tokens, len(responses.targets), len(micro_batches.micro_batches), kept or 0.0)
    per_parameter, optimizer = state_bytes(method, method.policy.dtype)
    checkpointing = method.policy.activation_checkpointing
    reference = reference_bytes(method, shape, mode)
    setting = Setting(strategy, number, mixed, per_parameter, reference, on_gpu, checkpointing)

    cost, live = Cost.of(method.policy.model), reference > 0
    every = [data.train.batch([i]).responses for i in range(0, len(data.train), max(1, len(data.train) // 32))]
    operations = sum(map(cost.of_responses, every)) / len(every) * (3 + live)
    steps = planned_steps(trainer, units[0] / data.pairs_per_step)
    warm = warm_up(optimizer, method.make_scheduler(optimizer), steps or 20_000)
    trying, stand_in = trial_method(cli, policy, shape.parameters)
    trial = try_step(trying, data, trainer, stand_in)
    memory = plan.memory(shape, work, setting)
    return Found(
        cli,
        method,
        remark,
        shape,
        work,
        setting,
        where,
        note,
        memory,
        trial,
        units,
        steps,
        warm,
        operations,
        kept is not None,
    )


def reference_bytes(method: Any, shape: Shape, mode: FakeTensorMode) -> float:
    """Of a live reference; stored log-probs cost nothing."""
    if not isinstance(method.reference, FrozenReference):
        return 0.0
    model = method.policy.model
    if (path := method.reference.path) is not None:
        model = skeleton(Policy(path, tokenizer=method.policy.tokenizer_path), mode)
    return float(sum(p.numel() for p in model.parameters()) * shape.bytes)


def planned_steps(trainer: Any, an_epoch: float) -> int | None:
    """Optimizer steps of the run, from those of one epoch."""
    epochs = trainer.max_epochs if trainer.max_epochs is not None else 1
    limits = [max(1, round(an_epoch)) * epochs] if epochs >= 0 else []
    limits += [trainer.max_steps] if trainer.max_steps is not None and trainer.max_steps >= 0 else []
    return min(limits, default=None)
