"""Rewards of a data set: every distinct text once, and a cache that survives what can happen to it."""

import json
import os
import sys

import pytest

from upo.data.example import Example, Response
from upo.errors import UserError
from upo.rewards import Reward, Words, annotate


class Spy(Reward):
    """The number of characters; remembers what it was asked."""

    def __init__(self, version="1"):
        self.seen, self.version = [], version

    def __call__(self, prompts, responses):
        self.seen += [(str(p), y) for p, y in zip(prompts, responses, strict=True)]
        return [len(y) / 3 for y in responses]

    def fingerprint(self):
        return f"Spy {self.version}"


def example(prompt, *texts):
    return Example(prompt, tuple(Response(t, rank=float(i), rewards={"old": 1.0}) for i, t in enumerate(texts)))


CHAT = ({"role": "user", "content": "Hi"},)
EXAMPLES = [
    example("Hi", "a", "bb"),
    example("Hi", "bb", "ccc"),
    example(CHAT, "a"),
    example("user\x1fHi", "a"),
]


def values(examples):
    return [[r.rewards["spy"] for r in e.responses] for e in examples]


def test_each_distinct_text_once_and_everything_else_kept(tmp_path):
    spy = Spy()
    done = annotate(EXAMPLES, {"spy": spy, "words": Words()}, tmp_path)
    assert values(done) == [[1 / 3, 2 / 3], [2 / 3, 1.0], [1 / 3], [1 / 3]]
    assert len(spy.seen) == len(set(spy.seen)) == 5  # equal text under another prompt is another text
    assert done[0].responses[1].rewards == {"old": 1.0, "spy": 2 / 3, "words": 1.0}
    assert done[0].responses[1].rank == 1.0 and EXAMPLES[0].responses[1].rewards == {"old": 1.0}


def test_cache_is_hit_and_partly_reused(tmp_path):
    first = annotate(EXAMPLES, {"spy": Spy()}, tmp_path)
    again, more, changed = Spy(), Spy(), Spy("2")
    assert annotate(EXAMPLES, {"spy": again}, tmp_path) == first and again.seen == []
    annotate([*EXAMPLES, example("New", "a")], {"other name": more}, tmp_path)
    assert more.seen == [("New", "a")]
    annotate(EXAMPLES, {"spy": changed}, tmp_path)
    assert len(changed.seen) == 5
    without = Spy()
    annotate(EXAMPLES, {"spy": without})
    assert len(without.seen) == 5


@pytest.mark.turns(2)
def test_cache_survives_a_truncated_file(tmp_path):
    whole = annotate(EXAMPLES, {"spy": Spy()}, tmp_path)
    (cache,) = tmp_path.iterdir()
    content = cache.read_bytes()
    for size in range(len(content)):
        cache.write_bytes(content[:size])
        spy = Spy()
        assert annotate(EXAMPLES, {"spy": spy}, tmp_path) == whole
        last = Spy()
        annotate(EXAMPLES, {"spy": last}, tmp_path)
        assert last.seen == [], f"cut at {size}"
    cache.write_bytes(b'\xff\xfe\n["a"]\n3\n{"a": 1}\n["k", "v"]\n' + content)
    spy = Spy()
    assert annotate(EXAMPLES, {"spy": spy}, tmp_path) == whole and spy.seen == []


def test_a_killed_run_keeps_the_chunks_it_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["upo.data.annotate"], "CHUNK", 2)

    class Dies(Spy):
        def __call__(self, prompts, responses):
            if len(self.seen) == 4:
                raise KeyboardInterrupt
            return super().__call__(prompts, responses)

    with pytest.raises(KeyboardInterrupt):
        annotate(EXAMPLES, {"spy": Dies()}, tmp_path)
    # Dies and Spy are two classes with one fingerprint; the file carries the class name for people
    (cache,) = tmp_path.iterdir()
    cache.rename(tmp_path / cache.name.replace("Dies", "Spy"))
    spy = Spy()
    annotate(EXAMPLES, {"spy": spy}, tmp_path)
    assert len(spy.seen) == 1


def test_processes_that_write_at_once(tmp_path):
    """Four processes, overlapping texts, one file: no line is lost or mixed."""
    sets = [[example(f"p{i}", "x" * (i % 50)) for i in range(n * 500, n * 500 + 1500)] for n in range(4)]
    children = []
    for examples in sets:
        pid = os.fork()
        if pid == 0:
            try:
                annotate(examples, {"spy": Spy()}, tmp_path)
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0, 0]
    spy = Spy()
    done = annotate([e for s in sets for e in s], {"spy": spy}, tmp_path)
    assert spy.seen == []
    assert all(r.rewards["spy"] == len(r.text) / 3 for e in done for r in e.responses)


@pytest.mark.parametrize("bad", [[1.0], [float("nan")] * 5, None, [[1.0]] * 5])
def test_wrong_values_name_the_reward_and_are_not_cached(tmp_path, bad):
    spy = Spy()
    spy.__class__ = type("Bad", (Spy,), {"__call__": lambda self, prompts, responses: bad})
    with pytest.raises(UserError, match="reward `taste` gave"):
        annotate(EXAMPLES, {"taste": spy}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_do(tmp_path):
    assert annotate([], {"spy": Spy()}, tmp_path) == []
    assert annotate(EXAMPLES, {}, tmp_path) == EXAMPLES


def test_a_changed_value_is_measured_again(tmp_path, caplog):
    """Of a line with a sum; lines of earlier versions have none and count."""
    whole = annotate(EXAMPLES, {"spy": Spy()}, tmp_path)
    (cache,) = tmp_path.iterdir()
    lines = [json.loads(line) for line in cache.read_text().splitlines() if line]
    assert {len(line) for line in lines} == {3}
    place = cache.read_bytes().index(b"0.3333")
    content = bytearray(cache.read_bytes())
    content[place + 2] ^= 1  # 0.2333
    cache.write_bytes(content)
    spy = Spy()
    assert annotate(EXAMPLES, {"spy": spy}, tmp_path) == whole and len(spy.seen) == 1
    assert "1 values were changed" in caplog.text
    again = Spy()
    assert annotate(EXAMPLES, {"spy": again}, tmp_path) == whole and again.seen == []
    old = "".join(f"{json.dumps([key, 5.0])}\n" for key, *_ in lines)
    cache.write_text(old)
    earlier = Spy()
    assert values(annotate(EXAMPLES, {"spy": earlier}, tmp_path))[0] == [5.0, 5.0] and earlier.seen == []


@pytest.mark.parametrize("bit", range(8))
def test_no_flipped_bit_changes_a_value(tmp_path, bit):
    """Anywhere in the file: the value is the same, or measured again."""
    example_ = [example("Hi", "abcd")]
    whole = annotate(example_, {"spy": Spy()}, tmp_path)
    (cache,) = tmp_path.iterdir()
    content = cache.read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        cache.write_bytes(flipped)
        assert annotate(example_, {"spy": Spy()}, tmp_path) == whole
