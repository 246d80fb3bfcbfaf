"""What methods ask for: declarations that compose, and one refusal before any data are read."""

import pytest
import torch
import training
from cases import case_of
from every_method import METHODS
from losses import made
from tiny import policy

import upo.methods
from upo.callbacks.acceleration import ExtrapolatedReference
from upo.errors import UserError
from upo.methods import BCO, CSFT, DPO, MPO, SFT, TDPO2, UPO, WPO, MaPO, SimPO
from upo.methods.common.base import Method
from upo.methods.common.families import PairwiseMethod
from upo.methods.common.needs import SUMS, Needs, check_needs
from upo.models.logps import AXIS
from upo.models.policy import Policy
from upo.models.reference import AdapterReference, FrozenReference, Reference
from upo.models.stored_reference import StoredReference

DPO_NEEDS = Needs(reference=SUMS, reward=SUMS)


def test_the_sum_of_two_needs_asks_for_both():
    a = Needs(policy={"kl"}, reference={"token_logps"}, rewards=("x", "y"), control_tokens=("<|g|>",))
    b = Needs(policy={"hidden"}, reward={"kl"}, rewards=("y", "z"), normalized=False)
    both = a | b
    assert both.policy == {"kl", "hidden"} and both.reference == {"token_logps"} and both.reward == {"kl"}
    assert both.rewards == ("x", "y", "z") and both.control_tokens == ("<|g|>",) and both.normalized
    for x in (a, DPO_NEEDS):
        assert x | Needs() == Needs() | x == x | x == x, "whoever needs nothing adds nothing"
    assert not (b | b).normalized and (b | Needs()).normalized, "unless both say so"
    assert (Needs() | DPO_NEEDS).reference == SUMS, "sums are more than no reference"


def test_a_divergence_reads_the_reference_s_states():
    assert Needs(policy={"kl"}, reference=SUMS).of_reference == {"hidden"}
    assert (DPO_NEEDS | Needs(policy={"sum_p2"})).of_reference == SUMS
    needs = MaPO.needs
    assert needs.of_reference == {"token_logps", "layers", "hidden"}
    assert needs.for_reward.policy == needs.policy and needs.for_reward.reference == needs.reference
    assert WPO.needs.for_reward.policy == SUMS, "its weights read more, its reward does not"
    assert SFT.needs.for_reward == SFT.needs


@pytest.mark.parametrize("kind", METHODS)
def test_every_method_names_quantities_that_there_are(kind):
    needs = made(kind, **case_of(kind).options).needs
    assert needs.policy | needs.of_reference | (needs.reward or SUMS) <= AXIS.keys()
    assert (needs.reward or SUMS) <= needs.policy | (needs.reference or SUMS)
    assert (needs.reward is None) == (kind.reward is Method.reward)
    assert needs.policy <= Policy.provides and needs.of_reference <= FrozenReference.provides


@pytest.mark.parametrize("kind", [x for x in METHODS if x.values[0].needs.reference is not None])
def test_a_stored_reference_is_taken_or_refused_when_the_method_is_made(kind, tmp_path):
    """In one sentence that names the method, what it needs, and what to set instead."""
    options = case_of(kind).options
    if made(kind, **options).needs.of_reference <= StoredReference.provides:
        kind(Policy(path="nowhere"), StoredReference(), **options)
        return
    with pytest.raises(UserError, match=rf"^{kind.__name__} needs .* of each token from the reference, StoredReference "
                       r"provides only logps of each response; set model\.reference: FrozenReference$"):  # fmt: skip
        kind(Policy(path="nowhere"), StoredReference(), **options)


