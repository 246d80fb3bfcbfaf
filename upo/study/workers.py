"""Runs as processes that are forked from one warm one, and what they do there.

Importing torch, Lightning and transformers costs more CPU time than a small run, so that is done once, by
multiprocessing's fork server. Each run still is a process of its own, with its own random state, signals and exit code.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from attrs import frozen

GRACE = 60.0
"""Seconds that a process has to save a checkpoint when it is told to stop."""

BEGUN = "==== begun "
"""Start of the line that separates the attempts in a log."""

_context = multiprocessing.get_context("forkserver")


@frozen
class Task:
    """A function and its arguments, to be called in a process of its own."""

    name: str
    function: Callable[..., None]
    args: tuple[Any, ...]
    log: Path | None = None
    """File that what it prints is appended to; None is the terminal."""


def run_tasks(
    tasks: Sequence[Task],
    jobs: int,
    begun: Callable[[Task], None] = lambda task: None,
    ended: Callable[[Task, int, float], None] = lambda task, code, seconds: None,
) -> None:
    """Runs tasks in their order, at most `jobs` at a time; one that fails does not stop the others.

    Args:
        begun: called with each task that starts.
        ended: called with a task, its exit code (minus the signal that killed it) and its seconds.
    """
    _context.set_forkserver_preload(["upo.study.warm"])
    waiting, running = list(reversed(tasks)), {}
    with _terminated_like_interrupted():
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    task = waiting.pop()
                    process = _context.Process(target=_enter, args=(task, os.getcwd(), dict(os.environ), jobs > 1))
                    process.start()
                    running[process.sentinel] = task, process, time.monotonic()
                    begun(task)
                for sentinel in wait(list(running)):
                    task, process, start = running.pop(sentinel)  # type: ignore[call-overload]
                    process.join()
                    ended(task, process.exitcode, time.monotonic() - start)
        finally:
            _stop([process for _, process, _ in running.values()])


def answer(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns that is called in a warm process; what it prints reaches the terminal.

    Raises:
        SystemExit: it ended otherwise; with its exit code.
    """
    receiver, sender = _context.Pipe(duplex=False)
    codes: list[int] = []
    with receiver:
        task = Task(function.__name__, _send, (sender, function, args))
        results: list[Any] = []
        thread = threading.Thread(target=lambda: _receive(receiver, results))
        thread.start()
        run_tasks([task], 1, begun=lambda _: sender.close(), ended=lambda _, code, __: codes.append(code))
        thread.join()
    if codes[0] or not results:
        raise SystemExit(codes[0] or 1)
    return results[0]


def _receive(receiver: Any, results: list[Any]) -> None:
    with contextlib.suppress(EOFError):
        results.append(receiver.recv())


def _send(sender: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    sender.send(function(*args))
    sender.close()


def _stop(processes: Sequence[Any]) -> None:
    """SIGTERM, upon which a run saves a checkpoint; what does not end is killed."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0.1))
        if process.is_alive():
            process.kill()


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM raises as Ctrl-C does, so that the processes are stopped and what happened is written down."""

    def stop(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- in the forked process -------------------------------------------------------------------------------------------


def _enter(task: Task, folder: str, env: Mapping[str, str], crowded: bool) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    if task.log is not None:
        task.log.parent.mkdir(parents=True, exist_ok=True)
        out = os.open(task.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.close(out)
        print(f"{BEGUN}{time.strftime('%Y-%m-%d %H:%M:%S')}", flush=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = ["upo.fit"]
    if crowded:
        import torch

        torch.set_num_threads(1)
    code = 1
    try:
        task.function(*task.args)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    finally:
        if (wandb := sys.modules.get("wandb")) is not None:  # its hook at the exit of an interpreter: a fork has none
            wandb.finish(exit_code=code)
            wandb.teardown(exit_code=code)


def _end_with_parent() -> None:
    """A run must not outlive its study, which may be started again: it saves a checkpoint and ends."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
