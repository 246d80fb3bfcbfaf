"""A study from its file to its comparison: what is missing is trained, what is there is kept."""

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from upo.errors import UserError, did_you_mean, short_errors
from upo.runtime.lock import alone
from upo.runtime.run_folder import RunPaths
from upo.study import league, tasks
from upo.study.manifest import Manifest, finished
from upo.study.plan import Planned, Study, expand, load
from upo.study.sweep import write_sweep
from upo.study.workers import BEGUN, Task, answer, run_tasks

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where PyYAML has it


def ablate(
    file: Path,
    jobs: int = 1,
    only: Sequence[str] = (),
    dry_run: bool = False,
    sweep: Path | None = None,
    short: bool = False,
) -> list[str]:
    """What `python -m upo.ablate` does; returns the runs that failed.

    Raises:
        UserError: the study or a config of it is wrong; nothing is trained then.
    """
    content = load(file)
    if "league" not in content:
        if short:
            raise UserError(f"{file} has no `league`; leave out --league")
        return work(expand(content, file), jobs, only, dry_run, sweep)
    if short:
        return work(league.short(content, file), jobs, only, dry_run, sweep)
    if only or sweep is not None:
        raise UserError("a league is trained whole; leave out --only and --sweep, or add --league short")
    failed: list[str] = []
    for study in league.rounds(content, file):
        failed += work(study, jobs, dry_run=dry_run)
        if dry_run:
            print(f"later rounds: what is kept of it by {content['league']['rank']}")
            break
    return failed


def work(
    study: Study, jobs: int, only: Sequence[str] = (), dry_run: bool = False, sweep: Path | None = None
) -> list[str]:
    """Checks a study, trains what is missing of it, and compares its runs; returns those that failed."""
    wanted = _chosen(study, only)
    missing = [run for run in wanted if not finished(run)]
    for run in wanted:
        _refuse_other_config(run)
    stages = _checked(missing, study.only_numbers_differ)
    if dry_run:
        _list(study, wanted)
        return []
    with alone(RunPaths(study.folder).lock, f"another upo.ablate works in {study.folder}"):
        manifest = Manifest(study)
        todo = {run.label for run in missing}
        for run in study.runs:
            run.file.parent.mkdir(parents=True, exist_ok=True)
            if run.label in todo or not run.file.exists():
                run.file.write_text(run.text())
        manifest.write()
        if sweep is not None:
            write_sweep(study, missing, sweep)
            return []
        if missing:
            _generate(study)
            _train_stages(stages)
            _train(missing, jobs, manifest)
        failed = [run.label for run in missing if not finished(run)]
        _compare(study)
    for label in failed:
        row = manifest.rows[label]
        print(f"failed: {label}: {row['error']} (see {RunPaths(row['folder']).log})")
    return failed


def _chosen(study: Study, only: Sequence[str]) -> list[Planned]:
    names = {name for run in study.runs for name in (run.name, run.entry, run.label)}
    for name in only:
        if name not in names:
            known = {name for run in study.runs for name in (run.name, run.entry)}
            raise UserError(f"--only {name}: no such run; {did_you_mean(name, known)}")
    return [run for run in study.runs if not only or {run.name, run.entry, run.label} & set(only)]


