"""Questions to a Hugging Face chat model on this machine."""

from collections.abc import Iterator, Sequence

from upo.judges.answer import Answer
from upo.judges.base import CHUNK


class LocalChat:
    """Asks a model greedily, in batches; each question is a conversation's only turn.

    A question that leaves no room for an answer in the model's context gets an empty one: cut, it would ask another.
    """

    def __init__(self, model: str, *, max_tokens: int, batch_size: int):
        """
        Args:
            model: whatever `upo.models.checkpoint.load_model` knows: run folder, checkpoint, model folder or hub name.
        """
        import torch

        from upo.models.checkpoint import load_model

        loaded, self.tokenizer = load_model(model)
        self.model = loaded.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
        self.max_tokens, self.batch_size = max_tokens, batch_size

    def __call__(self, questions: Sequence[str]) -> Iterator[tuple[int, Answer]]:
        for start in range(0, len(questions), 2 * CHUNK):
            texts = self._ask(questions[start : start + 2 * CHUNK])
            yield from enumerate(map(Answer, texts), start)

    def _ask(self, questions: Sequence[str]) -> list[str]:
        from upo.data.tokenize import Encoder
        from upo.models.model_config import context_of
        from upo.rollout.sampling import sample

        turns = [({"role": "user", "content": question},) for question in questions]
        context = context_of(self.model.config) or float("inf")
        lengths = [len(ids) for ids in Encoder(self.tokenizer).prompts(turns)]
        fitting = [i for i, length in enumerate(lengths) if length + self.max_tokens <= context]
        written = sample(
            self.model,
            self.tokenizer,
            [turns[i] for i in fitting],
            max_new_tokens=self.max_tokens,
            temperature=0.0,
            batch_size=self.batch_size,
        )
        answers = [""] * len(questions)
        for i, group in zip(fitting, written, strict=True):
            answers[i] = group[0].text
        return answers
