"""Killed, stopped, joined by others: the watchers together say what an undisturbed one says, and start each run once."""

import random
import time

import pytest
from watchers import Loop, make_topic

from streaming.testing import poll_until


@pytest.fixture
def loop(request, tmp_path):
    """A loop on a topic of a real Kafka."""
    bootstrap = request.getfixturevalue("kafka")
    made = Loop(tmp_path, f"kafka://{bootstrap}/{make_topic(bootstrap)}", **getattr(request, "param", {}))
    yield made
    made.close()


def settle(loop):
    loop.end_traffic()
    caught_up = poll_until(loop.caught_up, timeout=180)
    assert caught_up, [(loop.status(name), loop.log_of(name)) for name in loop.processes]
    for name in [*loop.processes]:
        loop.stop(name)


@pytest.mark.slow
def test_a_watcher_that_is_killed_over_and_over_says_what_an_undisturbed_one_says(loop, rounds):
    rng = random.Random(11)
    loop.begin()
    loop.start()
    for _ in range(rounds):
        # From while it still starts and loads to well into its work.
        time.sleep(rng.uniform(0.5, 7.0))
        assert loop.alive() == {"a": True}, loop.log_of("a")
        loop.kill()
        loop.start()
    # On a busy machine some of them come only now.
    assert poll_until(lambda: len(loop.kubeflow.created) >= rounds // 2, timeout=180), loop.log_of("a")
    settle(loop)
    runs, outcomes = loop.check()
    print(f"{rounds} kills, {loop.sent} events, {outcomes} outcomes, {runs} runs, {len(loop.repeated)} messages repeated")
    assert runs >= rounds // 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "loop", [{"static": False}, {"static": False, "client": "librdkafka"}], indirect=True, ids=["kafka-python", "librdkafka"]
)
def test_watchers_that_join_and_leave_say_together_what_one_says(loop):
    loop.begin()
    loop.start("a")
    assert poll_until(lambda: len(loop.status("a").get("positions", {})) == 4, timeout=120), loop.log_of("a")
    loop.start("b")
    assert poll_until(lambda: len(loop.status("b").get("positions", {})) == 2, timeout=120), loop.log_of("b")
    assert poll_until(lambda: len(loop.status("a").get("positions", {})) == 2, timeout=120), loop.log_of("a")
    loop.start("c")
    assert poll_until(lambda: loop.status("c").get("positions"), timeout=120), loop.log_of("c")
    time.sleep(2)
    loop.kill("a")
    assert poll_until(lambda: sum(len(loop.status(name).get("positions", {})) for name in "bc") == 4, timeout=120), loop.log_of("b")
    loop.start("a")
    assert poll_until(lambda: loop.status("a").get("positions"), timeout=120), loop.log_of("a")
    time.sleep(2)
    loop.stop("b")
    time.sleep(2)
    loop.kill("c")
    loop.start("c")
    time.sleep(3)
    assert poll_until(lambda: len(loop.kubeflow.created) >= 8, timeout=120), loop.log_of("c")
    settle(loop)
    runs, outcomes = loop.check()
    print(f"{loop.sent} events, {outcomes} outcomes, {runs} runs, {len(loop.repeated)} messages repeated")
    assert runs >= 8
