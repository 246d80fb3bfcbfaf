"""Benchmarks by lm-evaluation-harness where it is installed: what alignment costs elsewhere."""

import copy
import difflib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch.distributed.fsdp import FSDPModule

from upo.errors import UserError

if TYPE_CHECKING:
    from upo.models.policy import Policy

NEAR = 5
"""Names that are offered in place of one that the harness does not know."""


@dataclass
class Harness:
    """Options of lm-evaluation-harness, named as there."""

    include_path: Path | None = None
    """Folder with tasks of one's own, a YAML each; they may name code."""
    num_fewshot: NonNegativeInt | None = None
    """Number of solved examples in front of each question; null: what each task says."""
    limit: PositiveInt | None = None
    """Number of questions of each task that are asked, the first ones; null: all. Fewer are for a try."""
    apply_chat_template: bool = False
    """Whether questions are put as a user's turn, by the policy's chat template."""

    def check(self, tasks: Sequence[str]) -> None:
        """Makes the tasks, their data included, so that what is wrong with them is known before a run.

        Raises:
            UserError: no harness, a name that it does not know, or data that cannot be read.
        """
        if find_spec("lm_eval") is None:
            raise UserError(
                "tasks need lm-evaluation-harness: pip install lm-eval (or upo's extra `eval`), or leave `tasks` out"
            )
        from lightning.pytorch.utilities.seed import isolate_rng

        with isolate_rng():  # a run's random numbers do not depend on its benchmarks
            manager = self.manager()
            for task in tasks:
                try:
                    manager.load([task])
                except Exception as error:  # whatever a task, the hub or a reader of files raises
                    raise UserError(self._wrong(task, manager.all_tasks, error)) from error

    def manager(self) -> Any:
        """The harness's index of all tasks."""
        from lm_eval.tasks import TaskManager

        if self.include_path is not None and not self.include_path.is_dir():
            raise UserError(f"harness.include_path: no such folder {self.include_path}")
        return TaskManager(include_path=self.include_path and str(self.include_path))

    def options(self) -> dict[str, Any]:
        """How tasks are run."""
        return {
            "num_fewshot": self.num_fewshot,
            "limit": self.limit,
            "apply_chat_template": self.apply_chat_template,
        }

    def settings(self) -> dict[str, Any]:
        """All of it in plain types."""
        return self.options() | {"include_path": self.include_path and str(self.include_path)}

    def _wrong(self, task: str, known: Sequence[str], error: Exception) -> str:
        if task in known or Path(task).is_file():
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return f"lm-evaluation-harness cannot read the data of the task {task}, or make it ({reason})"
        near = difflib.get_close_matches(task, known, NEAR, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        where = "" if self.include_path is None else f", nor does {self.include_path}"
        return f"lm-evaluation-harness knows no task `{task}`{where}; {hint}`lm-eval ls tasks` lists all"


def benchmark(
    policy: "Policy", tasks: Sequence[str], harness: Harness, seed: int = 0, run: Path | None = None
) -> dict[str, float]:
    """Runs tasks of the harness on the policy, exported as a Hugging Face folder.

    Args:
        tasks: names that the harness knows, e.g. `arc_easy`.
        seed: of its few-shot examples and bootstraps.
        run: folder of its run, whose newest checkpoint is taken where the policy is in shards.

    Returns:
        `tasks/<task>/<metric>`, and `..._se` where the harness gives a standard error.

    Raises:
        UserError: tasks that do not fit the policy or one another.
    """
    import lm_eval

    from upo.models.export import export
    from upo.models.merged_adapter import merged

    with tempfile.TemporaryDirectory() as folder:
        if run is not None and isinstance(policy, FSDPModule):
            export(run, Path(folder), overwrite=True, merge=policy.adapter is not None)
        else:
            model = policy.model if policy.adapter is None else merged(copy.deepcopy(policy.model))
            model.save_pretrained(folder)
            policy.tokenizer.save_pretrained(folder)
        seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed)
        device = str(next(policy.parameters()).device)
        loading = {"pretrained": folder, "dtype": str(policy.dtype).removeprefix("torch."), "trust_remote_code": False}
        try:
            found = lm_eval.simple_evaluate(
                model="hf",
                model_args=loading,
                tasks=list(tasks),
                task_manager=harness.manager(),
                device=device,
                batch_size="auto",
                **harness.options(),
                **seeds,
            )
        except (KeyError, ValueError) as error:
            raise UserError(f"lm-evaluation-harness refuses {', '.join(tasks)}: {error}") from error
    figures: dict[str, float] = {}
    for task, results in found["results"].items():
        for name, value in results.items():
            metric, _, kept = name.partition(",")
            if isinstance(value, int | float) and kept:
                title = f"{metric.removesuffix('_stderr')}{'' if kept == 'none' else f'_{kept}'}"
                figures[f"tasks/{task}/{title}{'_se' if metric.endswith('_stderr') else ''}"] = float(value)
    return figures
