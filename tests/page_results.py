"""Results of replays for the tests of the report: a large one, an empty one, and one whose every name is an attack; the same every time."""

import math
from typing import Any

import numpy as np

START = 1_790_000_000.0
HOUR = 3600.0
PROPOSED = """models:
  shop/model-1:
    window: {size: 1000, slide: 100}
    limits:
    - {kind: budget, false_alarms: 1 per 30d}
"""


def empty() -> dict[str, Any]:
    """Nothing happened: no alarm, no label, nothing tried, no full window."""
    return {
        "events": 120,
        "alarms": [],
        "seconds": 0.01,
        "events_per_second": 12_000,
        "calibration_seconds": 0.002,
        "notes": [],
        "source": "quiet.jsonl.gz",
        "since": None,
        "until": None,
        "span": None,
        "unreadable": {"count": 0, "places": []},
        "models": [],
        "decisions": {"retrain": 0, "alert": 0, "hold": {}},
        "incidents": [],
        "promotions": [],
        "false_alarms": {"count": 0, "per_30d": None, "per_100k_events": 0.0, "days": 0.0},
        "known_drifts": [],
        "missed": 0,
        "accuracy": {},
        "falls": {},
        "alarm_before_fall": {},
        "timeline": {},
        "evidence": [],
        "tried": [],
        "proposal": None,
        "injected": [],
        "interrupted": False,
    }


def large(models: int = 3, features: int = 50, points: int = 2000, alarms: int = 20, tries: int = 12) -> dict[str, Any]:
    """A year of several models with known drifts, labels, what-ifs and tried settings."""
    rng = np.random.default_rng(5)
    names = [f"shop/model-{number + 1}" for number in range(models)]
    events = 1_000_000
    span = {"first": START, "last": START + 365 * 24 * HOUR}
    drifts = _drifts(names, span)
    told = _alarms(rng, names, features, alarms, events, span, drifts)
    found = [place for place, drift in enumerate(drifts) if any(alarm["known_drift"] == drift["name"] for alarm in told)]
    for place in found:
        number, first = next((number, alarm) for number, alarm in enumerate(told) if alarm["known_drift"] == drifts[place]["name"])
        seconds = first["time"] - drifts[place]["from"]
        drifts[place] |= {"found": True, "alarm": number, "delay_seconds": seconds, "delay_events": round(seconds / 31.5)}
    false = sum(alarm["known_drift"] is None for alarm in told)
    tried = _tried(rng, tries, len(drifts))
    best = next(one for one in tried if one["pareto"])
    return {
        **empty(),
        "events": events,
        "alarms": told,
        "seconds": 19.42,
        "events_per_second": 51_493,
        "calibration_seconds": 2.31,
        "notes": ["feature 7 of shop/model-2 is constant in the reference and is left out"],
        "source": "abfs://history/driftloop/*.jsonl.zst",
        "since": "2026-09-21T12:53:20Z",
        "span": span,
        "unreadable": {
            "count": 3,
            "places": [{"place": f"2026-10-0{n}.jsonl.zst:{n * 7717}", "reason": "no JSON object"} for n in (1, 2, 3)],
        },
        "models": [
            {
                "model": name,
                "versions": ["1", "2"],
                "predictions": events // models,
                "labels": 40_000,
                "verdicts": 3333,
                "breached": 25 + number,
            }
            | {"counts": {"late": 12 * number, "unpaired": 3}}
            for number, name in enumerate(names)
        ],
        "decisions": {
            "retrain": sum(alarm["decision"] == "retrain" for alarm in told),
            "alert": sum(alarm["decision"] == "alert" for alarm in told),
            "hold": {"unconfirmed": 41, "cooldown": 12, "active": 5, "few": 2},
        },
        "incidents": [
            {
                "id": f"incident-{number}",
                "model": alarm["model"],
                "opened": alarm["time"],
                "closed": alarm["time"] + 20 * HOUR,
                "decisions": 3,
            }
            for number, alarm in enumerate(told[:6])
        ],
        "promotions": [
            {"model": alarm["model"], "version": "2", "time": alarm["time"] + 2 * HOUR} for alarm in told if alarm["decision"] == "retrain"
        ],
        "false_alarms": {"count": false, "per_30d": false / 330 * 30, "per_100k_events": false / 9.04, "days": 330.0},
        "known_drifts": drifts,
        "missed": len(drifts) - len(found),
        "accuracy": {name: _accuracy(rng, span, drifts, name, 500 if models < 6 else 60) for name in names},
        "falls": {name: _fall(drifts, name) for name in names},
        "alarm_before_fall": {name: (_fall(drifts, name) or {}).get("alarm_before") for name in names},
        "timeline": {name: _timeline(rng, features, points, events, span, drifts, name) for name in names},
        "evidence": [_evidence(rng, number, alarm) for number, alarm in enumerate(told[:20])],
        "tried": tried,
        "proposal": {
            "settings": best["settings"],
            "yaml": PROPOSED,
            "why": "of the settings on the front with at most one false alarm in 30 days, it misses the fewest known drifts: 3 of 4 found",
        },
        "injected": ["feature_03: shift 0.5sd from 2027-01-14"],
        "interrupted": True,
    }


