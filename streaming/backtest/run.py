"""A backtest over all cores: which process judges what, how far they are, and what is known when somebody interrupts them."""

import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from inference.errors import DriftloopError, ServiceError, SettingsError
from streaming.backtest.job import Job, Question, Tell
from streaming.backtest.progress import bar
from streaming.backtest.result import Ridden

Work = Callable[[Question, Job, Tell, Callable[[], bool]], Ridden]
"""One job, from its start to its end or until it is told to stop; can be sent to another process."""

_WAIT = 0.2
_WAITING = 64
"""Messages of all processes that may wait to be shown; then those wait."""


def jobs_of(models: Sequence[str], tried: int, workers: int) -> list[Job]:
    """At most so many processes: by models where there are enough of them, else by tried settings.

    Each reads and decodes the source for itself, once for all that it judges; what is configured is judged beside the tried settings.
    """
    numbers = range(1, tried + 1)
    if len(models) >= workers or not tried:
        count = min(workers, len(models))
        return [Job(tuple(models[place::count]), tuple(numbers), not place) for place in range(count)]
    count = min(workers, tried)
    return [Job(tuple(models), tuple(numbers[place::count]), not place) for place in range(count)]


def run(
    question: Question,
    models: Sequence[str],
    work: Work,
    *,
    say: Callable[[str], None],
    workers: int | None = None,
    total: int | None = None,
) -> list[Ridden]:
    """What every process has to tell, the first one's first. SIGINT stops them all where they are: then `interrupted` is set."""
    jobs = jobs_of(models, len(question.settings) - 1, max(1, workers or os.cpu_count() or 1))
    with _interruptible() as stop, bar(total * len(jobs) if total else None) as shown:
        done = [0] * len(jobs)

        def told(place: int, events: int, lines: Sequence[str]) -> None:
            done[place] = events
            for line in lines:
                (shown.say if shown else say)(line)
            if shown:
                shown.at(sum(done))

        if len(jobs) == 1:
            return [work(question, jobs[0], lambda events, lines: told(0, events, lines), stop.is_set)]
        return _in_processes(question, jobs, work, told, stop)


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that what is known can be told; a second one ends the process as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def interrupted(*_: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _in_processes(
    question: Question, jobs: Sequence[Job], work: Work, told: Callable[[int, int, Sequence[str]], None], stop: threading.Event
) -> list[Ridden]:
    context = get_context("spawn")
    messages, stopping = context.Queue(_WAITING), context.Event()
    processes = [
        context.Process(target=_process, args=(work, question, job, place, messages, stopping), daemon=True)
        for place, job in enumerate(jobs)
    ]
    for process in processes:
        process.start()
    found: dict[int, Ridden] = {}
    try:
        while len(found) < len(jobs):
            if stop.is_set():
                stopping.set()
            try:
                place, kind, content = messages.get(timeout=_WAIT)
            except queue.Empty:
                _check_alive(processes, found)
                continue
            if kind == "failed":
                raise SettingsError(content) if isinstance(content, tuple) else ServiceError(content)
            if kind == "done":
                found[place] = content
            else:
                told(place, *content)
    finally:
        for process in processes:
            if process.pid and len(found) < len(jobs):
                process.terminate()
            process.join()
    return [found[place] for place in range(len(jobs))]


def _check_alive(processes: Sequence[Any], found: dict[int, Ridden]) -> None:
    dead = [process.exitcode for place, process in enumerate(processes) if place not in found and process.exitcode is not None]
    if dead:
        raise ServiceError(f"a process of the replay ended with exit code {dead[0]}, without a word; was it killed for its memory?")


def _process(work: Work, question: Question, job: Job, place: int, messages: Any, stopping: Any) -> None:
    """One process: what happens in it is told to the one that started it."""
    # The terminal sends Ctrl-C to all of us; the one that started us says what is to be done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = work(question, job, lambda events, lines: messages.put((place, "told", (events, list(lines)))), stopping.is_set)
        messages.put((place, "done", done))
    except SettingsError as error:
        messages.put((place, "failed", error.problems))
    except DriftloopError as error:
        messages.put((place, "failed", str(error)))
    except Exception:  # noqa: BLE001 - it is raised where it can be seen
        messages.put((place, "failed", f"a process of the replay failed:\n{traceback.format_exc()}"))
