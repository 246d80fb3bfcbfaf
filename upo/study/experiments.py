"""YAMLs of experiments that stand for their runs: one run a seed, trained where it is missing."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from upo.errors import UserError
from upo.runtime.moved import no_such_file
from upo.runtime.run_folder import RunPaths
from upo.study import tasks
from upo.study.workers import Task, run_tasks

YAML = (".yaml", ".yml")


def folders_of(run: Path, seeds: int) -> list[Path]:
    """Folders of the runs that an argument means: itself, or <run folder>_seed<k> for each seed of an experiment."""
    if run.suffix not in YAML:
        return [run]
    if not run.is_file():
        raise UserError(f"no such experiment: {no_such_file(run)}")
    from upo.cli.stages import run_folder

    folder = run_folder(run)
    return [folder.with_name(f"{folder.name}_seed{seed}") for seed in range(seeds)]


def train_missing(runs: Iterable[Path], seeds: int, jobs: int) -> None:
    """Trains the seeds of experiments that have no finished run, in forked processes; stages that they share first.

    Args:
        runs: run folders among them are left alone.
        jobs: runs at a time.

    Raises:
        UserError: a run failed; it has said why.
    """
    queue = [
        Task(f"{run} with seed {seed}", tasks.train, (run, folder, _options(seed, folder)))
        for run in runs
        for seed, folder in enumerate(folders_of(run, seeds))
        if run.suffix in YAML and not RunPaths(folder).finished
    ]
    stages = _missing_stages(task.args[0] for task in queue)
    _run([Task(f"the earlier stage {file}", tasks.stage, (file, folder)) for file, folder in stages.items()], 1)
    _run(queue, jobs)


def _options(seed: int, folder: Path) -> list[str]:
    return ["--seed_everything", str(seed), "--trainer.default_root_dir", str(folder)]


def _missing_stages(experiments: Iterable[Path]) -> dict[Path, Path]:
    """YAMLs and run folders of earlier stages that are to be trained; those before them they train themselves."""
    from upo.cli.stages import beside, content_of, run_folder

    named = {run: content_of(run).get("after") or [] for run in experiments}
    files = {beside(path, [run]) for run, paths in named.items() for path in paths}
    folders = {file: run_folder(file) for file in sorted(files) if file.exists()}  # the run itself misses the others
    return {file: folder for file, folder in folders.items() if not RunPaths(folder).exported}


def _run(queue: Sequence[Task], jobs: int) -> None:
    failed: list[str] = []

    def begun(task: Task) -> None:
        print(f"first {task.name}, into {task.args[1]}", flush=True)

    def ended(task: Task, code: int, _: float) -> None:
        failed.extend([f"{task.name} failed (exit code {code})"] * bool(code))

    run_tasks(queue, jobs, begun, ended)
    if failed:
        raise UserError("; ".join(failed))
