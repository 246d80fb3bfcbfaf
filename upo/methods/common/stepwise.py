"""Log-probs of a whole step, and losses that couple all its responses.

`step_logps` gives this rank's log-probs of all micro-batches without gradient; statistics such as means (BCO, beta-DPO)
sum over them and then over ranks. A `CoupledLoss` is not a sum over pairs (AOT sorts): its loss L is computed from the
rows of the GLOBAL step, gathered over ranks, together with the slopes dL/dlogps. Every micro-batch then contributes
slopes * logps, whose gradient is that of L however the step is split.
"""

from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from upo.data.batch import Batch, Step
from upo.methods.common.base import LossTerm, Method, Stage
from upo.models.logps import ResponseLogps
from upo.runtime.collectives import gather_rows


@torch.no_grad()
def step_logps(method: Method, step: Step) -> ResponseLogps:
    """Log-probs of this rank's responses, concatenated over its micro-batches.

    Dummy batches run, to keep ranks in step, but are left out. `prompt_index` counts prompts over all micro-batches.
    Annotated rewards are included, other outputs are not.
    """
    parts = [(batch, method.response_logps(batch.responses)) for batch in step.micro_batches]
    parts = [(batch, logps) for batch, logps in parts if not batch.dummy] or [(parts[0][0], parts[0][1][:0])]

    def join(name: str) -> Tensor | None:
        columns = [getattr(logps, name) for _, logps in parts]
        return None if columns[0] is None else torch.cat(columns)

    prompts, prompt_index = 0, []
    for batch, logps in parts:
        prompt_index.append(logps.prompt_index + prompts)
        prompts += len(batch.responses.prompt_end)
    sums, lengths = torch.cat([logps.logps for _, logps in parts]), torch.cat([logps.lengths for _, logps in parts])
    return ResponseLogps(sums, lengths, torch.cat(prompt_index), join("reference_logps"), join("rewards"))


class CoupledLoss(Method):
    """Base before a family, `class AOT(CoupledLoss, PairwiseMethod)`; subclasses define `coupled_loss`."""

    def coupled_loss(self, chosen: ResponseLogps, rejected: ResponseLogps) -> Tensor:
        """The loss of the GLOBAL step, one number; where the data are pairs, row i of both arguments is pair i."""
        raise NotImplementedError

    def statistics(self, step: Step) -> dict[str, Tensor]:
        """The loss of the step, and of each response of this rank the slope dL/dlogps and the reference log-prob."""
        own = step_logps(self, step)
        batches: list[Any] = step.micro_batches  # type: ignore[assignment]
        own_preferred = torch.cat([b.preferred[: 0 if b.dummy else None] for b in batches])
        columns = (own.logps, own.reference, own.lengths, own_preferred)
        table, rows_of_rank = gather_rows(torch.stack([column.double() for column in columns], dim=1))
        with torch.inference_mode(False), torch.enable_grad():
            logps, reference, lengths, preferred = table.clone().unbind(1)
            logps = logps.to(own.logps.dtype).detach().requires_grad_()
            reference = reference.to(logps.dtype)
            responses = ResponseLogps(logps, lengths.long(), torch.arange(len(table), device=table.device), reference)
            loss = self.coupled_loss(responses[preferred.bool()], responses[~preferred.bool()])
            (slopes,) = torch.autograd.grad(loss, logps)
        return {
            "coupled": loss.detach(),
            "slopes": slopes[rows_of_rank],
            "reference_logps": reference[rows_of_rank],
        }

    def loss_of(self, batch: Batch, step: Step, statistics: dict[str, Tensor], stage: Stage) -> Tensor:
        """The loss with this micro-batch's rows of the statistics; its reference log-probs are not computed again."""
        if batch.dummy:
            rows, zeros = slice(None), torch.zeros(len(batch.responses.lengths), device=self.device)
            statistics = statistics | {"slopes": zeros, "reference_logps": zeros}
        else:
            rows = step.rows_of(batch)
        batch = evolve(batch, responses=evolve(batch.responses, reference_logps=statistics["reference_logps"][rows]))
        slopes = step.counts["prompts"] * statistics["slopes"][rows]
        return super().loss_of(batch, step, statistics | {"slopes": slopes}, stage)

    def terms(self, batch: Batch, logps: ResponseLogps, statistics: dict[str, Tensor]) -> dict[str, LossTerm]:
        """The value of L for every prompt, so that their mean is L, with the gradient of slopes * logps."""
        zeros = statistics["slopes"] * (logps.logps - logps.logps.detach())  # 0 with gradient: that of slopes * logps
        values = statistics["coupled"].to(zeros.dtype).repeat(len(batch.responses.prompt_end))
        return {"preference": LossTerm(values.index_add(0, logps.prompt_index, zeros), "prompts")}
