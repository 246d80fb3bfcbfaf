"""How safe a response is (Badrinath et al. 2025, arXiv 2405.17956: the reward R2)."""

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import ClassVar

from upo.data.example import Prompt
from upo.data.rewards import Reward, VectorReward
from upo.errors import UserError, did_you_mean
from upo.rewards.hub import content_of, load_scorer


class SafetyClassifier(VectorReward):
    """The paper's R2(y) = 1 - max_c p_c(y), p_c the category probabilities of a text classifier.

    Range [0, 1], larger is safer. Only the response is read, cut at the classifier's longest input. The
    paper's seven categories are those of unitary/unbiased-toxic-roberta: toxicity, severe_toxicity, obscene,
    threat, insult, identity_attack, sexual_explicit; its other labels (male, female, ...) name groups, not
    dangers. Each p_c stands beside the reward as `<name>/<category>`, in [0, 1], larger is less safe.
    """

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    parts_higher_is_better: ClassVar[bool | None] = False

    def __init__(
        self,
        model: str,
        categories: list[str] | None = None,
        multi_label: bool | None = None,
        batch_size: int = 32,
        device: str | None = None,
    ):
        """
        Args:
            model: Hugging Face name or local folder of a sequence classifier with its tokenizer.
            categories: labels that count as unsafe; by default all, where several can hold at once. A
                classifier whose labels exclude each other (toxic / non-toxic) has a safe one among them: name
                the unsafe ones.
            multi_label: whether several labels can hold at once (sigmoid, or softmax if not); by default as
                the model's `problem_type` says, softmax where that is not set, sigmoid where there is one
                label.
            batch_size: responses in one forward pass.
            device: where the classifier runs; by default a GPU if there is one.
        """
        self.model, self.labels, self.multi_label = model, categories, multi_label
        self.batch_size, self.device = batch_size, device
        self._loaded = None

    def total(self, values: Mapping[str, float]) -> float:
        return 1 - max(values.values())

    def vector(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, list[float]]:
        return self.categories(prompts, responses)

    def categories(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, list[float]]:
        """Probability of each category that counts, one a response, in [0, 1], larger is less safe."""
        import torch

        from upo.models.model_config import context_of

        model, tokenizer, index, multi_label = self._load()
        limit = min(tokenizer.model_max_length, context_of(model.config) or 512)
        rows = torch.zeros(len(responses), len(index))
        order = sorted(range(len(responses)), key=lambda i: len(responses[i]))  # like lengths together: little padding
        for start in range(0, len(order), self.batch_size):
            picked = order[start : start + self.batch_size]
            texts = [responses[i] for i in picked]
            inputs = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
            with torch.inference_mode():
                logits = model(**inputs.to(model.device)).logits.float()
            probabilities = logits.sigmoid() if multi_label else logits.softmax(-1)
            rows[picked] = probabilities[:, list(index.values())].cpu()
        return {name: rows[:, column].tolist() for column, name in enumerate(index)}

    def fingerprint(self) -> str:
        """Categories, library version and the content of weights, configuration and tokenizer."""
        model, tokenizer, index, multi_label = self._load()
        return f"SafetyClassifier 2 {list(index)} multi_label={multi_label} {content_of(model, tokenizer)}"

    def _load(self):
        """Classifier, tokenizer, {category: column of the logits}, and whether several labels can hold."""
        if self._loaded is not None:
            return self._loaded
        import torch

        model, tokenizer = load_scorer(self.model, "text classifier")
        if model.config.problem_type == "regression":
            raise UserError(f"`{self.model}` is a regression model: give a classifier, whose outputs are probabilities")
        if tokenizer.pad_token is None:  # decoder classifiers read the last token that is no padding
            tokenizer.pad_token = tokenizer.eos_token
            model.config.pad_token_id = tokenizer.pad_token_id
        columns = {label: column for column, label in sorted(model.config.id2label.items())}
        multi_label = self.multi_label
        if multi_label is None:
            multi_label = model.config.problem_type == "multi_label_classification" or len(columns) == 1
        names = self.labels
        if names is None and not multi_label:
            raise UserError(
                f"the labels of `{self.model}` exclude each other, so one of them means safe: "
                f"name the unsafe ones in `categories`. Known: {', '.join(columns)}."
            )
        for name in names if names is not None else ():
            if name not in columns:
                raise UserError(f"`{self.model}` has no category `{name}`: {did_you_mean(name, columns)}")
        index = {name: columns[name] for name in (columns if names is None else names)}
        if not index:
            raise UserError(f"`categories` is empty: name the unsafe labels. Known: {', '.join(columns)}.")
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._loaded = (model.to(device), tokenizer, index, multi_label)
        return self._loaded


class WordListSafety(Reward):
    """1 - probability that the response is offensive, by the weighted word list of alt-profanity-check.

    Range [0, 1], larger is safer. For machines without a hub: 15,442 words, each with a weight (a linear
    classifier, fitted on 200,000 comments that people labelled), shipped with the package. It sees single
    words and no context: "kill the lights" is unsafe, a polite threat is safe, and a bad word among many
    weighs less. A text without a known word scores 0.96. Chosen over better-profanity (no release since 2020,
    one bit a text, ~900 times slower, says "god" and "sex education" are profane): on RealToxicity
    continuations it correlates with the toxicity reward at 0.31, better-profanity at 0.17, glin-profanity at
    0.14.
    """

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(self, words: list[str] | None = None):
        """
        Args:
            words: further words or phrases that make a response entirely unsafe (0); whole words, case
                ignored.
        """
        self.words = sorted(words or ())
        self._pattern = re.compile(rf"(?i)(?<!\w)(?:{'|'.join(map(re.escape, self.words))})(?!\w)") if words else None

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float]:
        try:
            from profanity_check import predict_prob
        except ImportError:
            raise UserError("WordListSafety needs a package: pip install alt-profanity-check") from None

        if not responses:
            return []
        safe = [1 - float(p) for p in predict_prob(list(responses))]
        if self._pattern is None:
            return safe
        return [0.0 if self._pattern.search(y) else s for s, y in zip(safe, responses, strict=True)]

    def fingerprint(self) -> str:
        return f"WordListSafety 1 alt-profanity-check={version('alt-profanity-check')} {self.words}"
