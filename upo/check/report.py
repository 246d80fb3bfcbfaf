"""What a check says, of one config or of all runs of a study."""

import contextlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from upo.check import plan, view
from upo.check.find import Found, find
from upo.errors import UserError
from upo.models.stored_reference import StoredReference
from upo.runtime.disk import free_bytes
from upo.runtime.flops import GPUS, Gpu
from upo.runtime.run_folder import RunPaths


def check_config(files: Sequence[Path], overrides: Sequence[str], devices: int | None, gpu: str | None) -> None:
    """Prints everything about one config.

    Raises:
        UserError: it would not run, or does not fit.
    """
    card = GPUS[gpu] if gpu else None
    found = find(files, overrides, devices, card)
    out, cli = view.console(), found.cli
    out.print(cli.datamodule.report.table())
    first = cli.datamodule.train.batch([0]).responses
    out.print(
        "One example, scored tokens underlined:", view.example(first, found.method.policy.tokenizer), "", sep="\n"
    )
    if found.remark:
        out.print(f"note: {found.remark}")
    out.print(view.rows("Model and first step", _model(found)))
    out.print(view.rows("Schedule", _schedule(found, card)))
    out.print(view.memory_table(found.memory, found.where))
    if found.note:
        out.print(f"note: {found.note}")
    if not found.activations_known:
        out.print("note: activations of this architecture are not known; the plan leaves them out")
    if card is not None and gpu is not None:
        out.print(view.verdict(found.memory.peak, gpu, card.gib), style="bold")
        if not fits(found, card):
            raise UserError(_does_not_fit(found, gpu, card, out))
    number, size = _checkpoints(found)
    _check_disk(Path(cli.config.trainer.default_root_dir), number * size, card, out)


def fits(found: Found, card: Gpu) -> bool:
    return found.memory.peak / 2**30 <= card.gib - plan.FREE_GIB


def _does_not_fit(found: Found, gpu: str, card: Gpu, out: Any) -> str:
    """Prints what would help, and gives the sentence."""
    data = found.cli.datamodule
    longest = max(data.train.cost(i) for i in range(len(data.train)))
    stored = found.method.needs.of_reference <= StoredReference.provides
    table, helps = Table("what helps, each on top of the ones above", "peak", title_justify="left"), None
    for text, peak in plan.suggestions(found.shape, found.work, found.setting, longest, stored):
        enough = peak / 2**30 <= card.gib - plan.FREE_GIB
        table.add_row(text, view.size(peak), style="green" if enough else "")
        if enough:
            helps = text
            break
    out.print(table)
    advice = f"the table's changes down to `{helps}` make it fit" if helps else "none of the table's changes is enough"
    return (
        f"a step of this run needs {found.memory.peak / 2**30:.1f} GiB on each device and cannot fit {gpu} "
        f"({card.gib} GiB, {plan.FREE_GIB} of them kept free); {advice}"
    )


def _model(found: Found) -> dict[str, str]:
    method, trial, shape = found.method, found.trial, found.shape
    loss = f"{trial.loss:.5f} ({trial.term})"
    if trial.expected is not None:
        loss += f", and {trial.expected:.5f} is right while policy and reference agree"
    values = {
        "method": type(method).__name__,
        "trained parameters": f"{shape.trained:,}",
        "frozen parameters": f"{shape.parameters - shape.trained:,}, and the reference's "
        f"{round(found.setting.reference_bytes / shape.bytes):,}",
        "loss at step 0": loss,
        "gradient's norm": f"{trial.gradient:.4g}",
    }
    if trial.stand_in:
        values["tried with"] = "a small random Llama with this tokenizer, on this data: the model itself is too large"
    return values


