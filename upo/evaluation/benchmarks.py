"""Benchmarks by lm-evaluation-harness where it is installed: what alignment costs elsewhere."""

import copy
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from upo.errors import UserError

if TYPE_CHECKING:
    from upo.models.policy import Policy


def check_harness() -> None:
    """Raises a `UserError` where the harness is missing."""
    if find_spec("lm_eval") is None:
        raise UserError("tasks need lm-evaluation-harness: pip install lm-eval, or leave `tasks` out")


def benchmark(policy: "Policy", tasks: Sequence[str], seed: int = 0) -> dict[str, float]:
    """Runs tasks of the harness on the policy, exported as a Hugging Face folder.

    Args:
        tasks: names that the harness knows, e.g. `arc_easy`.
        seed: of its few-shot examples and bootstraps.

    Returns:
        `tasks/<task>/<metric>`, and `..._se` where the harness gives a standard error.

    Raises:
        UserError: no harness, or a task that it does not know.
    """
    check_harness()
    import lm_eval

    from upo.models.merged_adapter import merged

    with tempfile.TemporaryDirectory() as folder:
        model = policy.model if policy.adapter is None else merged(copy.deepcopy(policy.model))
        model.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
        seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed)
        device = str(next(policy.parameters()).device)
        options = {"pretrained": folder, "dtype": str(policy.dtype).removeprefix("torch."), "trust_remote_code": False}
        try:
            found = lm_eval.simple_evaluate(
                model="hf", model_args=options, tasks=list(tasks), device=device, batch_size="auto", **seeds
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
