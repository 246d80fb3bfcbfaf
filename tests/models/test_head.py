"""The output head of a Hugging Face model: scaling, soft caps, bias, LoRA, and what is refused."""

import pytest
import torch
from tiny import SHAPES, arrange, policy, units
from torch import nn

from upo.errors import UserError
from upo.models.head import Head
from upo.ops.linear_logps import linear_logps

SMALL = {"num_key_value_heads": 2, "intermediate_size": 48}


@pytest.mark.parametrize(
    ("kind", "shape", "found"),
    [
        ("llama", SMALL, Head(1.0, None)),
        ("granite", SMALL | {"logits_scaling": 8.0}, Head(0.125, None)),
        ("cohere", SMALL | {"logit_scale": 0.0625}, Head(0.0625, None)),
        ("gemma2", SHAPES["gemma2"] | {"final_logit_softcapping": 30.0}, Head(1.0, 30.0)),
        ("gemma2", SHAPES["gemma2"] | {"final_logit_softcapping": None}, Head(1.0, None)),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scale_and_cap_are_found(kind, shape, found, dtype):
    """Also where the weights are so small that no logit of the model itself would reach the cap."""
    assert policy(kind, dtype, **shape, initializer_range=0.01).head == found


def test_a_head_with_a_secret_is_refused():
    class Secret(nn.Linear):
        def forward(self, x):
            return super().forward(x).clamp(max=50)

    model = policy().model
    secret = Secret(32, model.lm_head.out_features, bias=False)
    secret.weight = model.lm_head.weight
    model.lm_head = secret
    with pytest.raises(UserError, match="llama changes its logits behind the output embeddings"):
        Head.of(model, "somewhere")


def test_states_that_change_on_their_way_to_the_head_are_refused():
    model = policy().model
    model.lm_head.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    with pytest.raises(UserError, match="llama changes its states between its layers and its output embeddings"):
        Head.of(model, "somewhere")


def test_a_quantized_head_is_refused():
    model = policy().model
    model.lm_head.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UserError, match="quantized"):
        Head.of(model, "somewhere")


class Adapter(nn.Module):
    """A linear layer with LoRA as `peft` builds it."""

    def __init__(self, base: nn.Linear, rank: int = 3, scaling: float = 0.7):
        super().__init__()
        self.base_layer, self.weight, self.bias = base, base.weight, base.bias
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False, dtype=base.weight.dtype)})
        self.lora_B = nn.ModuleDict(
            {"default": nn.Linear(rank, base.out_features, bias=False, dtype=base.weight.dtype)}
        )
        self.scaling, self.active_adapters, self.lora_variant = {"default": scaling}, ["default"], {}
        self.disable_adapters = self.merged = False

    def forward(self, x):
        out = self.base_layer(x)
        if self.disable_adapters:
            return out
        return out + self.scaling["default"] * self.lora_B["default"](self.lora_A["default"](x))


@pytest.mark.parametrize("kind", ["llama", "phi", "gemma2"])
def test_lora_on_the_head(kind):
    """Values and gradients of the adapter are those of the model's own forward; off, it is as if it were not there."""
    made = policy(kind, "float64", tie_word_embeddings=False)
    bare = made.linear_head()
    adapter = Adapter(made.model.lm_head.requires_grad_(False))
    made.model.lm_head = adapter
    made.head = Head.of(made.model, "x")
    hidden = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(5)
    logits = adapter(hidden)
    if made.head.cap:
        logits = made.head.cap * torch.tanh(logits / made.head.cap)
    plain = logits.log_softmax(-1)[torch.arange(5), targets]
    ours = linear_logps(hidden, made.linear_head(), targets, 2)
    torch.testing.assert_close(ours, plain)
    learns = [p for p in adapter.parameters() if p.requires_grad]
    assert len(learns) == 2
    for x, y in zip(torch.autograd.grad(ours.sum(), learns), torch.autograd.grad(plain.sum(), learns), strict=True):
        torch.testing.assert_close(x, y)
    adapter.disable_adapters = True
    off = linear_logps(hidden, made.linear_head(), targets)
    torch.testing.assert_close(off, linear_logps(hidden, bare, targets))
    assert not torch.allclose(off, ours)


def test_other_kinds_of_lora_are_refused():
    model = policy().model
    model.lm_head = Adapter(model.lm_head)
    model.lm_head.lora_variant = {"default": object()}
    with pytest.raises(UserError, match="variant of LoRA"):
        Head.of(model, "somewhere")


def test_the_adapter_of_peft_itself():
    peft = pytest.importorskip("peft")
    made = policy()
    made.model = peft.get_peft_model(made.model, peft.LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    made.model.base_model.model.model.requires_grad_(False)
    inner = made.model.base_model.model
    head = Head.of(inner, "x").read(inner, torch.float32)
    assert head.up is not None
    hidden = torch.randn(3, 32)
    torch.testing.assert_close(head.logits(hidden), inner.lm_head(hidden))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_packed_is_padded_with_a_head_of_its_own_and_with_a_tied_one(kind, tied):
    """In value and in the gradient of the embeddings, which a tied head adds its own to."""
    made = policy(kind, tie_word_embeddings=tied)
    work = units([(5, [4, 7]), (3, [6, 2])])
    found = []
    for layout in ("packed", "padded"):
        made.model.zero_grad()
        logps = made(arrange(work, layout))["logps"]
        logps.sum().backward()
        found.append((logps.detach(), made.model.get_input_embeddings().weight.grad.clone()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    output = made.model.get_output_embeddings().weight
    assert (output.data_ptr() == made.model.get_input_embeddings().weight.data_ptr()) == tied
    assert torch.equal(found[1][1], output.grad) == tied


def test_fields_that_a_config_does_not_have_are_refused():
    """transformers would keep them, and do nothing with them."""
    with pytest.raises(
        UserError, match="llama has no `hiden_size`, which would do nothing; did you mean `hidden_size`"
    ):
        policy("llama", hiden_size=64)
    with pytest.raises(UserError, match="llama has no `device_map`"):
        policy("llama", device_map="auto")
    policy("llama", rope_theta=5000.0)
