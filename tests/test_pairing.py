"""Requests and responses joined: any order, duplicates, reused ids, orphans, bounds, and the recording of KServe's own logger."""

import base64
import gzip
import json
import random
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from inference.event import LABEL, REQUEST, RESPONSE, Event, from_http
from inference.log import Record
from inference.pairing import ANNOTATION, MAX_SAME_ID, Counts, Identities, Pair, Pairing

RECORDING = Path(__file__).parent / "recordings" / "kserve-logger-all.jsonl.gz"


def half(kind: str, id_: str, *, at: str = "", source: str = "pod", data: bytes = b"", model: str = "iris", **extensions: str) -> Event:
    """`at` given as seconds is a ce-time as KServe 0.18 and later state it, with ce-recordedtime beside it."""
    if at:
        extensions["recordedtime"] = "2026-11-23T11:00:00Z"
    time = f"2026-11-23T10:11:{at}Z" if at else ""
    return Event(id_, source, kind, time, extensions={"namespace": "default", "inferenceservicename": model, **extensions}, data=data)


def fed(pairing: Pairing, events: list[Event], *, step: float = 0.0) -> list[Pair]:
    offsets = count()
    records = [Record(0, offset, offset * step, event) for offset, event in zip(offsets, events, strict=False)]
    return [pair for record in records if (pair := pairing.add(record))]


def places(pairs: list[Pair]) -> list[tuple[int, int]]:
    return [(pair.request.offset, pair.response.offset) for pair in pairs]


def test_the_halves_of_a_prediction_pair_in_either_order() -> None:
    pairing = Pairing()
    pairs = fed(pairing, [half(REQUEST, "a"), half(RESPONSE, "b"), half(RESPONSE, "a"), half(REQUEST, "b")])
    assert places(pairs) == [(0, 2), (3, 1)]
    assert [(pair.id, pair.source, pair.completed_by.offset) for pair in pairs] == [("a", "pod", 2), ("b", "pod", 3)]
    assert pairing.counts == Counts(2, 0, 0, 0, 0, 0)
    assert pairing.counts.as_dict()["paired"] == 2


def test_another_source_model_or_id_is_another_prediction() -> None:
    pairing = Pairing()
    others = [half(RESPONSE, "a", source="other"), half(RESPONSE, "b"), half(RESPONSE, "a", model="other")]
    assert fed(pairing, [half(REQUEST, "a"), *others]) == []
    assert pairing.counts == Counts(0, 0, 0, 0, 1, 3)


def test_identities_are_not_mixed_up_by_what_stands_in_them() -> None:
    pairing = Pairing()
    fed(pairing, [half(REQUEST, "b", source="a\x1f"), half(REQUEST, "\x1fb", source="a"), half(REQUEST, "', 'b", source="a")])
    assert pairing.counts == Counts(0, 0, 0, 0, 3, 0)


def test_only_requests_and_responses_are_taken() -> None:
    with pytest.raises(ValueError, match="another half"):
        Pairing().add(Record(0, 0, 0.0, half(LABEL, "a")))


@pytest.mark.parametrize("options", [{"wait": 0}, {"capacity": 0}, {"horizon": 0}, {"capacity_bytes": 0}])
def test_bounds_of_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Pairing(**options)


# Duplicates and reused ids


def test_a_repeated_half_is_counted_and_changes_nothing() -> None:
    pairing = Pairing()
    request, response = half(REQUEST, "a", at="01"), half(RESPONSE, "a", at="02")
    assert places(fed(pairing, [request, request, response, response, request])) == [(0, 2)]
    assert pairing.counts == Counts(1, 3, 0, 0, 0, 0)


def test_the_same_id_at_another_time_is_a_new_prediction() -> None:
    pairing = Pairing()
    events = [half(kind, "a", at=f"0{at}") for kind, at in ((REQUEST, 1), (RESPONSE, 2), (REQUEST, 3), (RESPONSE, 4))]
    assert places(fed(pairing, events)) == [(0, 1), (2, 3)]
    assert pairing.counts == Counts(2, 0, 0, 0, 0, 0)


