"""The machine's own limit: needed operations (upo.runtime.flops) by the matrix rate of the model's own shapes.

In the padded twin a prompt is needed once for each response. A backward pass costs twice its forward pass; a live
reference once more.
"""

import statistics
import time
from collections.abc import Iterator

from upo.bench.model import config
from upo.bench.work import Work, rows
from upo.runtime.flops import Cost


def matrices(work: Work) -> Iterator[tuple[int, int, int]]:
    """(columns in, columns out, how many) of the weights of all layers."""
    c = config(work.model, work.vocabulary)
    width, inner, layers = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"]
    keys = width // c["num_attention_heads"] * c["num_key_value_heads"]
    yield from ((width, width, 2 * layers), (width, keys, 2 * layers), (width, inner, 3 * layers))


def head_gradient(work: Work) -> int:
    """Bytes of the gradient of the head's weights."""
    return work.vocabulary * config(work.model, work.vocabulary)["hidden_size"] * (4 if work.dtype == "float32" else 2)


def needed(work: Work, forwards: int) -> float:
    """Floating point operations a pair, on average over the rows.

    Args:
        forwards: passes in units of one forward: 3 with the backward pass, 4 with a live reference.
    """
    c = config(work.model, work.vocabulary)
    width = c["hidden_size"]
    weights = sum(a * b * n for a, b, n in matrices(work))
    cost = Cost(weights, 2 * width * c["num_hidden_layers"], width * work.vocabulary)
    total, made = 0.0, rows(work, work.pairs * work.steps)
    for prompt, responses in made:  # EOS is a target, never an input
        copies = len(responses) if work.layout == "padded" else 1
        total += cost.forward(len(prompt), [len(r) for r in responses], copies)
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
        times, out = [], torch.empty(tokens, b, device=work.device, dtype=x.dtype)  # no new memory while the clock runs
        for _ in range(repeats + 1):
            start = time.perf_counter()
            torch.mm(x, w.T, out=out)
            if work.device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        seconds += n * statistics.median(times[1:])
        operations += 2 * tokens * a * b * n
    return operations / seconds
