"""What is measured: cases, the work in them, and what must be reached."""

from attrs import evolve, frozen

from upo.bench.floor import needed
from upo.bench.work import Work


@frozen
class Case:
    """Two jobs side by side; the ratio is `other`'s time (or memory) by `ours`."""

    name: str
    ours: Work
    other: Work
    at_least: float | None = None
    """Smallest speed ratio that passes."""
    at_most_memory: float | None = None
    """Largest peak memory above the resident model, as a share of the other's."""
    at_least_floor: float | None = None
    """Smallest fraction of the floor that passes."""
    starts: int = 1
    """How often both processes are started anew. One that got its memory in bad places stays 10 % slower to its end,
    which a target of a few percent cannot bear."""
    leave_out_head: bool = False
    """Memory is compared without the gradient of the head's weights, as large as the vocabulary whatever the code."""
    apart: bool = False
    """Each alone, started anew for every turn: two of them do not fit into the memory beside each other."""


def many_responses(k: int, prompt: int, response: int) -> Case:
    """K responses a prompt against the padded twin, at about 3,000 padded tokens a step.

    The ideal is the ratio of needed operations. By tokens it would be K (P + R) / (P + K R), but the head runs where a
    response token is predicted in both layouts, so that sharing prompts cannot save there.
    """
    pairs = max(1, round(3072 / (k * (prompt + response))))
    ours = Work("forward", prompt=prompt, response=response, responses=k, pairs=pairs)
    padded = evolve(ours, layout="padded")
    share = f"{prompt // response}R" if prompt > response else "R"
    name = f"K={k}, P={share}, against padded"
    return Case(name, ours, padded, 0.85 * needed(padded, 3) / needed(ours, 3))


def head_memory() -> Case:
    """4k response tokens under a vocabulary nine times as large."""
    ours = Work("forward", prompt=64, response=1024, responses=4, pairs=1, vocabulary=152_064, steps=2)
    other = evolve(ours, vocabulary=16_384)
    return Case("152k vocabulary against 16k", ours, other, at_most_memory=1.3, leave_out_head=True)


def twice_the_tokens() -> Case:
    ours = Work("forward", prompt=256, response=128, responses=2, pairs=8)
    return Case("twice the tokens", ours, evolve(ours, pairs=4), 1 / 2.1, starts=2)


def on_gpu(model: str, vocabulary: int) -> Case:
    """DPO at a real shape in bfloat16; what fills a card alone has its reference stored."""
    large = model == "7b"
    real = {"device": "cuda", "dtype": "bfloat16", "model": model, "vocabulary": vocabulary, "stored": large}
    ours = Work("upo", pairs=8 if large else 16, **real)
    name = f"DPO, {model} shape{', stored reference' if large else ''}"
    return Case(name, ours, evolve(ours, engine="trl"), 2.5, None, 0.5, apart=large)


def suite(name: str) -> list[Case]:
    """The cases of `cpu`, `short` or `gpu`."""
    dpo = Work("upo")
    trl = Work("trl")
    live = Case("DPO, live reference", dpo, trl, 5.3, 0.30, 0.70)
    kto = Case("KTO", evolve(dpo, method="KTO"), evolve(trl, method="KTO"), 4.0)
    if name == "short":
        return [live, kto]
    if name == "gpu":
        return [on_gpu("llama-3.2-1b", 128_256), on_gpu("qwen2.5-1.5b", 151_936), on_gpu("7b", 32_000)]
    stored = Case("DPO, stored reference", evolve(dpo, stored=True), evolve(trl, stored=True), 5.0)
    upo = Case("UPO against our KTO", evolve(dpo, method="UPO"), evolve(dpo, method="KTO"), 1 / 1.02, starts=4)
    shapes = [
        Case(
            f"DPO, {shape}", evolve(dpo, lengths=shape, pairs=n, steps=s), evolve(trl, lengths=shape, pairs=n, steps=s)
        )
        for shape, n, s in (("prompt-heavy", 4, 4), ("response-heavy", 4, 4), ("long", 1, 2))
    ]
    lists = [many_responses(k, p, r) for p, r in ((96, 96), (192, 96), (384, 96)) for k in (2, 4, 8, 16)]
    large = Case("DPO, 152k vocabulary", *(evolve(w, vocabulary=152_064, steps=2) for w in (dpo, trl)))
    return [live, stored, kto, upo, *shapes, *lists, twice_the_tokens(), head_memory(), large]