def test_options_and_sums_ask_for_more():
    assert made(UPO, value_at="mean").needs == UPO.needs | Needs(
        policy={"prompt_mean"}, rewards=("readability", "safety")
    )
    assert made(BCO).needs == DPO_NEEDS and BCO.needs == DPO_NEEDS
    with pytest.raises(UserError, match=r"BCO needs prompt_hidden of each prompt from the reference, StoredReference"):
        BCO(Policy(path="nowhere"), StoredReference(), match_prompts=True)
    losses = {"a": SimPO, "b": TDPO2, "c": WPO}
    needs = made(MPO, losses=losses).needs
    assert needs.policy == {"kl", "token_logps", "sum_p2"} and needs.reference == needs.reward == SUMS
    with pytest.raises(UserError, match="MPO needs kl of each token from the reference, StoredReference"):
        MPO(Policy(path="nowhere"), StoredReference(), losses=losses)


def test_parts_of_a_sum_are_made_once_and_their_own_mistakes_are_theirs():
    calls = []

    def part(**given):
        calls.append(given)
        return SimPO(**given)

    made(MPO, losses={"a": part, "b": DPO})
    assert len(calls) == 1
    with pytest.raises(UserError, match="a mistake of its own"):
        made(MPO, losses={"a": lambda **_: (_ for _ in ()).throw(UserError("a mistake of its own")), "b": DPO})


def test_names_that_no_model_knows_are_refused():
    needs = DPO_NEEDS | Needs(policy={"entropi"})
    with pytest.raises(UserError, match=r"no quantity of a policy is called `entropi`; did you mean `entropy`"):
        check_needs("X", needs, policy(), FrozenReference())


def test_scores_that_are_no_log_probs_are_refused_where_these_are_needed():
    class Scores(Reference):
        provides = frozenset({"reward"})
        build = logps = None

    with pytest.raises(
        UserError, match=r"X needs logps of each response from the reference, Scores provides only reward"
    ):
        check_needs("X", DPO_NEEDS, policy(), Scores())
    check_needs("X", Needs(reference=SUMS, normalized=False), policy(), Scores())


def test_each_reference_says_what_to_do_where_it_is_too_little():
    with pytest.raises(
        UserError, match=r"TDPO2 needs kl .*ExtrapolatedReference provides only .*; remove the callback"
    ):
        made(TDPO2).set_reference(ExtrapolatedReference())
    for reference in (FrozenReference(), AdapterReference()):
        method = made(TDPO2)
        method.set_reference(reference)
        assert method.reference is reference


def test_a_reference_is_never_part_of_the_method():
    class Module(FrozenReference, torch.nn.Module):
        def __init__(self):
            torch.nn.Module.__init__(self)
            FrozenReference.__init__(self)

    method = DPO(policy(), Module())
    method.configure_model()
    assert {name.split(".")[0] for name in method.state_dict()} == {"policy"}
    method.set_reference(Module())
    assert {name.split(".")[0] for name, _ in method.named_modules() if name} == {"policy", "train_means", "val_means"}


def test_a_reward_and_its_needs_belong_together():
    class Mute(PairwiseMethod):
        """Declares a reward by its family and defines none."""

    class Silent(Method):
        needs = Needs(reference=SUMS)

        def reward(self, logps):
            return logps.logratio

    for kind in (Mute, Silent):
        with pytest.raises(UserError, match=rf"{kind.__name__} must define both `reward\(logps\)` and `needs\.reward`"):
            made(kind)


def test_control_tokens_are_handed_to_the_policy():
    method = made(CSFT)
    assert method.policy.controls == CSFT.needs.control_tokens == ("<|good|>", "<|bad|>")
    with pytest.raises(UserError, match="come too late"):
        made_before = policy()
        CSFT(made_before)


def test_an_unknown_class_attribute_is_no_declaration():
    """The flags that `needs` has replaced are nowhere any more."""
    old = ("needs_reference", "extras", "reference_outputs", "reward_reads_extras")
    for name in upo.methods.__all__:
        assert not [x for x in old if hasattr(getattr(upo.methods, name), x)]
    assert training.make(DPO).needs is DPO.needs
