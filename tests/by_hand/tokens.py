"""Pairs whose loss looks at single tokens: on-policy weights, divergences token by token, masks."""

from collections.abc import Callable

import torch
from by_hand.answers import Answer, PlainStep
from by_hand.case import Expected, case, forward_kl, log_sigmoid, mean, of_pairs
from by_hand.pairs import scaled, smoothed
from by_hand.units import pairs, with_responses
from torch import Tensor

from upo.data.units import Unit
from upo.methods import TDPO1, TDPO2, WPO, MaPO, SparsePO
from upo.methods.common.ranges import FlipRate


def likely(method: WPO, units: list[Unit]) -> None:
    """A pair that the policy itself would write: the likeliest tokens, more of them and fewer."""
    unit = units[0]
    ids: list[int] = []
    for _ in range(4):
        logits = method.policy.model(input_ids=torch.tensor([[*unit.prompt, *ids]]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    units[0] = with_responses(unit, (ids, ids[:2]))


@case(WPO, pairs, prepare=likely, beta=0.3, label_smoothing=FlipRate(0.2))
def wpo(step: PlainStep, beta: float, label_smoothing: float) -> Expected:
    """min(1, omega_w omega_l), omega = exp of the mean of log p(y_t) - log sum_v p_v^2."""

    def omega(y: Answer) -> Tensor:
        return torch.exp((y.policy.logps - y.policy.every.exp().square().sum(-1).log()).mean())

    def weight(won: Answer, lost: Answer) -> Tensor:
        return step.smallest(omega(won) * omega(lost), 1.0, "a weight of 1").detach()

    return of_pairs(
        step,
        lambda won, lost: weight(won, lost) * smoothed(beta * (won.r - lost.r), label_smoothing),
        scaled(beta),
        metrics={"weights": [weight(won, lost) for won, lost in step.pairs]},
    )


def divergences(step: PlainStep) -> dict[str, list[Tensor]]:
    return {
        "kl/chosen": [forward_kl(won).sum() for won, _ in step.pairs],
        "kl/rejected": [forward_kl(lost).sum() for _, lost in step.pairs],
    }


@case(TDPO1, pairs, beta=0.3)
def tdpo1(step: PlainStep, beta: float) -> Expected:
    def loss(won: Answer, lost: Answer) -> Tensor:
        delta = forward_kl(lost).sum() - forward_kl(won).sum()
        return -log_sigmoid(beta * (won.r - lost.r - delta))

    return of_pairs(step, loss, lambda y: beta * (y.r + forward_kl(y).sum()), metrics=divergences(step))


@case(TDPO2, pairs, beta=0.3, alpha=0.7)
def tdpo2(step: PlainStep, beta: float, alpha: float) -> Expected:
    def loss(won: Answer, lost: Answer) -> Tensor:
        delta = forward_kl(lost).sum() - forward_kl(won).sum().detach()
        return -log_sigmoid(beta * (won.r - lost.r - alpha * delta))

    return of_pairs(step, loss, lambda y: beta * (y.r + alpha * forward_kl(y).sum()), metrics=divergences(step))


def of_masks(step: PlainStep, masks: Callable[[Answer], tuple[Tensor, Tensor]], beta: float) -> Expected:
    """-log sigmoid(U - V) of log-ratios and divergences that are masked token by token."""

    def sums(y: Answer) -> tuple[Tensor, Tensor]:
        of_reward, of_kl = masks(y)
        return (of_reward * y.rho).sum(), (of_kl * forward_kl(y)).sum()

    def loss(won: Answer, lost: Answer) -> Tensor:
        (u_w, k_w), (u_l, k_l) = sums(won), sums(lost)
        return -log_sigmoid(beta * (u_w - u_l) - beta * (k_l - k_w))

    every = [x for y in step.answers for mask in masks(y) for x in mask]
    logged = {"masks/mean": every, "masks/density": [float(x > 0) for x in every]}
    return of_pairs(step, loss, lambda y: beta * sum(sums(y)), metrics=divergences(step) | logged)


@case(MaPO, pairs, beta=0.3)
def mapo(step: PlainStep, beta: float) -> Expected:
    """The reference's mean activations, standardised over the response, layer by layer."""

    def masks(y: Answer) -> tuple[Tensor, Tensor]:
        layers = []
        for activations in y.reference.layers.mean(-1).unbind(1):
            spread = (activations - activations.mean()).square().mean().sqrt()
            layers.append(1 / (1 + torch.exp(-(activations - activations.mean()) / (spread + 1e-6))))
        return mean(layers), mean(layers)

    return of_masks(step, masks, beta)


@case(SparsePO, pairs, beta=0.3, common_mask=False)
@case(SparsePO, pairs, beta=0.4, common_mask=True)
def sparse_po(step: PlainStep, beta: float, common_mask: bool) -> Expected:
    """ReLU of a linear map of each layer's state, averaged over the layers; for divergences another map or the same."""
    head = step.method.mask_head

    def mask(y: Answer, which: int) -> Tensor:
        tokens = []
        for states in y.reference.layers:
            maps = [
                weight @ x + bias for weight, x, bias in zip(head.weight[which], states, head.bias[which], strict=True)
            ]
            tokens.append(mean([step.largest(x, 0.0, f"mask {which} of a layer") for x in maps]))
        return torch.stack(tokens)

    return of_masks(step, lambda y: (mask(y, 0), mask(y, 0 if common_mask else 1)), beta)
