"""A scalar reward model of Hugging Face, such as those trained on preferences (Bradley-Terry)."""

from collections.abc import Sequence
from typing import Any

from upo.data.example import Message, Prompt
from upo.data.rewards import Reward
from upo.data.templates import apply_template
from upo.errors import UserError
from upo.rewards.hub import content_of, load_scorer


class HuggingFaceReward(Reward):
    """The one output of a reward model for prompt and response together.

    Range: all real numbers; unit: the model's own, for models trained on preferences nats of log-odds, comparable
    between responses to one prompt only. Larger is better. The text is the tokenizer's chat template where it has one
    (a plain prompt becomes a user's turn); otherwise two segments, prompt and response, where the tokenizer has a
    separator for them, and the response right behind the prompt where not. What is too long is cut on the left. Put it
    into a `Mixture` with `normalize` before it meets rewards in [0, 1].
    """

    def __init__(
        self,
        model: str,
        batch_size: int = 8,
        max_length: int | None = None,
        device: str | None = None,
    ):
        """
        Args:
            model: Hugging Face name or local folder of a sequence classifier with one label, with its tokenizer.
            batch_size: responses in one forward pass; changes speed and memory only.
            max_length: tokens of prompt and response together; by default the model's context.
            device: where the model runs; by default a GPU if there is one.
        """
        self.model, self.batch_size, self.max_length, self.device = model, batch_size, max_length, device
        self._loaded: tuple[Any, Any] | None = None

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        import torch

        model, tokenizer = self._load()
        rows = [self._encode(tokenizer, x, y) for x, y in zip(prompts, responses, strict=True)]
        values = torch.zeros(len(rows), dtype=torch.float64)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))  # like lengths together
        for start in range(0, len(order), self.batch_size):
            picked = order[start : start + self.batch_size]
            inputs = self._padded([rows[i] for i in picked], model)
            with torch.inference_mode():
                values[picked] = model(**inputs).logits[:, 0].double().cpu()
        return values.tolist()

    def _encode(self, tokenizer: Any, prompt: Prompt, response: str) -> dict[str, list[int]]:
        limit = min(self.max_length or 10**9, self._context)
        cut = {"truncation": True, "max_length": limit, "return_attention_mask": True}
        if tokenizer.chat_template:
            text = apply_template(tokenizer, turns(prompt, response))
            return dict(tokenizer(text, add_special_tokens=False, **cut))
        before = prompt if isinstance(prompt, str) else "".join(f"{m['role']}: {m['content']}\n\n" for m in prompt)
        if tokenizer.sep_token is not None:
            return dict(tokenizer(before, response, **cut))
        return dict(tokenizer(before + response, **cut))

    def _padded(self, rows: list[dict[str, list[int]]], model: Any) -> dict[str, Any]:
        """Tensors, padded on the right.

        Decoders read their score at the last token that is not padding, by its id. One without a padding id reads the
        last token; it gets an id that none of these texts holds, so that a batch scores as each text alone.
        """
        import torch

        config = model.config.get_text_config()
        pad = self._pad
        if pad is None:
            used = {i for row in rows for i in row["input_ids"]}
            pad = config.pad_token_id = next(i for i in range(config.vocab_size) if i not in used)
        width = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": pad}
        return {
            name: torch.tensor([row[name] + [fill.get(name, 0)] * (width - len(row[name])) for row in rows]).to(
                model.device
            )
            for name in rows[0]
        }

    def fingerprint(self) -> str:
        """Library version and the content of weights, configuration and tokenizer."""
        tokenizer = self._load()[1]
        return f"HuggingFaceReward 1 max_length={self.max_length} {tokenizer.chat_template!r} {self._content}"

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is not None:
            return self._loaded
        import torch

        model, tokenizer = load_scorer(self.model, "reward model")
        if model.config.num_labels != 1:
            raise UserError(
                f"`{self.model}` has {model.config.num_labels} outputs, a reward model has one; "
                "for a classifier take SafetyClassifier"
            )
        self._content = content_of(model, tokenizer)  # before padding changes the configuration
        config = model.config.get_text_config()
        self._pad = config.pad_token_id
        self._context = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or 10**9)
        tokenizer.truncation_side = "left"
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._loaded = (model.to(device), tokenizer)
        return self._loaded


def turns(prompt: Prompt, response: str) -> list[Message]:
    """The conversation that the response completes; it continues a last turn of the assistant."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    if prompt[-1]["role"] == "assistant":
        return [*prompt[:-1], {"role": "assistant", "content": prompt[-1]["content"] + response}]
    return [*prompt, {"role": "assistant", "content": response}]
