"""The command line of `upo.fit`: LightningCLI with short errors, one folder a run, stages and a final evaluation."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import upo.methods
import upo.rewards  # noqa: F401  both make short class names known
from upo.callbacks import logger_runs, loggers
from upo.callbacks.checkpoint_io import AtomicCheckpointIO
from upo.callbacks.checkpoints import Checkpoints
from upo.callbacks.graceful_stop import GracefulStop, Signals
from upo.callbacks.metrics_csv import MetricsCSV
from upo.callbacks.progress_lines import ProgressLines
from upo.callbacks.random_state import RandomState
from upo.callbacks.run_folder import RunFolder, first_day
from upo.callbacks.seen import Seen
from upo.callbacks.spared import spare
from upo.callbacks.throughput import Throughput
from upo.cli.changes import check_changes
from upo.cli.finish import finish_run
from upo.cli.launch import bound_waiting, check_launch
from upo.cli.parser import ShortErrors
from upo.cli.resume import prepare_folder, run_alone, short_restore
from upo.cli.stages import as_configs, beside, config_files, content_of, follow, refuse_circles, run_earlier_stages
from upo.data.module import PreferenceData
from upo.errors import UserError, causes, root_cause, short_errors
from upo.evaluation.benchmarks import Harness
from upo.evaluation.evaluation import Evaluation
from upo.methods.common.base import Method
from upo.models.checkpoint_files import settings_in, step_of
from upo.ops.memory import keep_memory
from upo.runtime.moved import no_such_file
from upo.runtime.run_folder import RunPaths

QUIET = (
    ".*does not have many workers.*",
    ".*litlogger.*",
    ".*args parameter is intended to run from within Python.*",
    ".*in eval mode at the start.*",
    ".*LeafSpec.*",
    ".*Checkpoint directory.*",
    ".*your dataloader is not resumable.*",
    ".*sync_dist=True.*",
)
"""Warnings that tell a user nothing to do."""

GROUPS = {
    "model": "method (python -m upo.methods lists them, --model.help NAME shows one's arguments)",
    "data": "data",
    "checkpoint": "checkpoints",
    "trainer": "Lightning's Trainer",
}
"""Titles of the help, in its order."""


class CLI(LightningCLI):
    """Method and data from YAML files and dotted overrides."""

    def __init__(self, args: Sequence[str] | None = None, held: ExitStack | None = None):
        """
        Args:
            args: of the command line; by default the process's.
            held: what ends with the command: the lock of the run folder, the handlers of signals.
        """
        given = sys.argv[1:] if args is None else list(args)
        self.held, self.signals = held or ExitStack(), Signals(given)
        self.names_folder = any(word.partition("=")[0] == "--trainer.default_root_dir" for word in given)
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
        for noise in QUIET:
            warnings.filterwarnings("ignore", noise)
        self.files = config_files(given)
        for file in self.files:
            if not file.is_file():
                raise UserError(f"--config: no such file {no_such_file(file)}")
            content_of(file)
        super().__init__(
            model_class=Method,
            datamodule_class=PreferenceData,
            subclass_mode_model=True,
            save_config_callback=RunFolder,
            parser_class=ShortErrors,
            parser_kwargs={
                "parser_mode": "omegaconf+",
                "prog": "python -m upo.fit",
                "usage": "%(prog)s FILE [FILE ...] [--KEY VALUE ...]",
                "description": main.__doc__,
            },
            trainer_defaults={
                "default_root_dir": f"runs/{self.files[-1].stem if self.files else 'unnamed'}",
                "max_epochs": 1,
                "use_distributed_sampler": False,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
                "log_every_n_steps": 1,
            },
            seed_everything_default=0,
            auto_configure_optimizers=False,
            run=False,
            args=None if args is None else list(args),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="continue a run from this checkpoint; `last` takes the newest one in the run folder",
        )
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="delete the contents of the run folder, then start anew"
        )
        parser.add_argument(
            "--allow_changes",
            type=bool,
            default=False,
            help="continue with other settings or data than the checkpoint was trained with, instead of refusing them",
        )
        parser.add_argument(
            "--after",
            type=list[str],
            default=[],
            help="YAMLs of earlier stages (an SFT run, say), relative to this YAML. Those without a finished run are "
            "trained first; each leaves its model in <its run folder>/export, for model.policy.path. Where the command "
            "line names --trainer.default_root_dir, a stage that has to be trained goes beside that folder, under the "
            "name of its own, and paths to its model follow",
        )
        parser.add_argument(
            "--evaluation",
            type=Evaluation | None,
            default=None,
            help="settings of the evaluation at the end of training",
        )
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.filename": "{step}",
                "checkpoint.every_n_train_steps": 500,
                "checkpoint.save_last": "link",
                "checkpoint.auto_insert_metric_name": True,
            }
        )
        for name, title in GROUPS.items():
            group = parser.groups[name]
            group.title = title
            parser._action_groups.remove(group)
            parser._action_groups.append(group)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("trainer.default_root_dir", "checkpoint.dirpath", compute_fn=lambda x: f"{x}/checkpoints")

    def before_instantiate_classes(self) -> None:
        self.folder = Path(self.config.trainer.default_root_dir)
        for file in self.files:
            refuse_circles(Path(os.path.relpath(file)))
        later = self.folder if self.names_folder else None
        stages = [beside(path, self.files) for path in self.config.after]
        self.config.model = follow(self.config.model, stages, later)
        asked = self.folder, self.config.ckpt_path, self.config.overwrite
        if not self.folder.is_dir():
            prepare_folder(*asked)  # what is wrong is said before a folder is made
        self.held.enter_context(run_alone(self.folder))
        self.checkpoint = prepare_folder(*asked)
        if self.checkpoint is not None:
            now = json.loads(self.parser.dump(self.config, format="json", skip_none=False))
            file = Path(self.checkpoint)
            if said := check_changes(file, settings_in(file), now, self.config.allow_changes):
                rank_zero_only(print)(said)
        if (asked := self.config.evaluation) is not None:  # before earlier stages train, too
            Evaluation(tasks=asked.tasks, harness=Harness(**vars(asked.harness)), backend=asked.backend).check()
        logger_runs.set_store(self.config.trainer, writes=rank_zero_only.rank == 0)
        self.signals.folder = self.folder
        self.held.enter_context(self.signals.handled())
        run_earlier_stages(stages, later)

    def instantiate_classes(self) -> None:
        """What a constructor raises is told in a sentence with its place: a class of one's own, a missing package."""
        try:
            super().instantiate_classes()
        except Exception as error:
            if any(isinstance(x, UserError) for x in causes(error)):
                raise
            raise UserError(root_cause(error)) from error

    def instantiate_trainer(self, **kwargs: Any):
        trainer, given = self.config_init.trainer, self.config_init.trainer.logger
        given = given if isinstance(given, list) else [given] if isinstance(given, Logger) else []
        logger_runs.prepare(given, self.folder, step_of(Path(self.checkpoint)) if self.checkpoint else None)
        for logger in given:
            spare(logger)
        every = [MetricsCSV(str(self.folder)), *given]
        callbacks = [*(trainer.callbacks or []), Throughput(), Seen(), ProgressLines(), RandomState()]
        callbacks += [GracefulStop(self.signals)]
        plugins = [AtomicCheckpointIO(), *(trainer.plugins or [])]
        if type(trainer.strategy) is ModelParallelStrategy:
            raise UserError(
                "ModelParallelStrategy would shard nothing; take trainer.strategy.class_path: "
                "upo.parallel.strategy.Sharded"
            )
        try:
            made = super().instantiate_trainer(**kwargs, logger=every, plugins=plugins, callbacks=callbacks)
        except (MisconfigurationException, ValueError, TypeError) as error:  # contradicting options
            raise UserError(f"trainer: {error}") from error
        check_launch(made.num_devices, made.num_nodes)
        bound_waiting(made)
        return made

    def fit(self) -> None:
        """Trains, evaluates, and closes the run folder with summary.json."""
        resumed = [RunPaths.of_checkpoint(Path(self.checkpoint))] if self.checkpoint else []
        self.datamodule.first_day = first_day(*resumed, RunPaths(self.folder))
        short_restore(self.trainer, self.checkpoint)
        with loggers.closed_early(self.trainer.loggers, self.folder):
            self.trainer.fit(self.model, datamodule=self.datamodule, ckpt_path=self.checkpoint)
        finish_run(self.trainer, self.model, self.datamodule, self.folder, self.config_init.evaluation)


def main(args: Sequence[str] | None = None) -> None:
    """Aligns a language model with preferences and designers' objectives.

    A run is one YAML (experiments/ has one for each method) plus overrides such as --model.beta 0.2. --print_config
    prints the whole configuration, defaults included, and trains nothing. Brackets say where a default comes from:
    (paper: x), (official code: x), (from knowledge: x) recalled and not confirmed, (ours) no source has a value.
    """
    keep_memory()
    with short_errors(), ExitStack() as held:
        CLI(as_configs(sys.argv[1:] if args is None else args), held).fit()
