"""A transformers model's states for a batch of responses in either layout."""

from typing import TYPE_CHECKING

from torch import Tensor

from upo.data.layout import Responses
from upo.errors import UserError
from upo.ops import prefix_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def hidden_states(model: "PreTrainedModel", responses: Responses, every: bool = False) -> list[Tensor]:
    """What the model's head reads [R T, D]; before it each layer's output, where `every` asks for them.

    Raises:
        UserError: the model's layers do not attend as the packed layout needs.
    """
    options = {"input_ids": responses.input_ids, "use_cache": False, "output_hidden_states": every}
    plan = None
    if responses.layout == "packed":
        plan = prefix_attention.plan(responses)
        options |= prefix_attention.packed_inputs(responses, plan)
    body = model.base_model(**options)
    if plan is not None and not plan.calls:
        raise UserError(
            f"{model.config.model_type} did not ask for the packed attention: its tokens would see other responses; "
            "set data.layout: padded"
        )
    return [x.flatten(0, 1) for x in (*(body.hidden_states[1:] if every else ()), body.last_hidden_state)]
