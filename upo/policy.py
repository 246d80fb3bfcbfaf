"""Policy: a causal language model whose forward returns response log-probs, never logits."""

import copy
import importlib
import json
import sys
import tempfile
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from upo.data.layout import Responses
from upo.errors import UserError
from upo.ops import prefix_attention
from upo.ops.linear_logps import linear_logps

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Policy(nn.Module):
    """A causal LM with its tokenizer. Weights are loaded by `build`, so that a config can be checked without them."""

    model: "PreTrainedModel"

    def __init__(
        self,
        path: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        dtype: Literal["float32", "bfloat16", "float64"] = "float32",
    ):
        """
        Args:
            path: hub name or local folder of a causal LM; null builds a model with random weights from `config`.
            config: a transformers config as a dictionary with `model_type`, for a model from scratch.
            tokenizer: hub name, local folder, or import path of a function that returns a tokenizer
                (`package.module.function`); by default the one at `path`.
            dtype: of the parameters. Log-probs are computed in float32 at least, whatever this says.
        """
        super().__init__()
        if (path is None) == (config is None):
            raise UserError("give either policy.path (a trained model) or policy.config (a model from scratch)")
        if path is None and tokenizer is None:
            raise UserError("a model from scratch needs policy.tokenizer: a hub name, a folder or an import path")
        self.path, self.config, self.tokenizer_path = path, config, tokenizer or path
        self.dtype = getattr(torch, dtype)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        name = str(self.tokenizer_path)
        module, _, function = name.rpartition(".")
        if module and "/" not in name and not Path(name).exists():
            try:
                return getattr(importlib.import_module(module), function)()
            except ModuleNotFoundError:
                pass  # a hub name with a dot in it
        from transformers import AutoTokenizer

        with _hub_errors(name, "tokenizer"):
            return AutoTokenizer.from_pretrained(name)

    @cached_property
    def model_config(self) -> "PretrainedConfig":
        """The transformers config, with dropout switched off: otherwise log-ratios would be noise."""
        from transformers import AutoConfig

        if self.path is not None:
            with _hub_errors(self.path, "model"):
                config = AutoConfig.from_pretrained(self.path)
        else:
            fields = {"vocab_size": len(self.tokenizer)} | (self.config or {})
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                fields.setdefault(name, getattr(self.tokenizer, name))
            try:
                config = AutoConfig.for_model(**fields)
            except (ValueError, TypeError) as error:
                raise UserError(f"policy.config: {error}") from None
        for name, value in config.to_dict().items():
            if ("dropout" in name or name.endswith("pdrop")) and isinstance(value, float):
                setattr(config, name, 0.0)
        return config

    @property
    def context(self) -> int | None:
        """Positions that the model has, in tokens."""
        return getattr(self.model_config, "max_position_embeddings", None)

    def build(self) -> None:
        """Loads or initialises the weights at `path`, or from `config`."""
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging as transformers_logging

        if not sys.stderr.isatty():
            transformers_logging.disable_progress_bar()
        config, options = self.model_config, {"dtype": self.dtype, "attn_implementation": "sdpa"}
        if self.path is None:
            try:
                model = AutoModelForCausalLM.from_config(config, **options)
            except ValueError as error:
                raise UserError(f"policy.config: {str(error).split('.')[0]}") from None
        else:
            with _hub_errors(self.path, "model"):
                model = AutoModelForCausalLM.from_pretrained(self.path, config=config, **options)
        self.adopt(model)

    def adopt(self, model: "PreTrainedModel") -> None:
        """Takes loaded weights: dropout off, packed attention on, and the checks that the log-probs rely on.

        Raises:
            UserError: more tokens than embeddings, or logits that are more than the output embeddings.
        """
        prefix_attention.register()
        model.set_attn_implementation(prefix_attention.NAME)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.model = model
        rows = model.get_input_embeddings().weight.shape[0]
        if len(self.tokenizer) > rows:
            raise UserError(
                f"the tokenizer {self.tokenizer_path} has {len(self.tokenizer)} tokens, "
                f"the model {self.path or 'config'} only {rows} embeddings; give policy.tokenizer and "
                "policy.path that belong together"
            )
        self._check_head()

    @torch.no_grad()
    def _check_head(self) -> None:
        """Log-probs come from the output embeddings alone, which some models scale or cap afterwards."""
        probe = torch.arange(2)[None]
        hidden = self.model.base_model(input_ids=probe, use_cache=False).last_hidden_state
        logits = self.model(input_ids=probe, use_cache=False).logits
        if not torch.allclose(self.model.get_output_embeddings()(hidden), logits, rtol=1e-3, atol=1e-3):
            raise UserError(
                f"{self.path or 'policy.config'}: {self.model.config.model_type} changes its logits behind the output "
                "embeddings (scaling, soft caps), which is not supported; take another model"
            )

    @property
    def packable(self) -> int | None:
        """How long a prompt and its response may be in the packed layout, in tokens; null for any length.

        The mask of that layout stands for plain attention: it is right up to a sliding window's length, and never for
        convolutions and recurrences, which do not ask it.
        """
        kinds = set(getattr(self.model_config, "layer_types", None) or ["full_attention", "sliding_attention"])
        if kinds - {"full_attention", "sliding_attention"}:
            return 0
        return getattr(self.model_config, "sliding_window", None) if "sliding_attention" in kinds else None

    @property
    def hidden_size(self) -> int:
        return self.model.get_input_embeddings().weight.shape[1]

    def frozen_copy(self) -> "Policy":
        """A copy that never learns: the usual reference."""
        twin = copy.deepcopy(self)
        return twin.requires_grad_(False).eval()

    def forward(self, responses: Responses, extras: Collection[str] = ()) -> dict[str, Tensor]:
        """Log-probs of responses.

        Args:
            extras: what else to return: `token_logps` [tokens] in the order of `responses.targets`,
                `prompt_hidden` [B, D], the last layer's state at each prompt's last token.

        Returns:
            `logps` [N], in nats, summed over each response; and the extras by name.

        Raises:
            UserError: the packed layout is not right for this model.
        """
        longest = self.packable
        if responses.layout == "packed" and longest is not None and responses.position_ids.max() >= longest:
            raise UserError(
                f"the packed layout is right for this {self.model.config.model_type} up to {longest} tokens only; "
                "set data.layout: padded"
            )
        hidden = self._hidden(responses)
        head = self.model.get_output_embeddings()
        if torch.is_autocast_enabled(hidden.device.type):
            compute = torch.get_autocast_dtype(hidden.device.type)
        else:
            compute = hidden.dtype
        with torch.autocast(hidden.device.type, enabled=False):
            bias = getattr(head, "bias", None)
            token_logps = linear_logps(
                hidden[responses.predict].to(compute),
                head.weight.to(compute),
                responses.targets,
                None if bias is None else bias.to(compute),
            )
        logps = token_logps.new_zeros(len(responses.lengths)).index_add(0, responses.row, token_logps)
        known = {"token_logps": lambda: token_logps, "prompt_hidden": lambda: hidden[responses.prompt_end]}
        return {"logps": logps} | {name: known[name]() for name in extras}

    def _hidden(self, responses: Responses) -> Tensor:
        """Last-layer states [R T, D]."""
        if responses.layout == "padded":
            return self.model.base_model(input_ids=responses.input_ids, use_cache=False).last_hidden_state.flatten(0, 1)
        plan = prefix_attention.segments(responses)
        body = self.model.base_model(
            input_ids=responses.input_ids,
            position_ids=responses.position_ids,
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=responses.input_ids.device),  # never read
            use_cache=False,
            segments=plan,
        )
        if not plan.calls:
            raise UserError(
                f"{self.model.config.model_type} has an attention of its own, which the packed layout cannot replace; "
                "set data.layout: padded"
            )
        return body.last_hidden_state.flatten(0, 1)

    def files(self) -> dict[str, bytes]:
        """Everything of a Hugging Face folder but the weights, by file name: makes a checkpoint self-contained."""
        with tempfile.TemporaryDirectory() as folder:
            self.model.config.save_pretrained(folder)
            if self.model.generation_config is not None:
                self.model.generation_config.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir()) if p.is_file()}


class _hub_errors:
    """Turns transformers' long reports about a missing or broken folder into one sentence."""

    def __init__(self, name: str, what: str):
        self.name, self.what = name, what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, _) -> None:
        if isinstance(error, OSError | ValueError | json.JSONDecodeError):
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(
                f"no {self.what} at `{self.name}`: neither a readable local folder nor a reachable hub name ({reason})"
            ) from None
