"""What holds for every method: it learns eight pairs, trains the policy alone, leaves a checkpoint without a reference.

A new method is tested here as soon as `upo.methods.__all__` names it; `ALSO` says which metrics it logs beside those of
its family, `OPTIONS` which arguments it needs. The methods of `CORE` train until they know the pairs in every test run,
the others in the slow one.
"""

import copy
import datetime
import gzip
import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import fake_ranks
import lightning.pytorch as pl
import made_up
import pytest
import torch
import training
from tiny import PAIRS, plain_logps

import upo.methods
from upo.data.layout import collate_responses
from upo.data.module import PreferenceData
from upo.data.samplers import StepSampler
from upo.data.source import Source
from upo.data.units import Unit
from upo.errors import UserError
from upo.evaluation.measure import log_probs, rewards
from upo.methods.common.base import Method
from upo.methods.common.families import ListwiseMethod, PairwiseMethod, UnpairedMethod
from upo.methods.common.likelihood import ChosenLikelihood
from upo.methods.common.stepwise import CoupledLoss
from upo.methods.upo import AuxiliaryRewards
from upo.models.checkpoint import model_from
from upo.models.policy import Policy
from upo.models.reference import FrozenReference
from upo.rewards.length import Words

CORE = ("SFT", "DPO", "KTO", "UPO", "UPODPO")
LONG, SHORT = 40, 3
PREFERENCE = {
    *(f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins", "ties")),
    "logps/chosen",
    "logps/rejected",
}
AUXILIARY = {
    *(f"loss/{name}" for name in ("preference", "auxiliary", "value")),
    *(f"objective/{name}" for name in ("chosen", "rejected")),
    *(f"weights/{name}" for name in ("mean", "max", "p99", "ess")),
    *(f"value/{name}" for name in ("mean", "explained_variance")),
}
OREOS = ("OREO", "StepOREO", "TrajectoryOREO")
ALOLS = ("ALOL", "ALOLKL", "ALOLRefFree", "ALOLSequence")
PPO = {"loss/preference", "loss/value", "loss/kl", "advantages/mean", "advantages/std", "clipped"}
ALSO = {
    **{name: {"logps", "advantages", "desirable"} for name in ALOLS},
    "AOPPO": PPO | {"objective/chosen", "objective/rejected"},
    "CSFT": {"nll_per_token", "nll_per_token/good", "nll_per_token/bad"},
    "OPPO": PPO,
    **{name: {"loss/preference", "loss/value", "loss/kl"} for name in OREOS},
    "RDPO": {"loss/preference", "loss/rationale"},
    "RORPO": {"loss/preference", "loss/nll", "loss/rationale"},
    "SFT": {"nll_per_token", "logps/chosen", "lengths/chosen"},
    "BCO": {"delta"},
    "SPODegree": {"loss/preference", "loss/degree", "degree/accuracies"},
    "BetaDPO": {"beta", "gaps/mean", "gaps/spread"},
    "AuxiliaryOnly": AUXILIARY - {"loss/preference"},
    "CalDPO": {"loss/preference", "loss/calibration"},
    "DROV": {"loss/preference", "loss/value"},
    "RewardWeightedSFT": {f"{name}/{side}" for name in ("objective", "nll") for side in ("chosen", "rejected")},
    "KTO": {"kl"},
    "KTOPair": {"kl/chosen", "kl/rejected"},
    "MPO": {"loss/preference", "loss/quality", "loss/nll"},
    "UPO": AUXILIARY | {"kl"},
    "SRPO": {"loss/generator", "loss/improver"},
    "GuidedDPO": {"loss/preference", "loss/gold", "logps/gold"},
    "TPO": {"loss/preference", "loss/gold", "logps/gold"},
    "TPOL": {"loss/preference", "loss/gold", "logps/gold"},
    "MaPO": {"kl/chosen", "kl/rejected", "masks/mean", "masks/density"},
    "SparsePO": {"kl/chosen", "kl/rejected", "masks/mean", "masks/density"},
    "TDPO1": {"kl/chosen", "kl/rejected"},
    "TDPO2": {"kl/chosen", "kl/rejected"},
    "UPODPO": AUXILIARY,
    "UPOIPO": AUXILIARY,
    "UPOShuffled": AUXILIARY | {"kl"},
    "WPO": {"weights"},
}
STOPPED = {*OREOS, *ALOLS, "AOPPO", "OPPO", "DROV", "WPO"}
"""Their losses stop gradients at what the log-probs themselves make: weights, ratios, values. See their own tests."""
UPOS = ("AuxiliaryOnly", "UPO", "UPODPO", "UPOIPO", "UPOShuffled")
HEADS = {name: {"policy.", "value_head."} for name in (*OREOS, *UPOS, "DROV", "AOPPO", "OPPO")} | {
    "SPODegree": {"policy.", "degree_head."},
    "SparsePO": {"policy.", "mask_head."},
}
OPTIONS: dict[str, dict] = {
    **{name: {"reward_weights": {"length": 0.02}} for name in ALOLS},
    "OPPO": {"value_lr": 1e-5, "kl_coefficient": 0.0},  # a V that knows all by heart leaves noise, which is whitened
    "AOPPO": {"value_lr": 1e-5, "kl_coefficient": 0.0, "reward_weights": {"length": 0.02}},
    "DiscoPOP": {"tau": 0.5},  # at the paper's 0.05 the slope at the start points the wrong way
    "EXOListwise": {"temperature": 1.0},  # that all couples of a list learn, not only those with the best response
    "InfoNCA": {"temperature": 1.0},
    "MODPO": {"reward_weights": {"length": 0.02}},
    "MPO": {"losses": {"preference": upo.methods.DPO, "quality": upo.methods.NCA}, "nll_weight": 1.0},
    "NCAListwise": {"temperature": 1.0},
    "RewardWeightedSFT": {"reward_weights": {"length": 0.02}},
}
"""Arguments of the methods that need some."""
SINGLES = {"pairs_per_step": 16, "tokens_per_microbatch": 300}
DATA = dict.fromkeys((*ALOLS, "CSFT"), SINGLES)
"""Settings of the data for methods whose units are single responses: a step is all of them as well."""
SOURCES = {
    "DOVE": "tiny.scored_alone",
    "EXOListwise": "tiny.scored_lists",
    "InfoNCA": "tiny.scored_lists",
    "NCAListwise": "tiny.scored_lists",
    "ODPO": "tiny.scored_pairs",
    "GDPO": "tiny.soft_pairs",
    "GIPO": "tiny.soft_pairs",
    "GROPO": "tiny.soft_pairs",
    "SoftCDPO": "tiny.soft_pairs",
    "SoftCIPO": "tiny.soft_pairs",
    "RDPO": "tiny.explained",
    "RORPO": "tiny.explained",
    "StepAPO": "tiny.scored_pairs",
    "GuidedDPO": "tiny.triples",
    "TPO": "tiny.triples",
    "TPOL": "tiny.triples",
}
"""Who reads the file of pairs, for methods that want more than pairs."""


def steps_of(kind: type[Method]) -> int:
    return LONG if kind.__name__ in CORE else SHORT


def expected(kind: type[Method]) -> set[str]:
    family = PREFERENCE if issubclass(kind, PairwiseMethod | UnpairedMethod | ListwiseMethod) else set()
    likelihood = {"loss/preference", "loss/nll"} if issubclass(kind, ChosenLikelihood) else set()
    return family | likelihood | ALSO.get(kind.__name__, set())


METHODS = [pytest.param(getattr(upo.methods, name), id=name) for name in upo.methods.__all__]
TODAY = datetime.date.today().toordinal() % 3
CORE_OR_THIRD = [
    pytest.param(
        *x.values,
        id=x.id,
        marks=[] if x.id in CORE else [pytest.mark.slow if i % 3 == TODAY else pytest.mark.nightly],
    )
    for i, x in enumerate(METHODS)
]
"""A third of the other methods is tested in the slow run of a day, all of them at night."""
CORE_OR_SLOW = [pytest.param(*x.values, id=x.id, marks=[] if x.id in CORE else [pytest.mark.slow]) for x in METHODS]


@pytest.fixture(scope="session")
def pairs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of eight short pairs of HH, or of pairs like them where the real ones are missing."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    try:
        real = request.getfixturevalue("shared") / "data/hh/helpful-base.test.jsonl.gz"
        rows = [json.loads(line) for line in gzip.decompress(real.read_bytes()).decode().split("\n") if line]
        turns = [r for r in rows if r["chosen"].count("Human:") == 1]
        rows = sorted(turns, key=lambda r: len(r["chosen"]) + len(r["rejected"]))[10:18]
    except pytest.skip.Exception:
        head = "\n\nHuman: {}\n\nAssistant: {}"
        rows = [{"chosen": head.format(p, c), "rejected": head.format(p, r)} for p, c, r in PAIRS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


class Watch(pl.Callback):
    """Metrics of each step, and which parameters had a gradient."""

    def __init__(self):
        self.rows: list[dict[str, float]] = []
        self.with_gradient: set[str] = set()
        self.moved: set[str] = set()

    def on_fit_start(self, trainer, pl_module):
        self.before = copy.deepcopy(pl_module.state_dict())
        self.reference = reference_state(pl_module)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.with_gradient |= {n for n, p in pl_module.named_parameters() if p.grad is not None and p.grad.any()}

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.rows.append({name: float(x) for name, x in trainer.callback_metrics.items()})

    def on_train_end(self, trainer, pl_module):
        after = pl_module.state_dict()
        self.moved = {name for name, x in self.before.items() if not torch.equal(x, after[name])}


def reference_state(method: Method) -> dict[str, torch.Tensor]:
    if method.reference is None:
        return {}
    return copy.deepcopy(method.reference.load_model().state_dict())


def make(kind: type[Method], lr: float = 1e-2) -> Method:
    config = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config |= {"intermediate_size": 48, "max_position_embeddings": 256}
    options = dict(OPTIONS.get(kind.__name__, {}))
    if kind.needs.reference is not None:
        options["reference"] = FrozenReference()
    if issubclass(kind, AuxiliaryRewards):
        options |= {"reward_weights": {"length": 0.02}, "value_warmup_steps": 2}
    torch.manual_seed(0)
    return kind(
        Policy(config=config, tokenizer="tiny.tokenizer"),
        optimizer=lambda p: torch.optim.AdamW(p, lr=lr),
        scheduler=lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=5),
        **options,
    )


def fit(
    kind: type[Method],
    pairs: str,
    folder: Path,
    steps: int = LONG,
    lr: float = 1e-2,
    precision: str = "32-true",
    **data: object,
) -> SimpleNamespace:
    """One step is all eight pairs, in several micro-batches."""
    method, watch = make(kind, lr), Watch()
    module = PreferenceData(
        (Source(SOURCES.get(kind.__name__, "hh"), path=pairs),),
        rewards={"length": Words()},
        rewards_cache=str(folder / "cache"),
        **{"validation": 0, "max_length": 256, "pairs_per_step": 8, "tokens_per_microbatch": 600}
        | DATA.get(kind.__name__, {})
        | data,
    )
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", gradient_clip_val=1.0, logger=False, callbacks=[watch],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False, precision=precision,
    )  # fmt: skip
    torch.manual_seed(1)
    trainer.fit(method, datamodule=module)
    file = folder / "last.ckpt"
    trainer.save_checkpoint(file)
    return SimpleNamespace(method=method, data=module, watch=watch, rows=watch.rows, file=file, trainer=trainer)