def _drifts(names: list[str], span: dict[str, float]) -> list[dict[str, Any]]:
    length = span["last"] - span["first"]
    texts = ("new sensor", "autumn prices", "units changed", "a partner left")
    return [
        {"name": text, "model": names[place % len(names)], "from": span["first"] + (0.2 + 0.2 * place) * length}
        | {"until": span["first"] + (0.2 + 0.2 * place + 0.04) * length if place else None, "found": False}
        | {"injected": False, "happened": True}
        | {"delay_events": None, "delay_seconds": None, "alarm": None}
        for place, text in enumerate(texts)
    ]


def _alarms(rng, names, features, count, events, span, drifts) -> list[dict[str, Any]]:
    length = span["last"] - span["first"]
    moments = sorted([0.203, 0.408, 0.6012, *rng.uniform(0.03, 0.97, max(count - 3, 0))][:count])
    told = []
    for number, moment in enumerate(moments):
        at = span["first"] + moment * length
        hit = next((drift for drift in drifts[:3] if 0 <= at - drift["from"] < 0.01 * length), None)
        model = hit["model"] if hit else names[number % len(names)]
        found = [
            _finding(rng, feature, round(moment * events)) for feature in rng.choice(features, min(1 + number % 9, features), replace=False)
        ]
        shares = rng.dirichlet(np.ones(len(found)))
        found = [{**one, "share": float(share)} for one, share in zip(found, sorted(shares, reverse=True), strict=True)]
        told.append(
            {
                "event": round(moment * events),
                "time": at,
                "model": model,
                "version": "1",
                "window": "",
                "segment": "country=NO" if number % 5 == 2 else "",
            }
            | {"decision": "retrain" if number % 3 else "alert", "reason": "2 of the last 3 windows are over the limit 'budget'"}
            | {
                "incident": f"incident-{number}",
                "run_id": f"run-{number}" if number % 3 else "",
                "known_drift": hit["name"] if hit else None,
            }
            | {"findings": found}
        )
    return told


def _finding(rng: np.random.Generator, feature: int, event: int) -> dict[str, Any]:
    share = bool(feature % 4 == 0)
    what = "share of category 'card'" if share else "mean"
    before, after = (
        (float(rng.uniform(0.1, 0.4)), float(rng.uniform(0.5, 0.9))) if share else (float(rng.normal(10, 3)), float(rng.normal(14, 3)))
    )
    moved = [{"what": what, "before": before, "after": after}]
    if not share:
        moved.append({"what": "standard deviation", "before": 2.0, "after": float(rng.uniform(2, 4))})
    named = {"feature": f"feature_{feature:02}", "detector": "cusum", "score": float(1 + rng.exponential(2)), "limit": 1.0}
    told = {"signal": "level up", "direction": "up" if after > before else "down", "what": what, "before": before, "after": after}
    return {**named, **told, "earlier": bool(rng.random() < 0.3), "moved": moved, "since": event - int(rng.integers(20, 900))}


def _timeline(rng, features, points, events, span, drifts, model) -> dict[str, Any]:
    times = np.linspace(span["first"], span["last"], points)
    tests = ("cusum", "wasserstein", "ks", "jensenshannon")
    series = []
    for feature in range(features):
        noise = np.zeros(points)
        for place in range(1, points):
            noise[place] = 0.93 * noise[place - 1] + rng.normal()
        level = 0.25 * np.exp(0.22 * noise)
        for drift in drifts:
            if drift["model"] == model and feature % 6 == len(drift["name"]) % 6:
                inside = (times >= drift["from"]) & (times < (drift["until"] or drift["from"] + 20 * 24 * HOUR))
                level[inside] *= 4 + 20 * rng.random()
        test = tests[feature % 4]
        limit = {"cusum": 1.0, "wasserstein": 0.1, "ks": 0.01, "jensenshannon": 0.1}[test]
        score = [limit**value if test == "ks" else limit * value for value in level.tolist()]
        name = "budget" if test == "cusum" else test
        series.append({"feature": f"feature_{feature:02}", "test": test, "limit_name": name, "limit": [limit] * points, "score": score})
    over = [any(one["score"][place] > 1 for one in series if one["test"] == "cusum") for place in range(points)]
    event = np.linspace(1000, events, points).astype(int).tolist()
    group = {"features": series, "time": times.tolist(), "event": event, "over": over}
    small = {**group, "features": [{**one, "score": [value * 0.8 for value in one["score"]]} for one in series[:4]]}
    return {"": group, "country=NO": small} if model.endswith("1") else {"": group}


