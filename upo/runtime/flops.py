"""Needed operations of a model on its data, and the rate at which GPUs can do them.

Needed: each unique token once through the layers (a prompt once for all its responses), attention by segments, the head
where a response token is predicted; a backward pass costs twice its forward pass.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import frozen
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from upo.data.layout import Responses


@frozen
class Cost:
    """Multiplications of one forward pass, by what they grow with."""

    weights: int
    """One token through all layers; of a mixture of experts through all experts, though few are used."""
    scores: int
    """One token that looks at one other, in all layers: width of the heads, for the score and for the value."""
    head: int
    """One predicted response token."""

    @classmethod
    def of(cls, model: "PreTrainedModel") -> "Cost":
        """What a causal LM costs; embeddings are looked up, not multiplied."""
        config = model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", 0)
        size = heads * (getattr(config, "head_dim", None) or config.hidden_size // max(1, heads))
        tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        body = sum(p.numel() for p in model.base_model.parameters() if p.dim() > 1 and id(p) not in tables)
        head: Tensor = model.get_output_embeddings().weight  # type: ignore[union-attr]
        return cls(body, 2 * size * config.num_hidden_layers, head.numel())

    def forward(self, prompt: int, responses: Sequence[int], copies: int = 1) -> int:
        """Floating point operations of one prompt and its responses: two a multiplication.

        Args:
            prompt: tokens.
            responses: input tokens of each; one more, the last, is predicted and never an input.
            copies: how often the prompt is computed (once a response in the padded layout).
        """
        seen = copies * prompt * (prompt + 1) // 2 + sum(n * prompt + n * (n + 1) // 2 for n in responses)
        tokens = copies * prompt + sum(responses)
        return 2 * (self.weights * tokens + self.scores * seen + self.head * sum(n + 1 for n in responses))

    def of_responses(self, responses: "Responses") -> int:
        """The same of a whole batch, whatever its layout: every prompt once."""
        bodies: list[list[int]] = [[] for _ in responses.prompt_end]
        for prompt, length in zip(responses.prompt_index.tolist(), responses.lengths.tolist(), strict=True):
            bodies[prompt].append(length - 1)
        return sum(self.forward(p, n) for p, n in zip(prompt_lengths(responses), bodies, strict=True))


def prompt_lengths(responses: "Responses") -> list[int]:
    """Tokens of each prompt."""
    return (responses.position_ids.flatten()[responses.prompt_end] + 1).tolist()


@frozen
class Gpu:
    """What a plan must know of a card; rates are those of the data sheets, dense."""

    named: str
    """Part of the name that its driver gives."""
    gib: float
    """Memory that a program can have."""
    rate: float
    """bf16 operations a second, without sparsity."""


GPUS = {
    "a10": Gpu("A10", 22.0, 125e12),
    "l4": Gpu("L4", 22.0, 121e12),
    "rtx3090": Gpu("RTX 3090", 23.6, 71e12),
    "rtx4090": Gpu("RTX 4090", 23.5, 165e12),
    "a100-40gb": Gpu("A100", 39.4, 312e12),
    "l40s": Gpu("L40S", 44.4, 362e12),
    "a100-80gb": Gpu("A100", 79.2, 312e12),
    "h100-pcie": Gpu("H100 PCIe", 79.2, 756e12),
    "h100": Gpu("H100", 79.2, 989e12),
    "h200": Gpu("H200", 139.8, 989e12),
}


def rate_of(name: str) -> float | None:
    """bf16 operations a second of the card that a driver calls `name`; None for one that is not in the table."""
    found = [gpu for gpu in GPUS.values() if set(gpu.named.split()) <= set(name.replace("-", " ").split())]
    return max(found, key=lambda gpu: len(gpu.named)).rate if found else None
