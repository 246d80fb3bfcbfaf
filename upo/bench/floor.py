"""The machine's own limit: needed operations by the matrix rate of the model's own shapes.

Needed: each unique token once through the layers (a prompt once for all its responses, in the padded twin once for
each), attention by segments, the head where a response token is predicted; twice as much again for the backward pass;
once more for a live reference.
"""

import statistics
import time
from collections.abc import Iterator

from upo.bench.cases import Work, rows
from upo.bench.model import config


def matrices(work: Work) -> Iterator[tuple[int, int, int]]:
    """(columns in, columns out, how many) of the weights of all layers."""
    c = config(work.model, work.vocabulary)
    width, inner, layers = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"]
    keys = width // c["num_attention_heads"] * c["num_key_value_heads"]
    yield from ((width, width, 2 * layers), (width, keys, 2 * layers), (width, inner, 3 * layers))


def needed(work: Work, forwards: int) -> float:
    """Floating point operations a pair, on average over the rows.

    Args:
        forwards: passes in units of one forward: 3 with the backward pass, 4 with a live reference.
    """
    c = config(work.model, work.vocabulary)
    weights = sum(a * b * n for a, b, n in matrices(work))
    total, made = 0.0, rows(work, work.pairs * work.steps)
    for prompt, responses in made:
        p, bodies = len(prompt), [len(r) for r in responses]  # EOS is a target, never an input
        prompts = len(bodies) if work.layout == "padded" else 1
        scores = prompts * p * (p + 1) / 2 + sum(n * p + n * (n + 1) / 2 for n in bodies)
        total += 2 * weights * (prompts * p + sum(bodies))
        total += 4 * c["hidden_size"] * c["num_hidden_layers"] * scores
        total += 2 * c["hidden_size"] * work.vocabulary * sum(n + 1 for n in bodies)
    return forwards * total / len(made)


def rate(work: Work, tokens: int = 1024, repeats: int = 3) -> float:
    """Floating point operations a second of the layers' and the head's products, weighted as in the model."""
    import torch

    torch.set_num_threads(work.threads)
    width = config(work.model, work.vocabulary)["hidden_size"]
    operations, seconds = 0.0, 0.0
    for a, b, n in (*matrices(work), (width, work.vocabulary, 1)):
        x = torch.randn(tokens, a, device=work.device, dtype=getattr(torch, work.dtype))
        w = torch.randn(b, a, device=work.device, dtype=x.dtype)
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            x @ w.T
            if work.device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        seconds += n * statistics.median(times[1:])
        operations += 2 * tokens * a * b * n
    return operations / seconds