def _schedule(found: Found, card: Gpu | None) -> dict[str, str]:
    cli, data = found.cli, found.cli.datamodule
    trainer, unit = cli.config.trainer, found.method.view.noun
    steps, (warm, rate) = found.steps, found.warm_up
    values = {
        "examples": f"about {found.units[0]:,.0f} {unit} to train on, {found.units[1]:,.0f} held out",
        "step": f"{data.pairs_per_step} {unit}; devices: {found.setting.devices}, micro-batches on each: "
        f"{found.work.micro_batches}, the heaviest with {found.work.tokens:,} tokens",
        "steps": f"about {steps:,}" if steps else "without an end: give trainer.max_epochs or trainer.max_steps",
        "learning rate": f"{rate:.3g}" + (f", reached after {warm} steps" if warm else ", from the first step"),
    }
    if warm and warm + 1 == steps:
        values["learning rate"] += ", and still rising at the last one: the run is shorter than its warm-up"
    if steps:
        values["epochs"] = f"{steps * data.pairs_per_step / found.units[0]:.3g}"
    number, size = _checkpoints(found)
    free = free_bytes(Path(trainer.default_root_dir))
    values["disk"] = f"{view.size(number * size)}: checkpoints kept at a time {number}, free here {view.size(free)}"
    if card is not None and steps:
        operations = found.operations * data.pairs_per_step * steps
        time = view.duration(plan.hours(operations, found.setting.devices, card.rate))
        values["time"] = (
            f"{time} for {operations:.3g} needed operations at {plan.MFU:.0%} of {card.rate / 1e12:g} "
            "Tflop/s a GPU; validation and evaluation are not in it"
        )
    return values


def _checkpoints(found: Found) -> tuple[int, float]:
    """How many lie in the run folder at most, and the bytes of one."""
    saves = found.cli.config_init.checkpoint
    kept = saves.save_top_k + (saves.monitor is not None and saves.save_top_k >= 0)  # the best, and the newest
    number = plan.checkpoints_kept(found.steps, saves._every_n_train_steps, kept)
    return number, plan.checkpoint_bytes(found.shape, found.setting.state_bytes)


def _check_disk(folder: Path, needed: float, card: Gpu | None, out: Any) -> None:
    """Raises a `UserError` where checkpoints are larger than what is free; of a run on another machine it is a note."""
    if needed <= (free := free_bytes(folder)):
        return
    text = f"checkpoints need {view.size(needed)}, and {view.size(free)} are free at {folder}"
    if card is None or torch.cuda.is_available():
        raise UserError(
            f"{text}; make room, name another trainer.default_root_dir, or keep fewer (checkpoint.save_top_k)"
        )
    out.print(f"note: {text} on this machine")


def check_study(
    file: Path, further: Sequence[Path], overrides: Sequence[str], devices: int | None, gpu: str | None
) -> None:
    """Checks every run of a study (seeds differ in nothing else) and prints a line for each.

    Raises:
        UserError: a run is wrong or does not fit; all others are checked first.
    """
    from upo.study.plan import expand, load

    card, out, wrong = GPUS[gpu] if gpu else None, view.console(), {}
    table = Table("run", "method", "trained", "loss at step 0", "gradient", "steps", "peak a device", title=str(file))
    study = expand(load(file), file)
    runs, needed = {run.name: run for run in study.runs}, 0.0
    for name, run in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / run.file.name
            config.write_text(run.text())
            try:
                with contextlib.redirect_stderr(io.StringIO()) as errors:
                    found = find([config, *further], overrides, devices, card)
            except SystemExit:
                wrong[name] = errors.getvalue().strip().splitlines()[0].removeprefix("error: ")
                continue
            except UserError as error:
                wrong[name] = str(error)
                continue
        trial = found.trial
        number, size = _checkpoints(found)
        needed += number * size * sum(x.name == name and not RunPaths(x.folder).finished for x in study.runs)
        table.add_row(
            name, type(found.method).__name__, f"{found.shape.trained:,}", f"{trial.loss:.5f}",
            f"{trial.gradient:.3g}", f"{found.steps:,}" if found.steps else "-", view.size(found.memory.peak),
        )  # fmt: skip
        if card is not None and not fits(found, card):
            wrong[name] = f"needs {view.size(found.memory.peak)} a device, which {gpu} does not have"
    out.print(table)
    for name, sentence in wrong.items():
        out.print(f"{name}: {sentence}")
    if wrong:
        raise UserError(f"{len(wrong)} of {len(runs)} runs of {file} cannot be started: {', '.join(wrong)}")
    _check_disk(study.folder, needed, card, out)
