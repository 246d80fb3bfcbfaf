"""Policy: a causal language model whose forward returns response log-probs, never logits."""

import copy
import warnings
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from upo.data.layout import Responses
from upo.data.repad import padded
from upo.errors import UserError
from upo.models import quantization
from upo.models.adapters import TRAINED, SavesAdapterOnly
from upo.models.head import Head, grow
from upo.models.hidden_states import hidden_states
from upo.models.loading import base_hash, new_model, read_model
from upo.models.logps import DIVERGENCES
from upo.models.lora import LoRA
from upo.models.model_config import context_of, folder_files, new_config, read_config, stopping, without_dropout
from upo.models.self_check import check_layouts
from upo.models.vocabulary import check_embeddings, check_shared
from upo.models.writes_text import WritesText
from upo.ops import linear_logps, prefix_attention
from upo.ops.linear_head import LinearHead
from upo.ops.linear_kl import linear_kl

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Policy(SavesAdapterOnly, WritesText):
    """A causal LM with its tokenizer; `build` loads the weights, so that a config can be checked without them."""

    model: "PreTrainedModel"
    packable: int | None
    """How long a prompt and its response may be in the packed layout, in tokens; None for any length."""
    reshards: bool = True
    """Whether a strategy that shards it frees a layer's weights after the layer's forward pass."""
    provides: ClassVar[frozenset[str]] = frozenset(
        {"logps", *linear_logps.NAMES, *DIVERGENCES, "hidden", "layers", "prompt_hidden", "prompt_mean"}
    )
    """Quantities that `forward` can compute, by their names in `upo.models.logps.AXIS`."""
    instead: ClassVar[str] = "take another method"
    """Advice in the error about a quantity that is not provided."""

    def __init__(
        self,
        path: str | None = None,
        config: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        dtype: Literal["float32", "bfloat16", "float64"] = "float32",
        adapter: LoRA | None = None,
        quantization: Literal["nf4"] | None = None,
        activation_checkpointing: bool = False,
        chat_template: str | None = None,
        template_options: dict[str, Any] | None = None,
        preformatted: bool = False,
    ):
        """
        Args:
            path: hub name or local folder of a causal LM; null makes a model with random weights from `config`.
            config: a transformers config as a dictionary with `model_type`, for a model from scratch.
            tokenizer: hub name, folder, or import path of a function that returns one; by default the one at `path`.
            dtype: of the parameters. Log-probs are computed in float32 or float64 in any case.
            adapter: train this adapter only, and save only it in checkpoints; null trains all weights.
            quantization: nf4 keeps the weights below an adapter in 4 bits (QLoRA) and computes in `dtype`.
            activation_checkpointing: compute layers again in the backward pass: much less memory, a third more time.
            chat_template: how conversations are written: `halos` (as ContextualAI/archangel_* expect it) or a .jinja
                file; null: the tokenizer's own or, where it has none, Anthropic HH's format.
            template_options: variables that the chat template reads, e.g. {enable_thinking: false}, in data, sampling
                and evaluation. `strftime_now: 2026-11-30` is the date that a template writes as today's, by default the
                day on which the run first started. Null: those that the tokenizer was saved with.
            preformatted: text prompts (no conversations) and their responses are written in the model's format already:
                special tokens that they spell out are tokens. By default they are read as text.
        """
        super().__init__()
        if (path is None) == (config is None):
            raise UserError("give either policy.path (a trained model) or policy.config (a model from scratch)")
        if path is None and tokenizer is None:
            raise UserError("a model from scratch needs policy.tokenizer: a hub name, a folder or an import path")
        if quantization and (adapter is None or path is None):
            raise UserError("policy.quantization needs policy.path and policy.adapter: 4-bit weights cannot be trained")
        self.path, self.config, self.tokenizer_path = path, config, str(tokenizer or path)
        self.dtype, self.adapter, self.quantization = getattr(torch, dtype), adapter, quantization
        self.activation_checkpointing = activation_checkpointing
        options = {"template_options": template_options, "preformatted": preformatted}
        self.text = {"chat_template": chat_template} | options

    @cached_property
    def model_config(self) -> "PretrainedConfig":
        """The transformers config, with dropout off."""
        if self.path is not None:
            return without_dropout(read_config(self.path))
        return without_dropout(new_config(self.config or {}, self.tokenizer))

    @property
    def context(self) -> int | None:
        """The longest sequence that the model has positions for, in tokens; None: unknown."""
        return context_of(self.model_config)

    def build(self) -> None:
        """Loads or initialises the weights at `path`, or from `config`."""
        config, options = self.model_config, {"dtype": self.dtype} | quantization.reading(self.quantization, self.dtype)
        if self.path is None or torch.get_default_device().type == "meta":  # the weights come from another rank
            model = new_model(config, **options)
        else:
            model = read_model(self.path, config, **options)
            if self.adapter is not None:
                self.base_sha256 = base_hash(model)
        if self.controls:
            grow(model, len(self.tokenizer))
        if self.adapter is not None:
            self.adapter.attach(model, self.path, grown=bool(self.controls))
        self.adopt(model)

    def adopt(self, model: "PreTrainedModel") -> None:
        """Sets a loaded model: dropout off, packed attention where supported, and checks that log-probs will be right.

        Raises:
            UserError: more tokens than embeddings, logits that `Head` cannot reproduce, or tokens that see later ones.
        """
        own_attention = model.config.get_text_config()._attn_implementation
        if model._supports_attention_backend:
            prefix_attention.register()
            model.set_attn_implementation(prefix_attention.NAME)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if self.activation_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model = model
        check_embeddings(model, self.tokenizer, f"{self.tokenizer_path} (policy.tokenizer)")
        self.packable = prefix_attention.longest(model)
        if model.device.type != "meta":  # there are no weights to try; the rank that has them says what it found
            name = self.path or "policy.config"
            try:
                self.head = Head.of(model, name)
            except prefix_attention.UnknownAttention:
                model.set_attn_implementation(own_attention)
                self.head = Head.of(model, name)
            self.packable = check_layouts(model, name)

    @property
    def hidden_size(self) -> int:
        return self.model.get_input_embeddings().weight.shape[1]

    def like(self, path: str, dtype: str | None = None) -> "Policy":
        """Another model, not built yet, that reads and writes text as this one does; by default in its dtype.

        Raises:
            UserError: it has another vocabulary.
        """
        if path not in (self.path, self.tokenizer_path):
            check_shared(self.tokenizer, path, self.model_config.get_text_config().vocab_size)
        dtype = dtype or str(self.dtype).removeprefix("torch.")
        return Policy(path, tokenizer=self.tokenizer_path, dtype=dtype, **self.text)  # type: ignore[arg-type]

    def with_model(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase | None" = None) -> "Policy":
        """A policy with all settings of this one and other weights, which are in memory already.

        Args:
            tokenizer: the model's own; by default this policy's.
        """
        tokenizer = self.tokenizer if tokenizer is None else tokenizer
        # deepcopy uses these instead of copies of this policy's own, so that no weights are copied.
        other = copy.deepcopy(self, {id(self.model): model, id(self.tokenizer): tokenizer})
        other.adopt(model)
        return other

    def frozen_copy(self) -> "Policy":
        """A copy without gradients: the usual reference."""
        return copy.deepcopy(self).requires_grad_(False).eval()

    @property
    def holder(self) -> "Policy":
        """The policy whose weights strategies shard and move: this one, or one that it shares weights with."""
        return self

    def active(self) -> AbstractContextManager:
        """Context in which `model` computes this policy: several policies may share one, with different adapters."""
        return nullcontext()

    def weights(self) -> dict[str, Tensor]:
        """All tensors that this policy's log-probs depend on, by name."""
        return self.model.state_dict()

    def forward(
        self,
        responses: Responses,
        outputs: Collection[str] = (),
        reference: tuple[Tensor, LinearHead] | None = None,
    ) -> dict[str, Tensor]:
        """Log-probs of responses.

        Args:
            outputs: further quantities to return. By response token [tokens], in the order of `responses.targets`:
                `token_logps`, `entropy`, `top_logp`, `sum_p2` (see `linear_values`), `kl` (KL(reference || policy) over
                the whole vocabulary) and `reverse_kl` (KL(policy || reference)), all with gradients; `hidden`
                [tokens, D] and `layers` [tokens, L, D], the states that predict the token, of the last and of every
                layer. By prompt [B, D]: `prompt_hidden`, the last layer's state at the prompt's last token, and
                `prompt_mean`, the mean of its states over all tokens of the prompt.
            reference: for `kl` and `reverse_kl` the reference's `hidden` and `linear_head()`.

        Returns:
            `logps` [N], in nats, summed over each response; and the outputs by name.
        """
        longest = self.packable
        if responses.layout == "packed" and longest is not None and responses.position_ids.max() >= longest:
            warnings.warn(
                f"the packed layout is right for this {self.model.config.model_type} up to {longest} tokens; "
                "what is longer is padded"
            )
            responses = padded(responses)
        layers = hidden_states(self.model, responses, every="layers" in outputs)
        hidden = layers[-1]
        head = self.linear_head()
        states = hidden[responses.logit_positions].to(head.weight.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            names = {"token_logps"} | (set(linear_logps.NAMES) & set(outputs))
            out = linear_logps.linear_values(states, head, responses.targets, sorted(names))
            for name in {"kl", "reverse_kl"} & set(outputs):
                if reference is None:
                    raise UserError(f"{name} is a divergence from a reference; set model.reference: FrozenReference")
                out[name] = linear_kl(states, head, *reference, reverse=name == "reverse_kl")
        sums = out["token_logps"].new_zeros(len(responses.lengths))
        logps = sums.index_add(0, responses.response_index, out["token_logps"])
        known = {
            "hidden": lambda: states,
            "layers": lambda: torch.stack([x[responses.logit_positions] for x in layers[:-1]], 1),
            "prompt_hidden": lambda: hidden[responses.prompt_end],
            "prompt_mean": lambda: responses.prompt_means(hidden),
        }
        return {"logps": logps} | {name: out[name] if name in out else known[name]() for name in outputs}

    def linear_head(self) -> LinearHead:
        """The output head with its present weights, in the dtype to compute in."""
        device = self.model.device.type
        autocast = torch.is_autocast_enabled(device)
        return self.head.read(self.model, torch.get_autocast_dtype(device) if autocast else self.model.dtype)

    def files(self) -> dict[str, bytes]:
        """The files of a Hugging Face folder except the weights, by name: with them a checkpoint is self-contained."""
        adapter = None if self.adapter is None else self.model.peft_config[TRAINED]
        generation = stopping(self.model.generation_config, self.tokenizer)
        return folder_files(self.model.config, generation, adapter, self.tokenizer)