def _refuse_other_config(run: Planned) -> None:
    """A run folder that an earlier version of the study began is neither kept nor continued in silence."""
    begun = finished(run) or RunPaths(run.folder).checkpoints.exists()
    if begun and run.file.exists() and _settings(yaml.load(run.file.read_text(), LOADER)) != _settings(run.config):
        raise UserError(f"{run.folder} was made with other settings ({run.file}); delete it, or name another `folder`")


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the names of its earlier stages alone: where their YAMLs lie is no setting of the run."""
    return {**config, "after": [Path(path).name for path in config.get("after") or []]}


def _checked(missing: Sequence[Planned], by_entry: bool) -> list[tuple[Path, Path]]:
    """Parses one config of each name or entry (seeds differ in nothing else) before anything is written or trained."""
    if not missing:
        return []
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for run in {run.entry if by_entry else run.name: run for run in missing}.values():
            files.append((f"run `{run.name}` ({run.base})", Path(folder) / run.file.name))
            files[-1][1].write_text(run.text())
        mistake, stages = answer(tasks.check, files)
    if mistake is not None:
        raise UserError(mistake)
    return stages


def _list(study: Study, wanted: Sequence[Planned]) -> None:
    for name in dict.fromkeys(run.name for run in wanted):
        own = [run for run in wanted if run.name == name]
        todo = [str(run.seed) for run in own if not finished(run)]
        done = len(own) - len(todo)
        print(f"{name}: seeds to train: {', '.join(todo) or 'none'}" + (f" ({done} finished)" if done else ""))
    print(f"{sum(not finished(run) for run in wanted)} of {len(wanted)} runs are to be trained, into {study.folder}")


def _generate(study: Study) -> None:
    for number, arguments in enumerate(study.generate):
        if Path(arguments["out"]).exists():
            continue
        file = study.folder / "configs" / f"generate{number}.yaml"
        file.write_text(yaml.safe_dump(arguments, sort_keys=False))
        print(f"first {arguments['out']}", flush=True)
        answer(tasks.generate, file)


def _train_stages(stages: Sequence[tuple[Path, Path]]) -> None:
    for config, folder in stages:
        run = RunPaths(folder)
        if not run.exported:
            print(f"first the earlier stage {config}", flush=True)
            task = Task(str(config), tasks.stage, (config, folder), run.log)
            codes: list[int] = []
            run_tasks([task], 1, ended=lambda _, code, __: codes.append(code))  # noqa: B023
            if codes[0]:
                raise UserError(f"the earlier stage {config} failed: {_last_words(run.log, codes[0])}")


def _train(missing: Sequence[Planned], jobs: int, manifest: Manifest) -> None:
    from tqdm import tqdm

    queue = [Task(run.label, tasks.train, (run.file, run.folder), RunPaths(run.folder).log) for run in missing]
    bar = tqdm(total=len(queue), desc="runs", unit="run", disable=None)
    start = time.monotonic()

    def begun(task: Task) -> None:
        manifest.update(task.name, status="running", error=None)
        bar.set_postfix_str(task.name)

    def ended(task: Task, code: int, seconds: float) -> None:
        bar.update()
        words = None if code == 0 else _last_words(task.log, code)
        manifest.update(task.name, seconds, status="failed" if code else "finished", error=words)
        done = sum(row["status"] in ("finished", "failed") for row in manifest.rows.values())
        if code or bar.disable:
            how = f"failed: {words}" if code else f"{seconds:.0f} s"
            bar.write(f"{task.name}: {how} ({done} of {len(manifest.rows)}, {(time.monotonic() - start) / 60:.1f} min)")

    try:
        with bar:
            run_tasks(queue, jobs, begun, ended)
    finally:
        manifest.stopped()


def _last_words(log: Path | None, code: int) -> str:
    """Why a process failed: the error it printed last, else its last line, else its exit code."""
    text = log.read_text(errors="replace") if log is not None and log.exists() else ""
    lines = [line.strip() for line in text.rpartition(BEGUN)[2].splitlines()[1:] if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if code < 0:
        return f"killed by signal {-code}"
    return (errors or lines or [f"exit code {code}"])[-1].removeprefix("error: ")[:300]


def _compare(study: Study) -> None:
    done = [run for run in study.runs if finished(run)]
    if not done:
        return
    baseline = next((run.folder for run in done if run.name == study.baseline), None)
    if study.baseline is not None and baseline is None:
        print(f"note: no run of the baseline {study.baseline} is finished", file=sys.stderr)
    options = study.compare | {"baseline": baseline, "out": study.folder}
    sys.stdout.flush()
    answer(compared, [run.folder for run in done], options)


def compared(runs: Sequence[Path], options: Mapping[str, Any]) -> None:
    """`upo.compare` in a process of its own, its mistakes as one sentence."""
    from upo.comparison.compare import compare

    with short_errors():
        compare(runs, **options)
