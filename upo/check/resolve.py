"""A config resolved as `upo.fit` does, without a run folder, earlier stages or a Trainer."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from upo.callbacks.generation_metrics import GenerationMetrics
from upo.callbacks.logger_runs import set_store
from upo.check.plan import Strategy
from upo.cli.main import CLI
from upo.cli.stages import beside, run_folder
from upo.data.module import PreferenceData
from upo.errors import UserError, did_you_mean
from upo.methods.common.base import Method
from upo.models.policy import Policy
from upo.models.reference import Reference
from upo.runtime.run_folder import RunPaths


class Resolved(CLI):
    """The command line with its method and data made, and nothing trained or written."""

    model: Method
    datamodule: PreferenceData
    config_init: Any

    def before_instantiate_classes(self) -> None:
        for path in self.config.after:
            if not beside(path, self.files).exists():
                raise UserError(f"after: no such file {path}")
        set_store(self.config.trainer, writes=False)

    def instantiate_trainer(self, **_: Any) -> None: ...

    def method(self, policy: Policy, reference: Reference | None = None) -> Method:
        """Another instance of the method, with this policy and, where one is given, this reference."""
        instead: list[Any] = [(lambda *_, **__: policy, Policy, True)]
        if reference is not None:
            instead.append((lambda *_, **__: reference, Reference, True))
        return self.parser.instantiate(self.config, instantiators=instead).model


def starting_policy(cli: Resolved) -> tuple[Policy, str | None]:
    """The policy as the run finds it, and a remark where it is not there yet.

    The export of an earlier stage that has not been trained is replaced by what that stage begins with.
    """
    policy = cli.model.policy
    if policy.path is None or Path(policy.path).exists():
        return policy, None
    for path in (beside(x, cli.files) for x in cli.config.after):
        if Path(policy.path) == RunPaths(run_folder(path)).export:
            stage = Resolved(["--config", str(path)])
            start, _ = starting_policy(stage)
            remark = f"{policy.path} is not there yet: {path} trains it; checked with the model that it begins with"
            return _from(start, policy), remark
    return policy, None


def _from(start: Policy, policy: Policy) -> Policy:
    """The model that an earlier stage begins with, in the place of the one that it leaves, with its tokenizer."""
    given = {name: x for name, x in policy.text.items() if x is not None}
    return Policy(
        start.path, start.config, start.tokenizer_path, str(policy.dtype).removeprefix("torch."),  # type: ignore[arg-type]
        policy.adapter, policy.quantization if start.path else None, policy.activation_checkpointing,  # type: ignore[arg-type]
        **{**start.text, **given},
    )  # fmt: skip


def check_monitors(cli: Resolved) -> None:
    """Refuses a `monitor` that no metric has: Lightning would say so hours later.

    Raises:
        UserError: names the nearest metric.
    """
    known = {f"{stage}/{name}" for stage in ("train", "val") for name in cli.model.logged_names}
    known |= {"train/lr", "train/grad_norm", "speed/pairs_per_s"}
    trainer = cli.config_init.trainer
    callbacks: list[pl.Callback] = [*(trainer.callbacks or []), cli.config_init.checkpoint]
    weights = getattr(cli.model, "reward_weights", None)
    for callback in callbacks:
        if isinstance(callback, GenerationMetrics):
            known |= set(callback.names(cli.datamodule.rewards, weights))
    for callback in callbacks:
        name = getattr(callback, "monitor", None)
        if name is not None and name not in known:
            raise UserError(f"{type(callback).__name__}: no metric is called `{name}`; {did_you_mean(name, known)}")
        if name is not None and name.startswith("val/") and not cli.datamodule.validation:
            raise UserError(f"{type(callback).__name__} monitors `{name}`, but data.validation is 0")


def devices_of(cli: Resolved, given: int | None) -> int:
    """How many devices the run has: as `given`, else what the config says; 1 where it leaves that open."""
    trainer = cli.config.trainer
    found = given or trainer.devices
    if isinstance(found, list):
        found = len(found)
    number = int(found) if str(found).isdigit() else 1
    return max(1, number) * (1 if given else int(trainer.num_nodes or 1))


def strategy_of(cli: Resolved, devices: int) -> tuple[Strategy, str, str | None]:
    """How the run is spread over devices, in what words, and what had to be assumed."""
    given = cli.config.trainer.strategy
    name = given if isinstance(given, str) else getattr(given, "class_path", type(given).__name__)
    plain = name.rpartition(".")[2].lower().replace("_", "")
    if devices == 1:
        return "single", "one device", None
    if any(word in plain for word in ("fsdp", "modelparallel", "shard")):
        return "fsdp", f"sharded over {devices}", None
    if "ddp" in plain:
        return "ddp", f"DDP on {devices}", None
    note = "the config names no strategy, which is DDP for upo.fit; planned as sharded (trainer.strategy)"
    return "fsdp", f"sharded over {devices}", note
