"""Sampling by vLLM where it is installed and asked for: `sampling.py`'s distribution by other random numbers.

vLLM reads the model from a Hugging Face folder that is written for it, and draws from softmax(logits / temperature) cut
to its nucleus, as we do. Every response has a seed of its own, made of the seed, its prompt's place and its own, so
that batches do not matter and two models that sample with the same seed share their random numbers. Only where vLLM's
kernels round differently in another batch may a draw move.
"""

import gc
import hashlib
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from upo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Backend = Literal["transformers", "vllm"]
"""Who samples."""
Write = Callable[[Sequence[tuple[int, int]], list[list[int]]], list[list[int]]]
"""(prompt's place, response's number) of each row and the token ids of its prompt -> the new token ids."""
FORBIDDEN = -100.0
"""Added to the logits of tokens that are never drawn: the lowest bias that vLLM's interface knows."""


def check_vllm(backend: Backend) -> None:
    """Raises a `UserError` where vLLM is asked for and missing."""
    if backend == "vllm" and find_spec("vllm") is None:
        raise UserError("backend: vllm needs vLLM, which is not installed: pip install vllm, or leave `backend` out")


@contextmanager
def engine(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    stops: Collection[int],
    never: Sequence[int],
    longest: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> Iterator[Write]:
    """vLLM with the model's weights as they are now; leave the accelerator to it while it works.

    Args:
        stops: tokens of which each ends a response; nothing else does.
        never: tokens that are not drawn.
        longest: tokens of the longest prompt: a model's whole context may ask for more cache than a device has.

    Raises:
        UserError: vLLM is missing, or the model has an adapter.
    """
    check_vllm("vllm")
    if hasattr(model, "peft_config"):
        raise UserError(
            "backend: vllm reads whole models; merge the adapter first: python -m upo.export RUN FOLDER --merge"
        )
    import torch
    from vllm import LLM, SamplingParams

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        dtype = str(model.dtype).removeprefix("torch.")
        gc.collect()
        torch.cuda.empty_cache()  # vLLM asks for nine tenths of the device, and does not find what torch has kept
        # "vllm": without the habits of the model's generation config (penalties, temperatures)
        context = longest + max_new_tokens
        options = {"generation_config": "vllm", "max_model_len": context, "trust_remote_code": False}
        llm = LLM(model=folder, dtype=dtype, seed=seed, **options)

        def write(rows: Sequence[tuple[int, int]], prompts: list[list[int]]) -> list[list[int]]:
            settings = [
                SamplingParams(
                    n=1,
                    temperature=temperature,
                    top_p=top_p,
                    max_tokens=max_new_tokens,
                    seed=row_seed(seed, *row),
                    stop_token_ids=sorted(stops),
                    ignore_eos=True,  # what the folder calls EOS, if it is none of ours
                    logit_bias=dict.fromkeys(never, FORBIDDEN) or None,
                    detokenize=False,
                )
                for row in rows
            ]
            asked = [{"prompt_token_ids": ids} for ids in prompts]
            found = [out.outputs[0] for out in llm.generate(asked, settings, use_tqdm=False)]
            return [_closed(x, tokenizer.eos_token_id, stops) for x in found]  # type: ignore[arg-type]

        try:
            yield write
        finally:
            del llm, write
            gc.collect()
            torch.cuda.empty_cache()


def row_seed(seed: int, prompt: int, response: int) -> int:
    """The seed of one response, in [0, 2^31)."""
    text = f"{seed} {prompt} {response}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4]) >> 1


def _closed(output: Any, eos: int, stops: Collection[int]) -> list[int]:
    """Token ids with the one at which vLLM stopped, whether it returns that or not."""
    ids = list(output.token_ids)
    if output.finish_reason != "stop" or (ids and ids[-1] in stops):
        return ids
    return [*ids, output.stop_reason if isinstance(output.stop_reason, int) else eos]
