"""Memory, disk and time of a run by formulas: numbers in, numbers out.

P parameters of b bytes, P_t of them trained, N devices, a compute precision of c bytes (2 under bf16-mixed, else b):

weights      P b, sharded: P b / N; a matrix in 4 bits takes 4.127 bits a number (doubly quantised constants)
gradients    P_t b, sharded: P_t b / N
optimizer    P_t times the bytes that one step of the optimizer leaves for a parameter, sharded: / N
reference    its parameters times their bytes, sharded: / N; none where there is none or its log-probs are stored
copies       single and DDP under bf16-mixed: c bytes for each of the layers' weights, kept from forward to backward.
             DDP: P_t b more, the buckets in which gradients are summed. Sharded: what is gathered, in c bytes a
             parameter (4-bit ones as they are): all outside the blocks and two blocks; and their gradients, in fp32 on
             the way to their owners: all outside the blocks and one block. 4 bits: the largest matrix in c bytes
activations  what autograd keeps of one micro-batch; with checkpointing only the input of each block, and one block's
head         the probabilities that wait for the backward pass and, beyond them, two chunks of logits, in fp32; the
             states that they are made of, the weights in c bytes where the model holds others, their gradient in fp32
KV cache     none: nothing is generated while training

The peak is the largest of three moments. The backward pass begins: all of it, but gradients only where an earlier
micro-batch of the same step has left some. The backward pass ends: gradients, and once more those of the embeddings.
The optimizer: gradients and what it computes with (on GPUs as large as the gradients, on CPUs as two parameters);
neither activations nor copies, but buckets.
"""

from typing import Literal

from attrs import evolve, frozen

Strategy = Literal["single", "ddp", "fsdp"]
FREE_GIB = 1.5
"""Left free on a GPU, for CUDA, its libraries, communication and fragmentation."""
FOUR_BITS = 4.127 / 8
"""Bytes of an NF4 number with its share of the constants."""
MFU = 0.4
"""Share of a GPU's bf16 rate at which needed operations are assumed to run."""


@frozen
class Shape:
    """Parameters of what is trained, by what happens to them."""

    parameters: int
    """All of policy and further heads."""
    trained: int
    matrices: int
    """Of the layers' weight matrices."""
    outside: int
    """Outside the blocks: embeddings, output head, last norm, value heads."""
    block: int
    """Of the largest block."""
    largest: int
    """Of the largest single parameter."""
    vocabulary: int
    width: int
    layers: int
    bytes: int
    """Of one parameter."""
    four_bit: int = 0
    """Of the matrices, those that are kept in 4 bits."""
    matrix: int = 0
    """Of the largest of these."""
    adapter: bool = False
    """Whether checkpoints hold the trained parameters alone."""


@frozen
class Work:
    """One micro-batch on one device, the heaviest of a step."""

    tokens: int
    """Input tokens."""
    scored: int
    """Response tokens."""
    micro_batches: int
    """Of a step, on one device."""
    activations: float
    """Bytes that autograd keeps."""


@frozen
class Setting:
    """How it is trained."""

    strategy: Strategy
    devices: int
    mixed: bool
    """bf16-mixed: parameters and optimizer in fp32, products in bf16."""
    state_bytes: float
    """Of the optimizer, for each trained parameter."""
    reference_bytes: float
    """Of all its parameters."""
    gpu: bool = True
    checkpointing: bool = False


@frozen
class Memory:
    """Bytes on one device."""

    parts: dict[str, float]
    """In the order in which they are printed."""
    peak: float


