"""Reads models back: from a run folder, a checkpoint, a Hugging Face folder or a hub name."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from upo.errors import UserError, refuse_code
from upo.models import quantization
from upo.models.adapters import CONFIG, refuse_megatron
from upo.models.checkpoint_files import find_checkpoint, policy_folder, read_checkpoint
from upo.models.loading import check_whole
from upo.models.vocabulary import check_embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    refuse_megatron(Path(path))
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(path), dtype="auto", trust_remote_code=False, output_loading_info=True
        )
        quantization.keep_layout(model)
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except (OSError, ValueError, KeyError, SafetensorError) as error:  # KeyError from a broken adapter
        refuse_code(error, str(path))
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"no model at `{path}`: no run folder, checkpoint, model folder or hub name ({reason})"
        ) from None
    check_whole(model, info, str(path))
    check_embeddings(model, tokenizer, str(path))
    return model.eval(), tokenizer


def quiet() -> None:
    """No progress bars of transformers in log files."""
    from transformers.utils.logging import disable_progress_bar

    if not sys.stderr.isatty():
        disable_progress_bar()


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

    from upo.models.adapter_files import policy_weights, with_adapter

    weights = policy_weights(content)
    if not weights:
        raise UserError(f"{file} holds no policy: it was not written by upo.fit")
    with policy_folder(content) as folder:
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            if CONFIG in content["policy_files"]:
                model = with_adapter(content, folder, len(tokenizer), exact)
            else:
                dtype = next(iter(weights.values())).dtype
                with no_init_weights():  # memory that is never written to is never taken
                    model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
                model.load_state_dict(weights, assign=True)
                model.tie_weights()
            if "generation_config.json" in content["policy_files"]:
                model.generation_config = GenerationConfig.from_pretrained(folder)
        except UserError:
            raise
        except Exception as error:  # what broken files make transformers and tokenizers raise can be anything
            refuse_code(error, str(file))
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{file}: weights, configuration and tokenizer do not fit ({reason})") from None
    return model.eval(), tokenizer