def test_a_repeat_is_known_for_as_long_as_the_horizon() -> None:
    request, response = half(REQUEST, "a"), half(RESPONSE, "a")
    others = [half(REQUEST, f"{number}") for number in range(8)]
    within, beyond = Pairing(horizon=10), Pairing(horizon=10)
    fed(within, [request, response, *others, request])
    assert (within.counts.duplicates, within.counts.waiting_requests) == (1, 8)
    fed(beyond, [request, response, *others, half(REQUEST, "8"), request])
    assert (beyond.counts.duplicates, beyond.counts.waiting_requests) == (0, 10)


def test_a_client_that_reuses_its_id_is_paired_by_time_and_a_lost_half_shifts_nothing() -> None:
    def paired(*times: tuple[str, str]) -> list[tuple[int, int]]:
        return places(fed(Pairing(), [half(kind, "a", at=at) for kind, at in times]))

    unanswered = ((REQUEST, "01"), (REQUEST, "02"), (RESPONSE, "03"), (REQUEST, "04"), (RESPONSE, "05"))
    assert paired(*unanswered) == [(1, 2), (3, 4)]
    request_lost = ((RESPONSE, "01"), (REQUEST, "02"), (RESPONSE, "03"), (REQUEST, "04"), (RESPONSE, "05"))
    assert paired(*request_lost) == [(1, 2), (3, 4)]


def test_a_response_from_before_the_request_is_not_its_own() -> None:
    pairing = Pairing()
    events = [half(RESPONSE, "a", at="01"), half(REQUEST, "a", at="02"), half(RESPONSE, "a", at="03"), half(REQUEST, "a", at="00")]
    assert places(fed(pairing, events)) == [(1, 2), (3, 0)]


def test_of_several_responses_the_first_after_the_request_is_its_own() -> None:
    pairing = Pairing()
    events = [half(RESPONSE, "a", at=at) for at in ("09", "05.25", "05.125", "05")]
    assert places(fed(pairing, [*events, half(REQUEST, "a", at="05.1")])) == [(4, 2)]


def test_go_times_without_trailing_zeros_are_in_order() -> None:
    pairing = Pairing()
    requests = [half(REQUEST, "a", at=at) for at in ("36", "36.9452", "36.945263093", "36.95")]
    assert places(fed(pairing, [*requests, half(RESPONSE, "a", at="36.9453")])) == [(2, 4)]


def test_before_kserve_018_send_times_do_not_keep_halves_apart() -> None:
    request, response = half(REQUEST, "a"), half(RESPONSE, "a")
    request = Event("a", "pod", REQUEST, "2026-11-23T10:11:02Z", extensions=request.extensions)
    response = Event("a", "pod", RESPONSE, "2026-11-23T10:11:01Z", extensions=response.extensions)
    assert places(fed(Pairing(), [request, response])) == [(0, 1)]


def test_halves_of_one_id_wait_in_bounded_number() -> None:
    pairing = Pairing()
    fed(pairing, [half(REQUEST, "a", at=f"{number // 60:02}.{number % 60 + 100}") for number in range(MAX_SAME_ID + 10)])
    assert pairing.counts == Counts(0, 0, 10, 0, MAX_SAME_ID, 0)
    # The oldest were given up: an answer to the first of them comes too late, one to the eleventh does not.
    late = [Record(0, 100 + number, 0.0, half(RESPONSE, "a", at=f"00.{number + 100}5")) for number in (0, 10)]
    assert [pair.request.offset for record in late if (pair := pairing.add(record))] == [10]


# Waiting