def _accuracy(rng, span, drifts, model, points) -> list[dict[str, Any]]:
    times = np.linspace(span["first"], span["last"], points)
    level = np.full(points, 0.94)
    for drift in drifts:
        if drift["model"] == model:
            level[times >= drift["from"]] -= 0.07
            level[times >= drift["from"] + 15 * 24 * HOUR] += 0.06
    values = np.clip(level + rng.normal(0, 0.008, points), 0, 1)
    return [
        {"time": at, "labels": 80 * (place + 1), "accuracy": value, "error": 1 - value}
        for place, (at, value) in enumerate(zip(times.tolist(), values.tolist(), strict=True))
    ]


def _fall(drifts: list[dict[str, Any]], model: str) -> dict[str, Any] | None:
    drift = next((drift for drift in drifts if drift["model"] == model), None)
    if drift is None or model.endswith("3"):
        return None
    before, time = model.endswith("1"), drift["from"] + 40 * HOUR
    return {
        "time": time,
        "labels": 8000,
        "first": 0.94,
        "accuracy": 0.87,
        "alarm_before": before,
        "alarm_time": time - 9 * HOUR if before else None,
    }


def _evidence(rng: np.random.Generator, number: int, alarm: dict[str, Any]) -> dict[str, Any]:
    shown = []
    for one in alarm["findings"][:6]:
        if one["what"].startswith("share"):
            names = ["card", "invoice", "wallet", "cash on delivery, where that is possible", "other"]
            sides = [{"names": names, "share": rng.dirichlet(weights).tolist()} for weights in ([9, 6, 4, 2, 1], [20, 6, 4, 2, 1])]
            shown.append({"feature": one["feature"], "kind": "categorical", "reference": sides[0], "window": sides[1]})
        else:
            edges = np.linspace(0, 24, 21)
            sides = [np.histogram(rng.normal(one[side], 2.4, size), edges)[0] / size for side, size in (("before", 5000), ("after", 1000))]
            told = [{"edges": edges.tolist(), "share": side.tolist()} for side in sides]
            shown.append({"feature": one["feature"], "kind": "numeric", "reference": told[0], "window": told[1]})
    return {"alarm": number, "model": alarm["model"], "features": shown}


def _tried(rng: np.random.Generator, count: int, known: int) -> list[dict[str, Any]]:
    tried: list[dict[str, Any]] = []
    budgets = ["1 per 7d", "1 per 30d", "1 per 90d"]
    for number in range(count):
        settings = {"window.size": [500, 1000, 2000, 4000][number // 3 % 4], "limit.false_alarms": budgets[number % 3]} if number else {}
        false = max(0, round(14 - 4 * (number % 3) - number / 4 + rng.normal()))
        found = 1 if number == count - 1 else min(known, 3 + number % 2)
        delay = None if found * 2 < known else float(round(180 + 300 * (number % 3) + 60 * (number // 3) + rng.uniform(0, 90)))
        tried.append(
            {"settings": settings, "label": "; ".join(f"{path}={value}" for path, value in settings.items()) or "as configured"}
            | {"false_alarms": {"count": false, "per_30d": false / 11, "per_100k_events": false / 9.04, "days": 330.0}}
            | {"found": found, "missed": known - found, "median_delay_events": delay, "alarms": found + false, "baseline": not number}
        )
    points = [
        (one["false_alarms"]["count"], math.inf if one["median_delay_events"] is None else one["median_delay_events"]) for one in tried
    ]
    for one, point in zip(tried, points, strict=True):
        one["pareto"] = not any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)
    return tried


ATTACK = '</script><img src=x onerror="window.hit=1">\'`<b>%{x}\u2028\u2029&amp;'


def hostile() -> dict[str, Any]:
    """A small result in which every text that comes from data tries to get out of its place; also numbers that are none."""
    result = large(models=1, features=3, points=40, alarms=4, tries=4)

    def poisoned(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {key: poisoned(one, key) for key, one in value.items()}
        if isinstance(value, list):
            return [poisoned(one, name) for one in value]
        kept = ("test", "decision", "kind", "direction", "detector", "what")
        return f"{value}{ATTACK}" if isinstance(value, str) and name not in kept else value

    attacked = poisoned(result)
    attacked["decisions"]["hold"][ATTACK] = 3
    attacked["models"][0]["counts"][ATTACK] = 1
    model = attacked["models"][0]["model"]
    for name in ("accuracy", "falls", "alarm_before_fall", "timeline"):
        attacked[name] = {model: next(iter(attacked[name].values()))}
    attacked["timeline"][model] = {ATTACK: next(iter(attacked["timeline"][model].values()))}
    attacked["timeline"][model][ATTACK]["features"][0]["score"][3] = math.nan
    attacked["known_drifts"][0]["name"] = f"=HYPERLINK(1){ATTACK}"
    attacked["tried"][1]["settings"] = {f"window.{ATTACK}": ATTACK}
    attacked["alarms"][0]["findings"][0]["before"] = math.inf
    return attacked
