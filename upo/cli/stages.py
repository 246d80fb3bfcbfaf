"""Earlier stages of a run (`after:`): their YAMLs, where their runs go, and training those that are missing."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_only

from upo.errors import UserError, nearest
from upo.models.checkpoint_files import latest
from upo.runtime.moved import file_below
from upo.runtime.run_folder import RunPaths
from upo.runtime.yaml_files import read_yaml

LAUNCHED = re.compile(r"SLURM_|TORCHELASTIC_|(LOCAL_|GROUP_|NODE_|ROLE_)?RANK$|(LOCAL_|ROLE_)?WORLD_SIZE$|MASTER_")
"""What srun and torchrun tell their processes: a stage that rank 0 starts is not one of them."""

BESIDE = {"class_path", "init_args", "dict_kwargs"}
"""What a mapping that names a class may hold."""

STARTED = time.time()


def as_configs(words: Sequence[str]) -> list[str]:
    """`a.yaml b.yaml --model.beta 0.2` as `--config a.yaml --config b.yaml --model.beta 0.2`."""
    files = list(takewhile(lambda word: not word.startswith("-"), words))
    return [word for file in files for word in ("--config", file)] + list(words[len(files) :])


def config_files(args: Sequence[str]) -> list[Path]:
    """The --config files of a command line, in order."""
    given = [b for a, b in pairwise(args) if a == "--config"]
    return [Path(x) for x in given + [a.partition("=")[2] for a in args if a.startswith("--config=")]]


def beside(path: str, configs: Sequence[Path]) -> Path:
    """A path of the config, relative to the YAML that names it or to the working directory.

    Configs made before the experiments moved into folders name `experiments/NAME.yaml`: the file is found there.
    """
    places = [*(config.parent / path for config in reversed(configs)), Path(path)]
    if there := [place for place in places if place.exists()]:
        return there[0]
    if moved := [found for place in places if (found := file_below(place))]:
        print(f"after: {path} has moved to {moved[0]}; the old path still works", file=sys.stderr)
        return moved[0]
    return Path(path)


def content_of(config: Path) -> dict[str, Any]:
    """A YAML as it is written, without defaults."""
    content = read_yaml(config)
    if not isinstance(content, dict):
        raise UserError(f"{config} should hold keys such as `model:` and `data:`")
    for place, spec in _specs(content, ""):
        if not isinstance(named := spec.get("class_path", ""), str):
            raise UserError(f"{config}: {place}.class_path is {str(named)[:40]}; it names a class")
        for name in ("init_args", "dict_kwargs"):
            if not isinstance(given := spec.get(name, {}), dict):
                what = "empty; leave it out" if given is None else f"{str(given)[:40]}; it holds arguments by name"
                raise UserError(f"{config}: {place}.{name} is {what}")
        if other := sorted(map(str, spec.keys() - BESIDE)):
            near = nearest(other[0], BESIDE)
            hint = f"did you mean `{near}`?" if near else f"put `{other[0]}` under {place}.init_args"
            there = " and ".join(sorted(spec.keys() & BESIDE))
            raise UserError(f"{config}: {place}.{other[0]} stands beside {there}, where it does not belong; {hint}")
    return content


def _specs(value: Any, place: str) -> Iterator[tuple[str, dict[Any, Any]]]:
    """All mappings of a config that name a class, and where they stand."""
    if isinstance(value, dict) and value.keys() & BESIDE:
        yield place, value
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _specs(inner, f"{place}.{key}".removeprefix(".").replace(".init_args", ""))


def run_folder(config: Path) -> Path:
    """Where a YAML's run goes: its trainer.default_root_dir, by default runs/<name of the file>."""
    trainer = content_of(config).get("trainer") or {}
    return Path(trainer.get("default_root_dir") or f"runs/{config.stem}")


def stage_folder(config: Path, later: Path | None) -> Path:
    """Where the run of an earlier stage lies, or goes: the folder that its YAML names.

    Args:
        later: folder of the later stage, where its command line names one. A stage that has no finished run in its
            own folder lies beside that, under the name of its own.
    """
    own = run_folder(config)
    near = own if later is None else later.parent / own.name
    if near in (own, later) or (RunPaths(own).finished and not RunPaths(near).finished):
        return own
    return near


def follow(model: Any, configs: Sequence[Path], later: Path | None) -> Any:
    """The `model:` of a config, in which paths to models of earlier stages name where these are."""
    pairs = [(run_folder(config), stage_folder(config, later)) for config in configs if config.exists()]
    return _replaced(model, {str(RunPaths(own).export): str(RunPaths(new).export) for own, new in pairs})


def _replaced(value: Any, moved: Mapping[str, str]) -> Any:
    if isinstance(value, dict | Namespace):
        for key, inner in list(value.items() if isinstance(value, dict) else vars(value).items()):
            value[key] = _replaced(inner, moved)
        return value
    if isinstance(value, list):
        return [_replaced(inner, moved) for inner in value]
    return moved.get(os.path.normpath(value), value) if isinstance(value, str) and value else value


def refuse_circles(config: Path, chain: tuple[Path, ...] = ()) -> None:
    """Raises a `UserError` where a stage would have to be trained before itself."""
    if config in chain:
        raise UserError(
            f"after: {' needs '.join(str(x) for x in (*chain[chain.index(config) :], config))}; break the circle"
        )
    for path in content_of(config).get("after") or [] if config.is_file() else []:
        refuse_circles(Path(os.path.relpath(beside(path, [config]))), (*chain, config))


def run_earlier_stages(configs: list[Path], later: Path | None = None) -> None:
    """Trains each stage that has no finished run, in a process of its own, and exports its model.

    Args:
        later: as in `stage_folder`.
    """
    for config in configs:
        if not config.exists():
            raise UserError(f"after: no such file {config}")
        folder = stage_folder(config, later)
        run = RunPaths(folder)
        failed = folder.with_name(folder.name + ".failed")
        if rank_zero_only.rank != 0:
            while not run.export.exists():
                if failed.exists() and failed.stat().st_mtime > STARTED:
                    raise UserError(f"the earlier stage {config} failed; rank 0 says why")
                time.sleep(1)
            continue
        failed.unlink(missing_ok=True)
        try:
            _run(config, run)
        except BaseException:
            failed.parent.mkdir(parents=True, exist_ok=True)
            failed.touch()  # srun lets the other ranks wait
            raise


def _run(config: Path, run: RunPaths) -> None:
    """One stage, as far as it is missing."""
    if not run.finished:
        print(f"first the earlier stage {config}", flush=True)
        resume = ["--ckpt_path", "last"] if latest(run.folder) else []
        command = [sys.executable, "-m", "upo.fit", "--config", str(config), *resume]
        if run.folder != run_folder(config):
            command += ["--trainer.default_root_dir", str(run.folder)]
        code = _finished(command, {k: v for k, v in os.environ.items() if not LAUNCHED.match(k)})
        if code:
            killed = "was killed; the same command goes on from its newest checkpoint"
            how = f"failed (exit code {code})" if code > 0 else killed
            raise UserError(f"the earlier stage {config} {how}")
    if not run.export.exists():
        from upo.models.export import export

        export(run.folder, run.export)


def _finished(command: Sequence[str], env: dict[str, str]) -> int:
    """The exit code of a command. Where a signal ends this process, the command saves what it has before."""
    process = subprocess.Popen(command, env=env)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        try:
            process.wait()
        except BaseException:  # Ctrl-C once more
            process.kill()
            raise
        raise
