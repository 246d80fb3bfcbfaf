"""Losses that couple the responses of a whole step, and the log-probs of a step that they and others need first.

`step_logps` gives this rank's log-probs of all micro-batches without gradient: statistics such as means (BCO, beta-DPO)
sum over them and then over ranks. A `CoupledLoss` is no sum over pairs at all (AOT sorts): its loss L is computed from
the rows of the GLOBAL step, gathered over ranks, with slopes dL/dlogps. Every micro-batch then contributes
slopes * logps, whose gradient is that of L however the step was cut.
"""

import torch
from attrs import evolve
from torch import Tensor

from upo.data.batch import Batch, Step
from upo.methods.common.base import LossTerm, Method, Stage
from upo.models.logps import ResponseLogps
from upo.runtime.collectives import gather_rows


@torch.no_grad()
def step_logps(method: Method, step: Step) -> ResponseLogps:
    """Log-probs of this rank's responses, all micro-batches one behind the other; dummies run and are left out.

    Prompts are counted through the micro-batches; annotated rewards come along, outputs do not.
    """
    parts = [(batch, method.response_logps(batch.responses)) for batch in step.micro_batches]
    parts = [(batch, logps) for batch, logps in parts if not batch.dummy] or [(parts[0][0], parts[0][1][:0])]

    def join(name: str) -> Tensor | None:
        columns = [getattr(logps, name) for _, logps in parts]
        return None if columns[0] is None else torch.cat(columns)

    prompts, index = 0, []
    for batch, logps in parts:
        index.append(logps.prompt_index + prompts)
        prompts += len(batch.responses.prompt_end)
    return ResponseLogps(
        join("logps"), join("lengths"), torch.cat(index), join("reference_logps"), join("rewards")  # type: ignore[arg-type]
    )  # fmt: skip


class CoupledLoss(Method):
    """Put before a family: `class AOT(CoupledLoss, PairwiseMethod)`; subclasses define `coupled_loss`."""

    def coupled_loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        """The loss of the GLOBAL step as one number; where the batches are pairs, row i of both is pair i."""
        raise NotImplementedError

    def statistics(self, step: Step) -> dict[str, Tensor]:
        """The loss of the step, and for each row of this rank its slope dL/dlogps and the reference's log-prob."""
        mine = step_logps(self, step)
        preferred = torch.cat([b.preferred[: 0 if b.dummy else None] for b in step.micro_batches])  # type: ignore[attr-defined]
        columns = (mine.logps, mine.reference, mine.lengths, preferred)
        rows, own = gather_rows(torch.stack([column.double() for column in columns], dim=1))
        with torch.inference_mode(False), torch.enable_grad():
            logps, reference, lengths, good = rows.clone().unbind(1)
            leaf = logps.to(mine.logps.dtype).detach().requires_grad_()
            index = torch.arange(len(rows), device=rows.device)
            every = ResponseLogps(leaf, lengths.long(), index, reference.to(leaf.dtype))
            loss = self.coupled_loss(every[good.bool()], every[~good.bool()])
            (slopes,) = torch.autograd.grad(loss, leaf)
        return {"coupled": loss.detach(), "slopes": slopes[own], "reference_logps": reference[own].to(leaf.dtype)}

    def loss_of(self, batch: Batch, step: Step, statistics: dict[str, Tensor], stage: Stage) -> Tensor:
        """Gives a micro-batch its own rows of the statistics, so that the reference runs once only."""
        if batch.dummy:
            rows, zeros = slice(None), torch.zeros(len(batch.responses.lengths), device=self.device)
            statistics = statistics | {"slopes": zeros, "reference_logps": zeros}
        else:
            rows = step.rows_of(batch)
        batch = evolve(batch, responses=evolve(batch.responses, reference_logps=statistics["reference_logps"][rows]))
        slopes = step.counts["prompts"] * statistics["slopes"][rows]
        return super().loss_of(batch, step, statistics | {"slopes": slopes}, stage)

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        """For every prompt the value of the step's loss; the gradient is that of slopes * logps."""
        change = statistics["slopes"] * (logps.logps - logps.logps.detach())
        values = statistics["coupled"].to(change.dtype).repeat(len(batch.responses.prompt_end))
        return {"preference": LossTerm(values.index_add(0, logps.prompt_index, change), "prompts")}