def test_a_half_waits_as_long_as_log_time_says_and_no_longer() -> None:
    for later, paired in ((300.0, 1), (300.5, 0)):
        pairing = Pairing(wait=300)
        pairing.add(Record(0, 0, 1000.0, half(REQUEST, "a")))
        pairing.add(Record(0, 1, 1000.0 + later, half(RESPONSE, "a")))
        assert pairing.counts == Counts(paired, 0, 1 - paired, 0, 0, 1 - paired)


def test_orphans_are_given_up_by_kind_as_time_goes_on() -> None:
    pairing = Pairing(wait=10)
    fed(pairing, [half(REQUEST, "a"), half(RESPONSE, "b"), half(REQUEST, "c")], step=1)
    assert pairing.counts == Counts(0, 0, 0, 0, 2, 1)
    pairing.add(Record(0, 3, 11.5, half(REQUEST, "d")))
    assert pairing.counts == Counts(0, 0, 1, 1, 2, 0)


def test_a_clock_that_steps_back_neither_expires_nor_keeps_too_long() -> None:
    pairing = Pairing(wait=10)
    fed(pairing, [half(REQUEST, "a"), half(RESPONSE, "a")])
    pairing.add(Record(0, 2, 100.0, half(REQUEST, "b")))
    assert pairing.add(Record(0, 3, 100.0, half(RESPONSE, "b"))) is not None
    pairing.add(Record(0, 4, 5.0, half(REQUEST, "c")))
    pairing.add(Record(0, 5, 5.0, half(REQUEST, "d")))
    assert pairing.add(Record(0, 6, 109.0, half(RESPONSE, "c"))) is not None
    pairing.add(Record(0, 7, 111.0, half(REQUEST, "e")))
    assert pairing.counts == Counts(3, 0, 1, 0, 1, 0)


def test_beyond_the_capacity_the_oldest_is_given_up() -> None:
    pairing = Pairing(capacity=3)
    events = [half(REQUEST, "0"), half(RESPONSE, "1"), half(REQUEST, "2"), half(REQUEST, "3"), half(RESPONSE, "0"), half(RESPONSE, "2")]
    assert places(fed(pairing, events)) == [(2, 5)]
    assert pairing.counts == Counts(1, 0, 1, 1, 1, 1)


def test_bodies_that_wait_are_bounded_in_bytes() -> None:
    pairing = Pairing(capacity_bytes=100)
    fed(pairing, [half(REQUEST, f"{number}", data=bytes(40)) for number in range(10)])
    assert pairing.counts == Counts(0, 0, 8, 0, 2, 0)
    pairs = fed(pairing, [half(RESPONSE, "9", data=bytes(90)), half(RESPONSE, "8"), half(REQUEST, "huge", data=bytes(101))])
    assert [pair.id for pair in pairs] == ["9", "8"]
    assert pairing.counts == Counts(2, 0, 9, 0, 0, 0)


# The version


@pytest.mark.parametrize(
    ("request_says", "response_says", "version"),
    [
        ('{"v": "1"}', '{"v": "2"}', "2"),
        ('{"v": "1"}', "", "1"),
        ('{"v": "1"}', '{"other": "2"}', "1"),
        ("", '{"v": "2"}', "2"),
        ("", "", ""),
        ("", '{"v": 2}', ""),
        ("{", '["v"]', ""),
        ('{"v": "a%20b"}', "{", "a%20b"),
    ],
)
def test_the_version_is_the_one_the_response_names_then_the_request(request_says: str, response_says: str, version: str) -> None:
    events = [half(REQUEST, "a", annotations=request_says), half(RESPONSE, "a", annotations=response_says)]
    for order in (events, events[::-1]):
        (pair,) = fed(Pairing(annotation="v"), order)
        assert pair.version == version


def test_each_pair_has_its_own_version_during_a_canary() -> None:
    said = [f'{{"{ANNOTATION}": "{version}"}}' for version in ("1", "2", "1", "3")]
    events = [half(kind, f"{number}", annotations=text) for number, text in enumerate(said) for kind in (REQUEST, RESPONSE)]
    assert [pair.version for pair in fed(Pairing(), events)] == ["1", "2", "1", "3"]


