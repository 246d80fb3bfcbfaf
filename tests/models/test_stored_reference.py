"""A stored reference: the losses of a live one, each response computed once, and nothing that does not belong there."""

import threading
from pathlib import Path
from unittest.mock import Mock

import every_method
import pytest
import tiny
import torch
from attrs import evolve
from cases import case_of
from lightning.pytorch.plugins import HalfPrecision, MixedPrecision
from training import CONFIG, fit, flat, make, pairs_file

from upo.callbacks.reference_sync import ReferenceSync
from upo.data.steps import REFERENCE_LOGPS
from upo.data.units import Group
from upo.errors import UserError
from upo.methods import DPO, KTO
from upo.methods.common.needs import Needs
from upo.models import precompute
from upo.models.policy import Policy
from upo.models.reference import FrozenReference
from upo.models.store import LogpsStore
from upo.models.stored_reference import StoredLogps, StoredReference, tolerance, weights_hash

pytestmark = pytest.mark.turns(3)

ROWS = {DPO: 16, KTO: 32}
"""Responses of the eight pairs; KTO has a borrowed one to each."""

pairs = every_method.pairs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Responses of each forward pass of a reference."""
    counts: list[int] = []
    forward = Policy.forward

    def counting(self, responses, *args, **kwargs):
        if not any(p.requires_grad for p in self.parameters()):
            counts.append(len(responses.lengths))
        return forward(self, responses, *args, **kwargs)

    monkeypatch.setattr(Policy, "forward", counting)
    return counts


def stored(kind, folder: Path, **options):
    return make(kind, reference=StoredReference(folder=str(folder)), **options)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def store_of(folder: Path) -> LogpsStore:
    """The only store in the folder."""
    from safetensors import safe_open

    with safe_open(shards(folder)[0], framework="pt") as content:
        return LogpsStore(shards(folder)[0].parent, content.metadata()["fingerprint"])


# ---- the same values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DPO, KTO])
def test_losses_are_those_of_a_live_reference(kind, folder, tmp_path, computed):
    live = fit(make(kind), tmp_path, steps=10, validation=2)
    computed.clear()
    first = fit(stored(kind, folder), tmp_path, steps=10, validation=2)
    assert sum(computed) == ROWS[kind], "each response once, training and validation"
    assert list(first.watch.losses.values()) == pytest.approx(list(live.watch.losses.values()), abs=1e-5)
    assert first.watch.losses[9] < 0.9 * first.watch.losses[0]
    ours = first.trainer.validate(first.method, first.data, verbose=False)[0]
    assert sum(computed) == ROWS[kind]
    assert ours == pytest.approx(live.trainer.validate(live.method, live.data, verbose=False)[0], abs=1e-4)


@pytest.mark.parametrize("kind", [pytest.param(DPO, marks=pytest.mark.slow), KTO])
def test_a_second_run_computes_a_sample_only(kind, folder, tmp_path, computed, capsys):
    first = fit(stored(kind, folder), tmp_path)
    computed.clear()
    second = fit(stored(kind, folder), tmp_path)
    assert sum(computed) == precompute.SAMPLE
    assert second.watch.losses == first.watch.losses, "bit for bit"
    assert f"{ROWS[kind]} read, 0 computed" in capsys.readouterr().out


def test_the_padded_layout_reads_what_the_packed_one_wrote(folder, tmp_path, computed):
    first = fit(stored(DPO, folder), tmp_path)
    computed.clear()
    second = fit(stored(DPO, folder), tmp_path, layout="padded", tokens_per_microbatch=300)
    assert sum(computed) == precompute.SAMPLE
    assert list(second.watch.losses.values()) == pytest.approx(list(first.watch.losses.values()), abs=1e-4)


def test_more_data_and_other_partners_compute_only_what_is_new(folder, tmp_path, computed):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(Path(pairs_file(tmp_path)).read_text().splitlines(keepends=True)[:5]))
    fit(stored(DPO, folder), tmp_path, steps=1, pairs=str(few))
    assert sum(computed) == 10
    fit(stored(DPO, folder), tmp_path, steps=1)
    assert sum(computed) == 10 + 8 + 6
    computed.clear()
    fit(stored(KTO, folder), tmp_path, steps=1)
    assert sum(computed) == 8 + 16, "the borrowed ones"
    computed.clear()
    done = fit(stored(KTO, folder), tmp_path, steps=1, split_seed=5)
    other = {store_of(folder).key(row.prompt, r) for row in done.data.train.split.groups() for r in row.responses}
    assert sum(computed) > 8 and other <= store_of(folder).read(other).keys()


def test_a_resumed_run_still_measures_against_the_start(folder, tmp_path):
    whole = fit(stored(DPO, folder), tmp_path, steps=6)
    live = fit(make(DPO), tmp_path, steps=6)
    fit(stored(DPO, folder), tmp_path, steps=6, stop_at=5, save_every=3)
    late = fit(stored(DPO, folder), tmp_path, steps=6, ckpt_path=str(tmp_path / "step=3.ckpt"))
    assert late.watch.losses == {step: whole.watch.losses[step] for step in (3, 4, 5)}
    assert whole.watch.losses[5] == pytest.approx(live.watch.losses[5], abs=1e-5)


@pytest.mark.slow
def test_workers_and_double_precision(folder, tmp_path):
    policy = Policy(config=CONFIG, tokenizer="tiny.tokenizer", dtype="float64")
    live = fit(make(DPO, policy=policy), tmp_path, steps=4)
    policy = Policy(config=CONFIG, tokenizer="tiny.tokenizer", dtype="float64")
    done = fit(stored(DPO, folder, policy=policy), tmp_path, steps=4, workers=1)
    assert list(done.watch.losses.values()) == pytest.approx(list(live.watch.losses.values()), abs=1e-10)
    assert done.data.train.batch([0]).responses.reference_logps.dtype == torch.float64


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(*x.values, id=x.id, marks=x.marks or pytest.mark.slow)
        for x in every_method.CORE_OR_SIXTH
        if x.values[0].needs.reference is not None
    ],
)
def test_every_method_takes_it_or_refuses_it_in_a_sentence(kind, pairs, folder, tmp_path, monkeypatch):
    live = every_method.fit(kind, pairs, tmp_path, 3, 1e-3).rows
    monkeypatch.setattr(every_method, "FrozenReference", lambda: StoredReference(folder=str(folder)))
    if kind.needs.of_reference:
        with pytest.raises(UserError, match="of each token"):
            every_method.fit(kind, pairs, tmp_path, 3, 1e-3)
        return
    rows = every_method.fit(kind, pairs, tmp_path, 3, 1e-3).rows
    got, expected = ([r["train/loss"] for r in x] for x in (rows, live))
    if case_of(kind).kink_at_start:  # rounding picks a side
        assert got[0] == pytest.approx(expected[0], abs=1e-3)
        return
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-5)


# ---- the model -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("model"))
    made = tiny.policy()
    made.model.save_pretrained(path)
    made.tokenizer.save_pretrained(path)
    return path


def test_the_model_is_let_go_and_comes_back_for_evaluations(folder, tmp_path, model_folder):
    start = Policy(path=model_folder)
    start.build()
    options = {"max_length": 100, "overlong": ["truncate_prompt_left"]}
    done = fit(stored(DPO, folder, policy=Policy(path=model_folder)), tmp_path, steps=0, **options)
    reference = done.method.reference
    assert reference.source.model is None
    model = reference.load_model()
    assert torch.equal(flat(model), flat(start)) and reference.load_model() is model
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    reference.source.release()
    with torch.no_grad():
        start.model.lm_head.weight[0, 0] += 1
    start.model.save_pretrained(model_folder)
    for _ in range(2):
        with pytest.raises(UserError, match="has changed"):
            reference.load_model()


def test_another_model_as_reference(folder, tmp_path, model_folder):
    path = model_folder
    options = {"max_length": 100, "overlong": ["truncate_prompt_left"], "steps": 4}
    live = fit(make(DPO, reference=FrozenReference(path)), tmp_path, **options)
    done = fit(make(DPO, reference=StoredReference(path, str(folder))), tmp_path, **options)
    assert list(done.watch.losses.values()) == pytest.approx(list(live.watch.losses.values()), abs=1e-5)
    assert done.watch.losses[0] != pytest.approx(0.693147, abs=1e-3)
    exact = fit(make(DPO, reference=StoredReference(path, str(folder), "float64")), tmp_path, **options)
    assert list(exact.watch.losses.values()) == pytest.approx(list(live.watch.losses.values()), abs=1e-4)
    assert len({file.parent for file in shards(folder)}) == 2


def test_other_weights_have_a_store_of_their_own(folder, tmp_path, model_folder, computed):
    options = {"max_length": 100, "overlong": ["truncate_prompt_left"], "steps": 1}
    fit(stored(DPO, folder), tmp_path, **options)
    fit(make(DPO, reference=StoredReference(model_folder, str(folder))), tmp_path, **options)
    assert sum(computed) == 2 * ROWS[DPO], "of the first one's nothing was read or checked"
    assert len({file.parent for file in shards(folder)}) == 2


def test_everything_that_changes_a_log_prob_changes_the_hash():
    def hash_of(change=lambda model: None, **config):
        made = tiny.policy(**config)
        with torch.no_grad():
            change(made.model)
        return weights_hash(made)

    def one_bit(model):
        bits = model.model.layers[1].mlp.up_proj.weight.view(torch.int32)
        bits[3, 4] ^= 1

    def swapped(model):
        q, k = (getattr(model.model.layers[0].self_attn, n).weight for n in ("o_proj", "q_proj"))
        q.data, k.data = k.data.clone(), q.data.clone()

    same = [hash_of(), hash_of()]
    others = [
        hash_of(one_bit), hash_of(swapped), hash_of(seed=1), hash_of(dtype="bfloat16"),
        hash_of(rope_parameters={"rope_type": "default", "rope_theta": 500.0}),
    ]  # fmt: skip
    assert same[0] == same[1] and len({*same, *others}) == 1 + len(others)


# ---- what is on disk -------------------------------------------------------------------------------------------------


def test_keys_see_where_the_response_begins(tmp_path):
    ours, theirs = LogpsStore(tmp_path, "a"), LogpsStore(tmp_path, "b")
    keys = [ours.key(*x) for x in [([1, 2], [3]), ([1], [2, 3]), ([1, 2], [3, 0]), ([2, 1], [3]), ([1, 2], [])]]
    assert len({*keys, theirs.key([1, 2], [3])}) == 6
    assert ours.key((1, 2), (3,)) == keys[0]


def test_values_survive_exactly_and_partial_files_are_no_shards(tmp_path):
    store = LogpsStore(tmp_path / "a", "x")
    values = {store.key([1], [i]): -(10.0**i) / 3 for i in range(20)}
    store.write({})
    store.write(dict(list(values.items())[:7]))
    store.write(values | {store.key([1], [0]): -1.0})
    (store.folder / ".0-torn.partial").write_bytes(shards(tmp_path)[0].read_bytes()[:50])
    assert store.read(values.keys()) == values, "the first writer counts"
    assert store.read(list(values)[:2]) == dict(list(values.items())[:2])


def killed_after(monkeypatch, forwards: int) -> None:
    """The reference fails at that forward pass."""
    forward, count = Policy.forward, [0]

    def failing(self, *args, **kwargs):
        count[0] += 1
        if count[0] > forwards:
            raise RuntimeError("killed")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Policy, "forward", failing)


def test_an_interrupted_run_is_continued(folder, tmp_path, monkeypatch, computed):
    monkeypatch.setattr(precompute, "SECONDS", 0.0)
    one_by_one = {"tokens_per_microbatch": 1}
    with monkeypatch.context() as patch:
        killed_after(patch, 3)
        fit(stored(KTO, folder), tmp_path, **one_by_one)
    assert len(shards(folder)) == 3, "a file a forward pass"
    before = sum(computed)
    computed.clear()
    done = fit(stored(KTO, folder), tmp_path, **one_by_one)
    assert sum(computed) - min(before, precompute.SAMPLE) == ROWS[KTO] - before
    fresh = fit(stored(KTO, tmp_path / "fresh"), tmp_path, **one_by_one)
    assert done.watch.losses == fresh.watch.losses


@pytest.mark.parametrize("error", [0.01, float("nan")])
def test_wrong_values_are_refused(folder, tmp_path, error):
    fit(stored(DPO, folder), tmp_path, steps=1)
    store = store_of(folder)
    values = dict(store._shard(shards(folder)[0]))
    shards(folder)[0].unlink()
    store.write({key: value + error for key, value in values.items()})
    with pytest.raises(UserError, match=r"should be -.*delete") as refusal:
        fit(stored(DPO, folder), tmp_path, steps=1)
    assert str(store.folder) in str(refusal.value)


def test_broken_files_are_refused(folder, tmp_path):
    fit(stored(DPO, folder), tmp_path, steps=1)
    (file,) = shards(folder)
    good = file.read_bytes()
    other = bytearray(good)
    other[-3] ^= 1  # the values stand at the end
    swapped = good.replace(b"float32 cpu", b"float64 cpu")
    assert swapped != good
    for broken, word in ((good[:-5], "broken"), (b"", "broken"), (bytes(other), "changed"), (swapped, "another model")):
        file.write_bytes(broken)
        with pytest.raises(UserError, match=word) as refusal:
            fit(stored(DPO, folder), tmp_path, steps=1)
        assert "delete that folder" in str(refusal.value) and str(file.parent) in str(refusal.value)


def test_a_log_prob_that_is_not_finite_is_refused(folder, tmp_path, monkeypatch):
    forward = Policy.forward
    monkeypatch.setattr(Policy, "forward", lambda self, *x: {"logps": forward(self, *x)["logps"] * float("nan")})
    with pytest.raises(UserError, match="not finite"):
        fit(stored(DPO, folder), tmp_path, steps=1)
    assert not shards(folder)


def test_one_run_fills_and_the_others_wait(tmp_path):
    store, order = LogpsStore(tmp_path, "x"), []
    agree = bool

    def second():
        with LogpsStore(tmp_path, "x").locked(agree, leader=True):
            order.append("second")

    with store.locked(agree, leader=True):
        other = threading.Thread(target=second)
        other.start()
        other.join(0.3)
        order.append("first")
    other.join(10)
    assert order == ["first", "second"]


# ---- never silently wrong --------------------------------------------------------------------------------------------


def test_every_rank_takes_what_rank_0_found(tmp_path):
    """Another rank may see files that rank 0 does not see yet, and would then skip its share of the work."""
    work, store = precompute.Precompute.__new__(precompute.Precompute), LogpsStore(tmp_path, "x")
    keys = [store.key([1], [i]) for i in range(2)]
    store.write(dict.fromkeys(keys, -1.0))
    work.store, work.wanted, work.trainer = store, dict.fromkeys(keys), Mock(is_global_zero=False)
    work.trainer.strategy.broadcast = lambda found: {keys[0]: -1.0}
    assert work._stored() == {keys[0]: -1.0}


def test_what_is_not_stored_is_an_error(folder, tmp_path):
    done = fit(stored(KTO, folder), tmp_path, steps=1)
    split = done.data.train
    batch = split.batch([0, 1])
    assert batch.responses.reference_logps is not None and batch.mismatched.reference_logps is not None
    find = done.method.reference.stored(done.trainer, done.data.round)
    assert find(tuple(split.split.groups())).isfinite().all()
    with pytest.raises(UserError, match="not in the reference store"):
        find([Group([5, 6], ([7, 8],))])
    with pytest.raises(UserError, match="has log-probs of the data set only"):
        done.method.response_logps(evolve(batch.responses, reference_logps=None))


def test_the_next_method_on_the_same_data_has_its_own_reference(folder, tmp_path):
    import lightning.pytorch as pl

    done = fit(stored(DPO, folder), tmp_path, steps=1)
    assert REFERENCE_LOGPS in done.data.train.split.columns and REFERENCE_LOGPS not in done.data.read.train.columns
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    pl.Trainer(max_steps=0, accelerator="cpu", **options).fit(make(DPO), datamodule=done.data)
    assert done.data.train.batch([0]).responses.reference_logps is None


def test_a_reference_that_moves_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"moves the reference; set `model\.reference: FrozenReference`"):
        fit(stored(DPO, folder), tmp_path, ReferenceSync(), steps=1)
    assert not folder.exists()


TOKENWISE = Needs(reference={"token_logps"}), Needs(policy={"kl"}), Needs(policy={"reverse_kl"})


@pytest.mark.parametrize("needs", TOKENWISE)
def test_methods_that_need_tokens_of_the_reference_are_refused(needs, folder):
    kind = type("Tokenwise", (DPO,), {"needs": DPO.needs | needs})
    with pytest.raises(UserError, match=r"Tokenwise needs .* of each token.*FrozenReference"):
        stored(kind, folder)
    assert not folder.exists()


def test_values_are_never_cast_to_half_precision(folder, tmp_path):
    done = fit(stored(KTO, folder), tmp_path, steps=1)
    split = done.data.train
    for plugin in (HalfPrecision("bf16-true"), MixedPrecision("bf16-mixed", "cpu")):
        batch = plugin.convert_input(split.batch([0, 1, 2]))
        own, borrowed = zip(*(unit.groups for unit in split.units), strict=True)
        for responses, rows in ((batch.responses, own), (batch.mismatched, borrowed)):
            assert responses.reference_logps.dtype == torch.float32
            exact = done.method.reference.stored(done.trainer, done.data.round)(rows[:3])
            assert torch.equal(responses.reference_logps, exact)


def test_half_precision_is_a_store_of_its_own_and_says_so(folder, tmp_path):
    fit(stored(DPO, folder), tmp_path, steps=1)
    policy = Policy(config=CONFIG, tokenizer="tiny.tokenizer", dtype="bfloat16")
    with pytest.warns(UserWarning, match="up to 1 % of a sum"):
        done = fit(stored(DPO, folder, policy=policy), tmp_path, steps=2)
    assert done.watch.losses[0] == pytest.approx(0.693, abs=0.05)
    assert done.data.train.batch([0]).responses.reference_logps.dtype == torch.float32
    assert len({file.parent for file in shards(folder)}) == 2


def test_tolerances():
    assert tolerance("float32 cpu highest") == (1e-6, 1e-4) and tolerance("float64 cuda highest") == (1e-10, 1e-10)
    assert tolerance("float32 cuda high") == tolerance("bfloat16 cuda highest") == (2e-2, 0.5)


def test_lookup_keeps_the_order_of_responses(tmp_path):
    store = LogpsStore(tmp_path, "x")
    work = tiny.units([(3, [2, 4]), (5, [1])])
    keys = [store.key(u.prompt, r) for u in work for r in u.responses]
    lookup = StoredLogps(store, dict(zip(reversed(keys), [-3.0, -2.0, -1.0], strict=True)), torch.float32)
    groups = tiny.groups_of(work)
    assert lookup(groups).tolist() == [-1.0, -2.0, -3.0] and lookup(groups[1:]).tolist() == [-3.0]
