"""Adapters that become part of the weights below them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from upo.models.adapters import TRAINED, parts
from upo.models.checkpoint import model_from

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def merged(model: "PreTrainedModel") -> "PreTrainedModel":
    """The same model, changed in place: its adapter is part of the weights, and nothing of peft's is left.

    Embeddings and output head that share their weights get apart where an adapter has changed one of them.
    """
    added = set(parts(model))
    changed = {name: part for name, part in model.named_modules() if part in added}
    if added & {model.get_input_embeddings(), model.get_output_embeddings()}:
        untie(model)
    for name, part in changed.items():
        if hasattr(part, "original_module"):
            whole = part.modules_to_save[TRAINED]
        else:
            part.merge(safe_merge=True, adapter_names=[TRAINED])
            whole = part.get_base_layer()
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, whole)
    del model.peft_config
    model._hf_peft_config_loaded = False
    return model


def untie(model: "PreTrainedModel") -> None:
    """Gives the output head weights of its own."""
    from torch import nn

    head = model.get_output_embeddings()
    inner = head.get_base_layer() if hasattr(head, "get_base_layer") else getattr(head, "original_module", head)
    inner.weight = nn.Parameter(inner.weight.detach().clone(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


def probe(model: "PreTrainedModel", tokens: int = 64) -> "Tensor":
    """Log-probs of random tokens [tokens - 1], to tell how far two models are apart."""
    import torch

    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None].to(model.device))[:, 0].cpu()


def merged_from(content: dict[str, Any], file: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Model and tokenizer of an adapter run's checkpoint, merged; prints how far log-probs are from the run's own."""
    model, tokenizer = model_from(content, file)
    before = probe(model)
    if getattr(model.config, "quantization_config", None) is not None:
        model, tokenizer = model_from(content, file, exact=True)
    gap = (probe(merged(model)) - before).abs()
    print(f"merging moves log-probs by {gap.mean():.2g} nats per token, at most {gap.max():.2g}")
    return model, tokenizer