# Properties


def scenario(seed: int, predictions: int = 30) -> list[Event]:
    """Predictions of unique ids, one in five with a half lost."""
    chosen = random.Random(seed)
    events = []
    for number in range(predictions):
        both = [half(REQUEST, f"{number}", at=f"{number:02}"), half(RESPONSE, f"{number}", at=f"{number:02}.5")]
        events += [chosen.choice(both)] if chosen.random() < 0.2 else both
    return events


def identities(pairs: list[Pair]) -> set[tuple[str, str]]:
    assert all(pair.request.event.id == pair.response.event.id for pair in pairs)
    return {(pair.request.event.id, pair.response.event.time) for pair in pairs}


@settings(deadline=None)
@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_change_which_halves_pair(seed: int, shuffler: random.Random) -> None:
    events = scenario(seed)
    straight, shuffled = Pairing(), Pairing()
    expected = fed(straight, events)
    shuffler.shuffle(events)
    assert identities(fed(shuffled, events)) == identities(expected)
    assert len(expected) == sum(number == 2 for number in Counter(event.id for event in events).values())
    assert shuffled.counts == straight.counts


@settings(deadline=None)
@given(st.integers(0, 1000), st.lists(st.tuples(st.integers(0, 59), st.integers(0, 70)), max_size=20))
def test_duplicates_anywhere_change_nothing(seed: int, repeats: list[tuple[int, int]]) -> None:
    events = scenario(seed)
    expected = fed(Pairing(), events)
    again = list(events)
    for which, where in repeats:
        again.insert(where, events[which % len(events)])
    pairing = Pairing()
    pairs = fed(pairing, again)
    assert identities(pairs) == identities(expected)
    assert pairing.counts.duplicates == len(repeats)


@settings(deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(0, 59), max_size=20))
def test_late_duplicates_change_neither_pairs_nor_who_expires(seed: int, repeats: list[int]) -> None:
    events = scenario(seed)
    records = [Record(0, offset, offset * 1.0, event) for offset, event in enumerate(events)]
    plain, repeated = Pairing(wait=5), Pairing(wait=5)
    expected = [plain.add(record) for record in records]
    given_: list[Pair | None] = []
    for record in records:
        given_.append(repeated.add(record))
        for which in repeats:
            if which <= record.offset and which < len(records):
                assert repeated.add(Record(0, record.offset, record.timestamp + 1000.0, records[which].event)) is None
    assert given_ == expected
    assert {**repeated.counts.as_dict(), "duplicates": 0} == plain.counts.as_dict()


HALVES = st.tuples(
    st.sampled_from([REQUEST, RESPONSE]), st.sampled_from("abcdef"), st.integers(0, 59), st.floats(0, 50), st.integers(0, 30)
)


@settings(deadline=None)
@given(st.lists(HALVES, max_size=80), st.integers(1, 6), st.integers(1, 60))
def test_what_waits_never_exceeds_the_bounds_and_every_half_is_accounted_for(
    halves: list[tuple[str, str, int, float, int]], capacity: int, capacity_bytes: int
) -> None:
    pairing = Pairing(wait=20, capacity=capacity, horizon=15, capacity_bytes=capacity_bytes)
    waiting: dict[int, int] = {}
    for offset, (kind, id_, at, timestamp, size) in enumerate(halves):
        before = pairing.counts
        pair = pairing.add(Record(0, offset, timestamp, half(kind, id_, at=f"{at:02}", data=bytes(size))))
        counts = pairing.counts
        assert counts.waiting_requests + counts.waiting_responses <= capacity
        settled = 2 * counts.paired + counts.orphan_requests + counts.orphan_responses + counts.duplicates
        assert settled + counts.waiting_requests + counts.waiting_responses == offset + 1
        if counts.duplicates == before.duplicates and pair is None:
            waiting[offset] = size
        if pair is not None:
            assert pair.completed_by.offset == offset
            assert waiting.pop(min(pair.request.offset, pair.response.offset)) is not None