@pytest.fixture(scope="module")
def run(pairs: str, tmp_path_factory: pytest.TempPathFactory):
    """A finished run by method, trained once."""
    done: dict[type, SimpleNamespace] = {}

    def get(kind: type[Method]) -> SimpleNamespace:
        if kind not in done:
            done[kind] = fit(kind, pairs, tmp_path_factory.mktemp(kind.__name__), steps_of(kind))
        return done[kind]

    return get


@pytest.mark.parametrize("kind", CORE_OR_THIRD)
def test_learns_eight_pairs(kind, run, pairs, tmp_path):
    rows = run(kind).rows if steps_of(kind) == LONG else fit(kind, pairs, tmp_path).rows
    assert len(rows) == LONG
    assert all(value == value for row in rows for value in row.values()), "no NaN"
    first, last = rows[0], rows[-1]
    if kind is upo.methods.AuxiliaryOnly:  # learns from no preference; its first two steps warm up
        assert last["train/loss/auxiliary"] < 0.7 * rows[2]["train/loss/auxiliary"]
    elif "train/rewards/accuracies" in last:
        name = "train/loss/preference" if "train/loss/preference" in last else "train/loss"
        assert last[name] < (0.7 * first[name] if kind.__name__ in CORE else first[name])
        assert last["train/rewards/accuracies"] == 1.0
        assert last["train/rewards/margins"] > (0.5 if kind.__name__ in CORE else 0)
    else:
        assert last["train/loss"] < 0.5 * first["train/loss"]


