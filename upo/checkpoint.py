"""Reads models back: from a run folder, a checkpoint, a Hugging Face folder or a hub name."""

import copy
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upo import four_bits
from upo.adapters import CONFIG
from upo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from upo.data.module import PreferenceData
    from upo.evaluate import Evaluation
    from upo.methods.base import Method

POLICY = "policy.model."
"""How the policy's weights are called in a checkpoint, before their own names."""


def load_model(path: str | Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Model and tokenizer, in eval mode on the CPU.

    Args:
        path: run folder (its newest checkpoint), .ckpt file or folder, Hugging Face folder, or hub name.

    Raises:
        UserError: nothing usable there.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet()
    if (file := find_checkpoint(Path(path))) is not None:
        return model_from(read_checkpoint(file), file)
    try:
        model = AutoModelForCausalLM.from_pretrained(str(path), dtype="auto")
        four_bits.keep_layout(model)
        return model.eval(), AutoTokenizer.from_pretrained(str(path))
    except (OSError, ValueError, KeyError) as error:  # the last one from a broken adapter
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"no model at `{path}`: no run folder, checkpoint, model folder or hub name ({reason})"
        ) from None


def quiet() -> None:
    """No progress bars of transformers in log files."""
    from transformers.utils.logging import disable_progress_bar

    if not sys.stderr.isatty():
        disable_progress_bar()


def find_checkpoint(path: Path) -> Path | None:
    """The checkpoint that a .ckpt path or a run folder means; None where `path` is neither.

    Raises:
        UserError: a run folder without a checkpoint, or no such .ckpt.
    """
    from upo.callbacks.checkpoint_io import latest

    if path.suffix == ".ckpt":
        if not path.exists():
            raise UserError(f"no such checkpoint: {path}")
        return path
    if not (path / "checkpoints").is_dir() and not (path / "config.yaml").is_file():
        return None
    if (newest := latest(path)) is None:
        raise UserError(f"{path} holds no checkpoint yet; train the run first: python -m upo.fit --config ...")
    return newest


def read_checkpoint(file: Path, mmap: bool = False) -> dict[str, Any]:
    """What a run saved: tensors and plain types only; of a sharded run all but the optimizer's states.

    Args:
        mmap: leave a file's tensors on the disk until they are used.

    Raises:
        UserError: broken, or not a checkpoint of this package.
    """
    import torch

    from upo.callbacks.checkpoint_io import read_folder

    try:
        if file.is_dir():
            content = read_folder(file, "state_dict")
        else:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # what a broken file makes the unpickler raise can be anything
        raise UserError(f"{file} is broken or no checkpoint ({type(error).__name__}); take another one") from error
    if not isinstance(content, dict) or not {"state_dict", "policy_files"} <= content.keys():
        raise UserError(f"{file} holds no policy: it was not written by upo.fit")
    return content


def model_from(
    content: dict[str, Any], file: Path, exact: bool = False
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Model and tokenizer out of a checkpoint's content; of a run that trained an adapter, with it on.

    Nothing else is needed, not even the model it started from, except below an adapter.

    Args:
        exact: below an adapter, 4-bit weights as the numbers that they stand for.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.initialization import no_init_weights

    from upo.adapter_files import policy_weights, with_adapter

    weights = policy_weights(content)
    if not weights:
        raise UserError(f"{file} holds no policy: it was not written by upo.fit")
    with policy_folder(content) as folder:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        try:
            if CONFIG in content["policy_files"]:
                model = with_adapter(content, folder, len(tokenizer), exact)
            else:
                with no_init_weights():  # memory that is never written to is never taken
                    model = AutoModelForCausalLM.from_config(config, dtype=next(iter(weights.values())).dtype)
                model.load_state_dict(weights, assign=True)
                model.tie_weights()
        except RuntimeError as error:
            raise UserError(f"{file}: weights and configuration do not fit ({str(error).splitlines()[0]})") from None
        if "generation_config.json" in content["policy_files"]:
            model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval(), tokenizer


@contextmanager
def policy_folder(content: dict[str, Any]) -> Iterator[str]:
    """A Hugging Face folder without weights, for as long as it is looked at: configuration and tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in content["policy_files"].items():
            (Path(folder) / name).write_bytes(data)
        yield folder


def load_run(
    run: str | Path, config: Path | None = None, evaluation: dict[str, Any] | None = None
) -> "tuple[Method, PreferenceData, Evaluation]":
    """A run as it was trained: method with trained weights and its reference, data (not read yet), evaluation.

    Args:
        run: run folder or .ckpt file; or, with `config`, any model that `load_model` knows: it becomes the policy.
        config: YAML with `model:` and `data:`; by default config.yaml in the run folder.
        evaluation: overrides fields of the configuration's `evaluation:`.
    """
    from upo.loading import check_base

    run = Path(run)
    file = find_checkpoint(run)
    if config is None:
        config = (file.parent.parent if file else run) / "config.yaml"
        if not config.is_file():
            what = f"{run} has no config.yaml; name the experiment's YAML with --config"
            raise UserError(what if run.exists() else f"no such run folder: {run}")
    quiet()
    method, data, settings = from_config(config, evaluation or {})
    method.configure_model()
    if file is not None:
        content = read_checkpoint(file)
        for name, learned in content.get(type(data).__qualname__, {}).get("rewards", {}).items():
            if name in data.rewards:
                data.rewards[name].restore(learned)
        check_base(content, method.policy.base, method.policy.path)
        try:
            method.load_state_dict(content["state_dict"])
        except RuntimeError as error:
            raise UserError(f"{file} does not fit the model of {config} ({str(error).splitlines()[0]})") from None
    else:
        model, tokenizer = load_model(run)
        if tokenizer.get_vocab() != method.policy.tokenizer.get_vocab():
            raise UserError(f"the tokenizer at {run} is not the one of {config}; set model.policy.tokenizer there")
        policy = copy.copy(method.policy)  # an AdapterReference goes on with the model that it knows
        policy._modules = dict(policy._modules)
        policy.adopt(model)
        method.policy = policy
    return method, data, settings


def from_config(config: Path, evaluation: dict[str, Any]) -> "tuple[Method, PreferenceData, Evaluation]":
    """Method, data and evaluation of a YAML, as `upo.fit` makes them; everything else in it is left aside."""
    from jsonargparse import ArgumentError, ArgumentParser
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    import upo.methods
    import upo.rewards  # noqa: F401  both make short class names known
    from upo.data.module import PreferenceData
    from upo.evaluate import Evaluation
    from upo.methods.base import Method

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
        parts["evaluation"] = (content.get("evaluation") or {}) | evaluation
        made = parser.instantiate_classes(parser.parse_object(parts))
    except (OSError, KeyError, TypeError, OmegaConfBaseException, ArgumentError) as error:
        raise UserError(f"{config} is no configuration of a run: {' '.join(str(error).split())[:300]}") from None
    return made.model, made.data, made.evaluation