def plainly(records: list[Record], wait: float, capacity: int, horizon: int, capacity_bytes: int) -> list[tuple[int, int]]:
    """The places of the pairs, found by searching all that waits for each record."""
    now = float("-inf")
    seen: list[Any] = []
    waiting: list[tuple[Record, float]] = []
    found = []
    for record in records:
        event = record.event
        identity = (event.model, event.source, event.id, event.type, event.time)
        if identity in seen:
            continue
        seen = [*seen, identity][-horizon:]
        now = max(now, record.timestamp)
        waiting = [(held, at) for held, at in waiting if now - at <= wait]
        alike = [held for held, _ in waiting if (held.event.model, held.event.source, held.event.id) == identity[:3]]
        fitting = [held for held in alike if held.event.type != event.type and in_order(*by_kind(held, record))]
        if fitting:
            earliest = sorted(fitting, key=lambda held: (held.event.time, held.offset))
            partner = earliest[0 if event.type == REQUEST else -1]
            waiting = [(held, at) for held, at in waiting if held is not partner]
            request, response = by_kind(partner, record)
            found.append((request.offset, response.offset))
        else:
            waiting.append((record, now))
            while len(waiting) > capacity or sum(len(held.event.data) for held, _ in waiting) > capacity_bytes:
                del waiting[0]
    return found


def by_kind(one: Record, other: Record) -> tuple[Record, Record]:
    return (one, other) if one.event.type == REQUEST else (other, one)


def in_order(request: Record, response: Record) -> bool:
    return not request.event.time or not response.event.time or request.event.time <= response.event.time


@settings(deadline=None)
@given(
    st.lists(st.tuples(HALVES, st.sampled_from(["", "01", "02", "03"]), st.sampled_from(["pod", "\x1fpod", "other"])), max_size=80),
    st.integers(1, 30),
    st.integers(1, 6),
    st.integers(1, 60),
    st.booleans(),
)
def test_the_pairs_are_those_that_a_plain_search_finds(halves: list[Any], wait: int, capacity: int, most: int, told: bool) -> None:
    events = [half(kind, id_, at=at, source=source, data=bytes(size)) for (kind, id_, _, _, size), at, source in halves]
    times = [timestamp for (_, _, _, timestamp, _), _, _ in halves]
    records = [Record(0, offset, timestamp, event) for offset, (timestamp, event) in enumerate(zip(times, events, strict=True))]
    pairing = Pairing(wait=wait, capacity=capacity, horizon=15, capacity_bytes=most, model="default/iris" if told else "")
    pairs = [pair for record in records if (pair := pairing.add(record))]
    assert places(pairs) == plainly(records, wait, capacity, 15, most)


SAID = st.sampled_from(["", '{"driftloop.io/model-version": "1"}', '{"driftloop.io/model-version": "2"}'])
TIMES = st.sampled_from(["", "00", "01", "02", "59"])
TYPES = st.sampled_from([None, "application/json"])


@settings(deadline=None)
@given(st.lists(st.tuples(HALVES, SAID, TIMES, TYPES, st.binary(max_size=9)), max_size=80), st.integers(1, 9))
def test_a_restart_anywhere_changes_nothing(halves: list[Any], every: int) -> None:
    records = []
    for offset, ((kind, id_, _, timestamp, _), said, at, content_type, data) in enumerate(halves):
        event = half(kind, id_, at=at, data=data, annotations=said)
        records.append(Record(0, offset, timestamp, replace(event, datacontenttype=content_type)))
    bounds: dict[str, Any] = {"wait": 20, "capacity": 5, "horizon": 12, "capacity_bytes": 30}
    straight, restarted = Pairing(**bounds), Pairing(**bounds)
    for record in records:
        if record.offset % every == 0:
            state = msgspec.msgpack.encode(restarted.state())
            restarted = Pairing(**bounds)
            restarted.restore(msgspec.msgpack.decode(state))
            assert msgspec.msgpack.encode(restarted.state()) == state
        assert restarted.add(record) == straight.add(record)
        assert restarted.counts == straight.counts
    assert msgspec.msgpack.encode(restarted.state()) == msgspec.msgpack.encode(straight.state())


