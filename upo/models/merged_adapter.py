"""Merging: adapters are added to the weights below them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from upo.errors import UserError
from upo.models.adapters import TRAINED, parts
from upo.models.checkpoint import model_from

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def merged(model: "PreTrainedModel") -> "PreTrainedModel":
    """Adds the trained adapter to the weights of `model`, in place, and removes all of peft's modules.

    Tied input and output embeddings are untied if an adapter has changed one of them.

    Raises:
        UserError: the adapter has repeated layers of the model.
    """
    if model.peft_config[TRAINED].layer_replication:
        raise UserError(
            "the adapter repeats layers, which share their weights and cannot be merged; keep it an adapter"
        )
    peft_modules = set(parts(model))
    by_name = {name: module for name, module in model.named_modules() if module in peft_modules}
    if peft_modules & {model.get_input_embeddings(), model.get_output_embeddings()}:
        untie(model)
    for name, module in by_name.items():
        if hasattr(module, "original_module"):
            plain = module.modules_to_save[TRAINED]
        else:
            module.merge(safe_merge=True, adapter_names=[TRAINED])
            plain = module.get_base_layer()
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, plain)
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
    """Log-probs of random tokens [tokens - 1], in nats, to measure how far two models are apart."""
    import torch

    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None].to(model.device))[:, 0].cpu()


def merged_from(content: dict[str, Any], file: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Model and tokenizer of an adapter run's checkpoint, merged; prints by how much merging changes log-probs."""
    model, tokenizer = model_from(content, file)
    before = probe(model)
    if getattr(model.config, "quantization_config", None) is not None:
        model, tokenizer = model_from(content, file, exact=True)
    gap = (probe(merged(model)) - before).abs()
    print(f"merging changes log-probs by {gap.mean():.2g} nats per token on average, at most {gap.max():.2g}")
    return model, tokenizer