def memory(shape: Shape, work: Work, setting: Setting) -> Memory:
    """The formulas of this module's docstring."""
    share = setting.devices if setting.strategy == "fsdp" else 1
    b = shape.bytes
    c = 2 if setting.mixed else b
    gradients = shape.trained * b / share
    buckets = shape.trained * b if setting.strategy == "ddp" else 0
    if setting.strategy == "fsdp":
        small = shape.four_bit / max(1, shape.parameters - shape.outside)
        gathered = c * shape.outside + 2 * shape.block * (c * (1 - small) + FOUR_BITS * small)
        copies = gathered + 4 * (shape.outside + shape.block) * shape.trained / max(1, shape.parameters)
    else:
        copies = buckets + (c * shape.matrices if setting.mixed else 0)
    copies += c * shape.matrix if shape.four_bit else 0
    activations = work.activations
    if setting.checkpointing:
        boundary = work.tokens * shape.width * (4 if setting.mixed else b)
        activations = shape.layers * boundary + work.activations / shape.layers
    table = shape.vocabulary * shape.width
    kept, at_a_time = kept_and_chunk(shape.vocabulary)
    chunks = 2 if work.scored > kept else 0  # the last one goes only when the next is there; kept ones take its place
    logits = 4 * shape.vocabulary * (min(work.scored, kept) + chunks * min(work.scored, at_a_time))
    head = logits + 2 * c * work.scored * shape.width + (c * table if setting.mixed else 0)
    head_gradient = 0 if setting.strategy == "fsdp" else 4 * table * bool(shape.trained > table)
    parts = {
        "weights": ((shape.parameters - shape.four_bit) * b + shape.four_bit * FOUR_BITS) / share,
        "gradients": gradients,
        "optimizer": shape.trained * setting.state_bytes / share,
        "reference": setting.reference_bytes / share,
        "copies": copies,
        "activations": activations,
        "head": head + head_gradient,
        "KV cache": 0.0,
    }
    kept = parts["weights"] + parts["optimizer"] + parts["reference"]
    begins = kept + copies + activations + parts["head"] + (gradients if work.micro_batches > 1 else 0)
    ends = kept + copies + gradients + (0 if setting.strategy == "fsdp" else head_gradient * b / 4)
    temporary = gradients if setting.gpu else 2 * b * shape.largest / share
    return Memory(parts, max(begins, ends, kept + buckets + gradients + temporary))


def kept_and_chunk(vocabulary: int) -> tuple[int, int]:
    """Response tokens whose probabilities wait for the backward pass, and whose logits exist at a time."""
    from upo.ops.linear_head import ELEMENTS
    from upo.ops.linear_logps import KEPT

    at_a_time = min(1024, max(1, ELEMENTS // vocabulary))
    return KEPT // vocabulary // at_a_time * at_a_time, at_a_time


def suggestions(
    shape: Shape, work: Work, setting: Setting, longest: int, stored_reference: bool = True
) -> list[tuple[str, float]]:
    """What makes a run smaller, and its peak in bytes then; each next one on top of the ones before it.

    Args:
        longest: input tokens of the longest unit: no micro-batch can be smaller.
        stored_reference: whether the method can read stored log-probs.
    """
    found = []

    def add(text: str) -> None:
        peak = memory(shape, work, setting).peak
        if peak < 0.98 * (found[-1][1] if found else before):
            found.append((text, peak))

    before = memory(shape, work, setting).peak
    if setting.strategy == "ddp":
        setting = evolve(setting, strategy="fsdp")
        add("sharded parameters (trainer.strategy)")
    if not setting.checkpointing:
        setting = evolve(setting, checkpointing=True)
        add("activation checkpointing")
    for tokens in (work.tokens // 2, work.tokens // 4):
        if tokens >= longest:
            ratio = tokens / work.tokens
            work = evolve(
                work, tokens=tokens, scored=round(work.scored * ratio), activations=work.activations * ratio,
                micro_batches=round(work.micro_batches / ratio),
            )  # fmt: skip
            add(f"data.tokens_per_microbatch: {tokens}")
    if setting.reference_bytes and stored_reference:
        setting = evolve(setting, reference_bytes=0.0)
        add("model.reference: StoredReference")
    if setting.strategy != "single" or setting.gpu:
        setting = evolve(setting, strategy="fsdp", devices=2 * setting.devices)
        add(f"{setting.devices} devices")
    if not shape.adapter:
        shape = evolve(shape, trained=shape.parameters // 100)
        add("policy.adapter: LoRA (about 1 % of the parameters trained)")
    return found


def checkpoint_bytes(shape: Shape, state_bytes: float) -> float:
    """Of one checkpoint: weights and optimizer; a reference is never saved."""
    saved = shape.trained if shape.adapter else shape.parameters
    return saved * shape.bytes + shape.trained * state_bytes


def checkpoints_kept(steps: int | None, every: int, keep: int) -> int:
    """How many lie in a run folder at most: `keep` (-1: all) and the one that is being written."""
    written = max(1, steps // every) if steps and every > 0 else 1
    return written if keep < 0 else min(written, keep + 1)


def hours(operations: float, devices: int, rate: float, mfu: float = MFU) -> float:
    """Time for `operations` in all."""
    return operations / (devices * rate * mfu) / 3600
