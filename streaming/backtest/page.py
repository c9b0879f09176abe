"""The report of a replay: one HTML file that draws the result object, without a network, and keeps all of its numbers.

The page is the files in `report/` with the result as JSON and Plotly's own script put into them. Everything that comes from the log
is in that JSON: no `<` of it reaches the HTML, and the page's scripts make text of it, never markup. A content security policy names
the page's scripts by their hashes: no other runs, and nothing is loaded from anywhere.
"""

import base64
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Mapping
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

from inference.errors import SettingsError
from streaming.actions.incident import replace_file
from streaming.core.statistics import P_VALUES

SCORES = 300_000
"""Scores that the timeline of a page holds at most, all models together: about 2 MB of it."""
_CODE = (
    *("basics.js", "charts.js", "answer.js", "marks.js", "timeline.js", "alarms.js", "questions.js", "tried.js", "rest.js"),
    "start.js",
)
_DRAW = "drawAll(); watchColours();"
_DIGITS = 5


def check_page(path: Path) -> None:
    """Before a long replay: whether its report could be written; SettingsError says what is in the way."""
    if path.is_dir() or not path.parent.is_dir():
        raise SettingsError([f"--report {path}: {'it is a folder' if path.is_dir() else f'there is no folder {path.parent}'}; name a file"])
    if not os.access(path.parent, os.W_OK):
        raise SettingsError([f"--report {path}: nothing can be written into {path.parent}"])
    if importlib.util.find_spec("plotly") is None:
        raise SettingsError(["--report needs plotly; pip install 'driftloop[report]'"])


def write_page(result: Mapping[str, Any], path: Path) -> None:
    """Draw `result` into an HTML file, whole or not at all: what was there stays where that fails. SettingsError says what was in the way.

    In the page, scores and limits along the way have 5 digits, and at most `SCORES` of them are there: of more, each point stands for
    several, the furthest beyond its limit of which is kept.
    """
    page = _page(result).encode()
    try:
        replace_file(path, page)
    except OSError as error:
        raise SettingsError([f"--report {path}: cannot be written: {error.strerror or error}"]) from error


def _page(result: Mapping[str, Any]) -> str:
    # About 10 MB of Python and script that nobody needs who asks for no report.
    from plotly.offline import get_plotlyjs

    folder = files("streaming.backtest").joinpath("report")
    code = "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in _CODE)
    scripts = {"code": f'"use strict";\n{code}', "plotly": _inside_script(get_plotlyjs()), "start": _DRAW}
    parts = {
        **scripts,
        "hashes": " ".join(_hash(script) for script in scripts.values()),
        "style": folder.joinpath("style.css").read_text(encoding="utf-8"),
        "facts": embedded({"result": _packed(_plain(result)), "p_values": sorted(P_VALUES)}),
    }
    template = folder.joinpath("page.html").read_text(encoding="utf-8")
    # In one pass: what is put in is never looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _inside_script(code: str) -> str:
    """The same script, which ends its element nowhere."""
    return re.sub(r"<(/script|!--)", r"\\x3c\1", code, flags=re.IGNORECASE)


def embedded(value: object) -> str:
    """JSON that can stand inside a <script> element: ASCII, and without a `<`, `>` or `&`."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(value: Any) -> Any:
    """The same value as JSON has it; what is no finite number is null, as browsers know no other."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not isfinite(value) else value


# The timeline, the only part that may be large


def _packed(result: dict[str, Any]) -> dict[str, Any]:
    timeline = result.get("timeline") or {}
    groups = [group for parts in timeline.values() for group in parts.values()]
    count = sum(len(one["score"]) for group in groups for one in group["features"])
    step = max(-(-count // SCORES), 1)
    thinned = {model: {part: _thinned(group, step) for part, group in parts.items()} for model, parts in timeline.items()}
    return {**result, "timeline": thinned} if timeline else result


def _thinned(group: Mapping[str, Any], step: int) -> dict[str, Any]:
    """`step` neighbouring points as one: of each series the one furthest beyond its limit, with the last one's time and event."""
    starts = range(0, len(group["time"]), step)
    features = [_series(one, starts, step) for one in group["features"]]
    ends = [min(start + step, len(group["time"])) - 1 for start in starts]
    over = [any(group["over"][start : end + 1]) for start, end in zip(starts, ends, strict=True)]
    return {**group, "features": features, "over": over, **{name: [group[name][end] for end in ends] for name in ("time", "event")}}


def _series(one: Mapping[str, Any], starts: range, step: int) -> dict[str, Any]:
    scores, limits = one["score"], one["limit"]
    if step > 1:
        small = one["test"] in P_VALUES
        heights = [_height(score, limit, small) for score, limit in zip(scores, limits, strict=True)]
        kept = [max(range(start, min(start + step, len(scores))), key=heights.__getitem__) for start in starts]
        scores, limits = [scores[place] for place in kept], [limits[place] for place in kept]
    return {**one, "score": [_rounded(score) for score in scores], "limit": _shorter(scores, limits)}


def _height(score: float | None, limit: float | None, small: bool) -> float:
    if score is None or limit is None:
        return -1.0
    return limit / max(score, 1e-300) if small else abs(score) / max(abs(limit), 1e-300)


def _rounded(value: float | None) -> float | None:
    if value is None:
        return None
    rounded = float(f"{value:.{_DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _shorter(scores: list[float | None], limits: list[float | None]) -> list[float | None] | dict[str, float | None]:
    """A limit that is the same wherever there is a score, once: {"same": limit}."""
    first = next((limit for limit in limits if limit is not None), None)
    same = all(limit == (None if score is None else first) for limit, score in zip(limits, scores, strict=True))
    return {"same": _rounded(first)} if same else [_rounded(limit) for limit in limits]