@pytest.mark.parametrize("kind", METHODS)
def test_several_micro_batches_make_a_step(kind, run):
    done = run(kind)
    (step,) = done.data.train_dataloader()
    assert len(step.micro_batches) > 1 and step.counts["prompts"] == len(done.data.train)
    assert len(done.data.train) == 8 or kind.__name__ in DATA
    assert done.trainer.global_step == steps_of(kind)


@pytest.mark.parametrize("kind", METHODS)
def test_loss_before_the_first_update(kind, run):
    first = run(kind).rows[0]
    if kind.initial_loss is not None:
        name = "train/loss/preference" if "train/loss/preference" in first else "train/loss"
        assert first[name] == pytest.approx(kind.initial_loss, abs=1e-5)
        assert first["train/rewards/margins"] == pytest.approx(0, abs=1e-5)
    if "train/kl" in first:
        assert first["train/kl"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("kind", METHODS)
def test_only_policy_and_heads_learn_and_the_reference_stays(kind, run):
    done = run(kind)
    heads = HEADS.get(kind.__name__, {"policy."})
    everything = {name for name, _ in done.method.named_parameters()}
    assert {name.split(".")[0] + "." for name in everything} == heads
    assert done.watch.with_gradient == everything
    assert done.watch.moved - {name for name, _ in done.method.named_buffers()} == everything
    for name, tensor in reference_state(done.method).items():
        assert torch.equal(tensor, done.watch.reference[name])
        assert torch.equal(tensor, done.watch.before["policy." + name]), "a copy of the policy as it began"
    if done.method.reference is not None:
        assert all(p.grad is None and not p.requires_grad for p in done.method.reference.model.parameters())


@pytest.mark.parametrize("kind", METHODS)
def test_metrics_have_their_names(kind, run):
    assert set(run(kind).rows[-1]) == {f"train/{name}" for name in expected(kind) | {"loss", "grad_norm", "lr"}}


@pytest.mark.parametrize("kind", METHODS)
def test_a_checkpoint_is_plain_and_holds_no_reference(kind, run):
    done = run(kind)
    content = torch.load(done.file, weights_only=True)
    assert not [name for name in content["state_dict"] if "reference" in name]
    trained = sum(p.numel() * p.element_size() for p in done.method.parameters())
    texts = sum(map(len, content["policy_files"].values()))
    assert done.file.stat().st_size < 3.2 * trained + texts + 50_000, "parameters, AdamW's two moments, the tokenizer"
    model, tokenizer = model_from(content, done.file)
    for name, tensor in done.method.policy.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert tokenizer("hello there").input_ids == done.method.policy.tokenizer("hello there").input_ids


@pytest.mark.parametrize("kind", CORE_OR_SLOW)
def test_layouts_give_the_same_losses(kind, pairs, tmp_path):
    """At a rate at which rounding does not grow; micro-batches differ as well."""
    packed, padded = (fit(kind, pairs, tmp_path, 4, 1e-3, layout=layout).rows for layout in ("packed", "padded"))
    for a, b in zip(packed, padded, strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-4)
        assert a["train/grad_norm"] == pytest.approx(b["train/grad_norm"], rel=1e-3)
    assert packed[0]["train/loss"] != packed[-1]["train/loss"]


def test_updates_are_those_of_a_plain_loop(pairs, tmp_path):
    """DPO with SGD: an epoch of four steps in Lightning, two micro-batches each, against the same written out."""
    done = fit(upo.methods.DPO, pairs, tmp_path, 0, pairs_per_step=2, tokens_per_microbatch=1)
    method = done.method
    order = [[done.data.train.units[i] for i in plan.units] for plan in done.data.train_dataloader().sampler]
    assert list(map(len, order)) == [2, 2, 2, 2]
    policy, reference = method.policy, copy.deepcopy(method.policy)
    start = copy.deepcopy(policy.state_dict())
    expected = []
    for units in order:
        chosen, rejected = (
            torch.stack([sum_of(policy, u, k) - sum_of(reference, u, k).detach() for u in units]) for k in (0, 1)
        )
        loss = -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()
        policy.zero_grad()
        loss.backward()
        expected.append(loss.item())
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter -= 0.05 * parameter.grad
    end = copy.deepcopy(policy.state_dict())
    policy.load_state_dict(start)
    method.make_optimizer = lambda p: torch.optim.SGD(p, lr=0.05)
    method.make_scheduler = lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)
    watch, quiet = Watch(), {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", callbacks=[watch], **quiet)
    trainer.fit(method, datamodule=done.data)
    assert max(expected) - min(expected) > 1e-3
    assert [row["train/loss"] for row in watch.rows] == pytest.approx(expected, abs=1e-5)
    for name, tensor in policy.state_dict().items():
        torch.testing.assert_close(tensor, end[name], atol=1e-5, rtol=1e-4)
    assert max((end[name] - start[name]).abs().max() for name in end) > 1e-3


def sum_of(policy: Policy, unit: Unit, k: int) -> torch.Tensor:
    return plain_logps(policy, unit.prompt, unit.responses[k]).sum()


@pytest.mark.parametrize("kind", METHODS)
def test_validation_is_the_mean_over_everything_however_it_is_cut(kind, run):
    """Eight pairs in one step and in steps of three, three and two, whose responses differ in length."""
    done = run(kind)
    done.data.val, options = done.data.train, {"enable_checkpointing": False, "enable_progress_bar": False}
    values = []
    everything = done.data.pairs_per_step
    for done.data.pairs_per_step in (everything, 3):
        trainer = pl.Trainer(accelerator="cpu", logger=False, **options)
        values += trainer.validate(done.method, done.data, verbose=False)
    done.data.pairs_per_step = everything
    whole, cut = values
    assert set(whole) == {f"val/{name}" for name in expected(kind) | {"loss"}}
    of_steps = {n for n in whole if n.startswith(("val/kl", "val/advantages/"))}  # what belongs to a step
    if of_steps or issubclass(kind, CoupledLoss):
        of_steps |= {"val/loss", "val/loss/preference"}
    if kind is upo.methods.UPOShuffled:  # a permutation of each step's responses
        of_steps |= {"val/loss/auxiliary"}
    for name in set(whole) - of_steps:
        assert whole[name] == pytest.approx(cut[name], rel=1e-4), name
    if "val/rewards/accuracies" in whole:
        assert whole["val/rewards/accuracies"] == 1.0 or steps_of(kind) == SHORT
    elif "val/nll_per_token" in whole:
        assert whole["val/loss"] == pytest.approx(whole["val/nll_per_token"], rel=1e-5)


@pytest.mark.parametrize("kind", [x for x in METHODS if x.values[0].reward is not Method.reward])
def test_evaluation_knows_the_reward(kind, run):
    """By log-probs of its own, as `upo.evaluate` and `upo.evaluation.implicit` take them."""
    done = run(kind)
    method, data, units = done.method, done.data, done.data.train.units[:4]
    reference = method.reference and method.reference.load_model()
    known = log_probs(method.policy, reference, units, data, "")
    groups = [unit.groups[0] for unit in units]
    responses = collate_responses(groups, data.layout, row_tokens=data.tokens_per_microbatch, pad_id=0)
    with torch.no_grad():
        expected = method.reward(method.response_logps(responses, method.needs))
    torch.testing.assert_close(rewards(method, known, units, data), expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", METHODS)
def test_every_argument_is_documented(kind):
    for base in kind.__mro__:
        if issubclass(base, Method) and "__init__" in vars(base):
            text = inspect.getdoc(base.__init__) or ""
            for name, parameter in inspect.signature(base.__init__).parameters.items():
                if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    assert f"\n    {name}: " in text, f"{base.__name__}.__init__: `{name}` is not explained"
    assert kind.__doc__ and inspect.getmodule(kind).__doc__


@pytest.mark.parametrize("kind", METHODS)
def test_a_reference_is_asked_for_or_refused(kind):
    with pytest.raises(UserError, match="reference"):
        references = [] if kind.needs.reference is not None else [FrozenReference()]
        kind(Policy(path="somewhere"), *references, **OPTIONS.get(kind.__name__, {}))


@pytest.mark.parametrize("kind", CORE_OR_THIRD)
def test_resumed_in_the_midst_of_an_epoch_equals_uninterrupted(kind, pairs, tmp_path):
    """Bit for bit, what the method itself carries from step to step included."""
    options = {"source": SOURCES.get(kind.__name__, "hh"), "pairs_per_step": 3, "tokens_per_microbatch": 600}
    options |= {"rewards": {"length": Words()}, "rewards_cache": str(tmp_path / "cache"), "pairs": pairs, "steps": 5}
    whole = training.fit(make(kind), tmp_path / "whole", save_every=2, **options)
    saved = tmp_path / "whole" / "step=2.ckpt"
    late = training.fit(make(kind), tmp_path / "late", ckpt_path=str(saved), **options)
    assert late.watch.losses == {step: whole.watch.losses[step] for step in (2, 3, 4)}
    for (name, a), b in zip(whole.method.state_dict().items(), late.method.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("kind", CORE_OR_THIRD)
def test_two_ranks_and_their_micro_batches_add_up_to_one(kind, run, monkeypatch):
    """Loss and gradient of a step, whatever it needs to know of the rest before its first backward pass."""
    data = run(kind).data.train

    def share(rank: int, world_size: int, budget: int) -> list[torch.Tensor]:
        method = moved(kind)
        costs = [data.cost(i) for i in range(len(data))]
        options = {"units_per_step": len(data), "tokens_per_microbatch": budget, "shuffle": False, "seed": 0}
        (plan,) = StepSampler(costs, **options, rank=rank, world_size=world_size)
        step = data[plan]
        known = method.statistics(step)
        loss = sum(method.loss_of(batch, step, known, "train") for batch in step.micro_batches)
        return [loss.detach(), *torch.autograd.grad(loss, list(method.parameters()))]

    one = share(0, 1, 10_000)
    assert max(x.abs().max() for x in one[1:]) > 1e-3
    for a, *both in zip(one, *fake_ranks.on_ranks(lambda rank: share(rank, 2, 300), 2, monkeypatch), strict=True):
        torch.testing.assert_close(sum(both), a, rtol=1e-3, atol=1e-5 * max(1.0, a.abs().max().item()))


def moved(kind: type[Method]) -> Method:
    """A method whose policy differs from its reference."""
    method = make(kind)
    method.configure_model()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in method.policy.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return method


# ---- the loss as a function of log-probs -----------------------------------------------------------------------------

FAR = (-1.0, -1.0), (-1e-9, -1e-9), (-1.0, -1e4 - 1), (-1e4 - 1, -1.0), (-1e-9, -1e4), (-1e4, -1e-9), (-40.0, -42.0)
"""Log-probs under policy and reference: log-ratios of 0 and of +-1e4, and responses that are all but certain."""


@pytest.mark.parametrize("kind", CORE_OR_THIRD)
def test_far_out_the_loss_and_its_gradient_stay_finite(kind, run, monkeypatch):
    """Whatever stands beside what in a pair, a list or a step; also for responses of one token."""
    done = run(kind)
    monkeypatch.setattr(done.method, "value_warmup_steps", 0, raising=False)
    for tokens in (None, 1):
        step = made_up.one_step(done.method, done.data.train, tokens=tokens)
        n = len(step.micro_batches[0].responses.lengths)
        for seed in range(12):
            drawn = torch.randint(len(FAR), (n,), generator=torch.Generator().manual_seed(seed))
            logps, reference = torch.tensor(FAR)[drawn].unbind(1)
            logps = logps.clone().requires_grad_()
            loss = made_up.loss(done.method, step, logps, reference)
            (slope,) = torch.autograd.grad(loss, logps)
            assert loss.isfinite(), (tokens, seed)
            assert slope.isfinite().all(), (tokens, seed)
    done.method.train_means.reset()


@pytest.mark.parametrize("kind", [x for x in CORE_OR_THIRD if x.values[0].__name__ not in STOPPED])
def test_gradient_is_that_of_the_loss(kind, run, monkeypatch):
    """In float64, with the step's statistics as they are; one that was cut off, or runs where none should, shows."""
    done = run(kind)
    monkeypatch.setattr(done.method, "value_warmup_steps", 0, raising=False)
    step = made_up.one_step(done.method, done.data.train)
    n = len(step.micro_batches[0].responses.lengths)
    generator = torch.Generator().manual_seed(1)
    reference = -20 - 5 * torch.rand(n, generator=generator, dtype=torch.float64)
    logps = reference + 2 * torch.randn(n, generator=generator, dtype=torch.float64)
    known = made_up.statistics(done.method, step, logps, reference)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return made_up.loss(done.method, step, x, reference, known)

    assert torch.autograd.gradcheck(loss, logps.requires_grad_())
    assert torch.autograd.grad(loss(logps), logps)[0].abs().max() > 1e-5
    done.method.train_means.reset()


@pytest.mark.parametrize("kind", CORE_OR_THIRD)
def test_mixed_precision_starts_where_full_precision_does(kind, pairs, run, tmp_path):
    mixed, full = fit(kind, pairs, tmp_path, 1, precision="bf16-mixed").rows[0], run(kind).rows[0]
    assert mixed["train/loss"] == pytest.approx(full["train/loss"], rel=2e-2)
    assert mixed["train/grad_norm"] == pytest.approx(full["train/grad_norm"], rel=5e-2)


def test_a_precision_that_the_reference_would_not_share_is_refused(pairs, tmp_path):
    with pytest.raises(UserError, match=r"policy\.dtype"):
        fit(upo.methods.DPO, pairs, tmp_path, 1, precision="bf16-true")