def test_log_time_does_not_step_back_at_a_restart() -> None:
    pairing, restarted = Pairing(wait=10), Pairing(wait=10)
    pairing.add(Record(0, 0, 100.0, half(REQUEST, "a")))
    restarted.restore(pairing.state())
    for which in (pairing, restarted):
        which.add(Record(0, 1, 5.0, half(REQUEST, "b")))
        which.add(Record(0, 2, 109.0, half(RESPONSE, "b")))
        assert which.counts == Counts(1, 0, 0, 0, 1, 0), "b came at 100, as far as log time goes"
    assert restarted.state() == pairing.state()


def test_a_memory_of_more_identities_than_the_horizon_keeps_the_newest() -> None:
    long, short = Identities(10), Identities(3)
    assert [long.repeats("s", str(number)) for number in [*range(10), 9, 0]] == [False] * 10 + [True, True]
    short.restore(long.state())
    assert short.state() == long.state()[-3 * 16 :]
    assert [short.repeats("s", str(number)) for number in (7, 8, 9, 6)] == [True, True, True, False]


@pytest.mark.parametrize("state", [b"x", b"x" * 17, b"x" * 32])
def test_bytes_that_are_no_different_identities_are_refused(state: bytes) -> None:
    with pytest.raises(ValueError, match="no different digests"):
        Identities(10).restore(state)


def test_a_state_whose_halves_are_numbered_wrong_is_refused() -> None:
    pairing = Pairing()
    fed(pairing, [half(REQUEST, "a"), half(REQUEST, "b")])
    state = pairing.state()
    twice, beyond = {**state, "halves": state["halves"][:1] * 2}, {**state, "serial": 1}
    other = {**state, "halves": [[*state["halves"][0][:7], LABEL, *state["halves"][0][8:]]]}
    for wrong in (twice, beyond, other):
        with pytest.raises(ValueError, match="number"):
            Pairing().restore(wrong)


def test_the_default_memory_is_small() -> None:
    pairing = Pairing()
    fed(pairing, [half(REQUEST, f"{number}") for number in range(50_010)])
    assert len(pairing.state()["seen"]) == 50_000 * 16


# What KServe's logger really sent


def recorded() -> list[Event]:
    events = []
    with gzip.open(RECORDING, "rt") as lines:
        for line in lines:
            entry = json.loads(line)
            headers = [(name.encode(), value.encode()) for name, value in entry["headers"]]
            events.append(from_http(headers, base64.b64decode(entry["body_base64"])))
    return events


def test_the_recording_holds_104_pairs_and_6_lone_requests() -> None:
    events = recorded()
    pairing = Pairing(annotation="drift/model-version")
    pairs = fed(pairing, events, step=0.01)
    assert (len(events), len({event.id for event in events})) == (214, 110)
    assert pairing.counts == Counts(104, 0, 0, 0, 6, 0)
    assert sum(pair.completed_by is pair.request for pair in pairs) == 3  # responses that arrived first
    assert sum(pair.request.event.datacontenttype is None for pair in pairs) == 4  # GETs
    assert {pair.version for pair in pairs} == {"3"}
    assert {pair.version for pair in fed(Pairing(), events)} == {""}


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_recording_pairs_the_same_in_any_order_and_twice_over(shuffler: random.Random) -> None:
    events = recorded() * 2
    shuffler.shuffle(events)
    pairing = Pairing()
    assert len(identities(fed(pairing, events))) == 104
    assert pairing.counts == Counts(104, 214, 0, 0, 6, 0)
