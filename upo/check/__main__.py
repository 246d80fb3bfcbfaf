"""Checks a run before it is started: `python -m upo.check CONFIG [CONFIG ...] --devices 8 --gpu a100-40gb`."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import NoReturn

from upo.errors import UserError, did_you_mean, short_errors
from upo.runtime.flops import GPUS
from upo.runtime.moved import no_such_file

USAGE = """%(prog)s CONFIG [CONFIG ...] [--devices N] [--gpu NAME] [options of upo.fit]
       %(prog)s STUDY [CONFIG ...] [--devices N] [--gpu NAME] [options of upo.fit]"""


class _Options(argparse.ArgumentParser):
    """Errors in one sentence."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}\nsee {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def main(args: Sequence[str] | None = None) -> None:
    """Resolves a config as `upo.fit` does, tries it on a sample of its data, and plans its memory, disk and time.

    CONFIG: YAMLs as for `upo.fit --config`, later ones win; overrides follow (--model.beta 0.2). STUDY: a file of
    `upo.ablate`; each of its runs is checked, the YAMLs behind it are laid over each. Such a further YAML can stand in
    for what this machine does not have: a config of the model's shape (policy: {path: null, config: {...}, tokenizer:
    ...}), a local sample of the data. Models of any size are planned without their weights; no GPU is needed. Exit
    code 2, and one sentence, where something is wrong or does not fit.
    """
    words = list(sys.argv[1:] if args is None else args)
    parser = _Options(
        "python -m upo.check", USAGE, main.__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--devices", type=int, help="GPUs of the run, over all nodes; by default what the config says")
    parser.add_argument("--gpu", help=f"which one: {', '.join(GPUS)}")
    files = list(takewhile(lambda word: not word.startswith("-"), words))
    given, overrides = parser.parse_known_args(words[len(files) :])
    with short_errors(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not files:
            raise UserError("give a config first: python -m upo.check experiments/quickstart/quickstart.yaml")
        if given.gpu is not None and given.gpu not in GPUS:
            alike = [name for name in GPUS if name.startswith(given.gpu)]
            raise UserError(f"--gpu {given.gpu}: {did_you_mean(given.gpu, alike or GPUS)}")
        if given.devices is not None and given.devices < 1:
            raise UserError(f"--devices {given.devices}: at least 1")
        _check([Path(f) for f in files], overrides, given.devices, given.gpu)


def _check(files: list[Path], overrides: list[str], devices: int | None, gpu: str | None) -> None:
    from upo.check.report import check_config, check_study
    from upo.cli.stages import content_of

    for file in files:
        if not file.is_file():
            raise UserError(f"no such config: {no_such_file(file)}")
    if "runs" in content_of(files[0]):
        check_study(files[0], files[1:], overrides, devices, gpu)
    else:
        check_config(files, overrides, devices, gpu)


if __name__ == "__main__":
    main()
