"""Reads runs back as they were trained: method, data and evaluation, from the YAML in their folder."""

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upo.data.templates import inherit_options, options_in, options_of
from upo.errors import UserError
from upo.models.checkpoint import load_model, quiet
from upo.models.checkpoint_files import find_checkpoint, read_checkpoint
from upo.runtime.run_folder import RunPaths, Which

if TYPE_CHECKING:
    from upo.data.module import PreferenceData
    from upo.evaluation.evaluation import Evaluation
    from upo.methods.common.base import Method


def load_run(
    run: str | Path,
    config: Path | None = None,
    evaluation: dict[str, Any] | None = None,
    checkpoint: Which = "last",
    trust: bool = False,
) -> "tuple[Method, PreferenceData, Evaluation]":
    """A run as it was trained: method with trained weights and its reference, data (not read yet), evaluation.

    Args:
        run: run folder or .ckpt file; or, with `config`, any model that `load_model` knows: it becomes the policy.
        config: YAML with `model:` and `data:`; by default config.yaml in the run folder.
        evaluation: overrides fields of the configuration's `evaluation:`.
        checkpoint: which one of a run folder.
        trust: whether the configuration may name code outside of this package, PyTorch's optimizers and Lightning.

    Raises:
        UserError: no such run, one that is broken, or whose configuration names code.
    """
    import torch
    from lightning.pytorch.utilities.seed import isolate_rng

    from upo.models.loading import check_base, check_start

    run = Path(run)
    file = find_checkpoint(run, checkpoint)
    if config is None:
        config = (RunPaths.of_checkpoint(file) if file else RunPaths(run)).config
        if not config.is_file():
            what = f"{run} has no config.yaml; name the experiment's YAML with --config"
            raise UserError(what if run.exists() else f"no such run folder: {run}")
    quiet()
    method, data, settings = from_config(config, evaluation or {}, trust)
    with isolate_rng():
        torch.manual_seed(data.seed)  # random weights, if it starts from such, are those that it was trained from
        method.configure_model()
    if file is not None:
        content = read_checkpoint(file)
        inherit_options(method.policy.tokenizer, options_in(content["policy_files"]))
        check_base(content, method.policy.base_sha256, method.policy.path)
        check_start(content, method.reference and method.reference.start_sha256)
        try:
            for name, learned in content.get(type(data).__qualname__, {}).get("rewards", {}).items():
                if name in data.rewards:
                    data.rewards[name].restore(learned)
            method.load_state_dict(content["state_dict"])
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{file} does not fit the model of {config} ({reason})") from None
    else:
        model, tokenizer = load_model(run)
        if tokenizer.get_vocab() != method.policy.tokenizer.get_vocab():
            raise UserError(f"the tokenizer at {run} is not the one of {config}; set model.policy.tokenizer there")
        inherit_options(method.policy.tokenizer, options_of(tokenizer))
        method.policy = method.policy.with_model(model)  # an AdapterReference goes on with the model that it knows
    return method, data, settings


def from_config(config: Path, evaluation: dict[str, Any], trust: bool) -> "tuple[Method, PreferenceData, Evaluation]":
    """Method, data and evaluation of a YAML, as `upo.fit` makes them; everything else in it is left aside.

    Args:
        trust: as in `load_run`; what `evaluation` says is always trusted.
    """
    from jsonargparse import ArgumentError, ArgumentParser
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    import upo.methods
    import upo.rewards  # noqa: F401  both make short class names known
    from upo.data.module import PreferenceData
    from upo.evaluation.evaluation import Evaluation
    from upo.evaluation.foreign import check_foreign
    from upo.methods.common.base import Method
    from upo.runtime.class_paths import no_class, only_known, safe_parsing

    safe_parsing()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Method, "model")
    parser.add_class_arguments(PreferenceData, "data")
    parser.add_class_arguments(Evaluation, "evaluation")
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(config), resolve=True)
        parts = {"model": content["model"], "data": content["data"]}
        for name in ("optimizer", "scheduler"):  # nothing is trained here
            parts["model"].get("init_args", {}).pop(name, None)
        parts["data"].setdefault("seed", int(content.get("seed_everything") or 0))
        parts["evaluation"] = content.get("evaluation") or {}
        if not trust:
            with only_known(config):
                check_foreign(parser.parse_object(deepcopy(parts)), config)
        parts["evaluation"] = parts["evaluation"] | evaluation
        parsed = parser.parse_object(parts)
        if wrong := no_class(parsed):
            raise UserError(f"{config}: {wrong}")
        made = parser.instantiate_classes(parsed)
    except (OSError, LookupError, TypeError, ValueError, AttributeError, YAMLError, OmegaConfBaseException,
            ArgumentError) as error:  # fmt: skip
        raise UserError(f"{config} is no configuration of a run: {' '.join(str(error).split())[:300]}") from None
    return made.model, made.data, made.evaluation
