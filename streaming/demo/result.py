"""What the demo found, judged and told: did the loop close, did it stay quiet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streaming.demo.traffic import Answer


def since(first: float | None, then: float | None) -> float | None:
    return round(then - first, 2) if first is not None and then is not None else None


def accuracy(answered: Sequence[Answer]) -> float | None:
    return round(sum(one.correct for one in answered) / len(answered), 4) if answered else None


def closed(result: dict[str, Any]) -> bool:
    return bool(
        result["run_state"] == "promoted"
        and result["promoted_version"] is not None
        and result["false_alarms"] == 0
        and result["stable_after_promotion"]
        and (result["accuracy_after"] or 0.0) > (result["accuracy_before"] or 0.0)
        and result["slack_messages"] >= 2
    )


def quiet(result: dict[str, Any]) -> bool:
    return bool(result["false_alarms"] == 0 and result["run_state"] == "none" and result["windows_judged"] > 0)


def told(result: dict[str, Any], folder: Path) -> str:
    if not result["drift"]:
        verdict = "Quiet: no alarm and no run." if quiet(result) else f"{result['false_alarms']} false alarms on quiet traffic."
        return f"\n{verdict} {result['events']} predictions, {result['windows_judged']} windows, {result['wall_seconds']} s.\n"
    state = "The loop closed." if closed(result) else "The loop did NOT close."
    rows = [
        ("drift began", f"at prediction {result['drift_began_at_event']}"),
        ("drift decided", f"at prediction {result['drift_detected_at_event']}, {result['detection_seconds']} s after it began"),
        ("run", f"{result['run_state']}, {result['run_id']}"),
        ("new version", f"{result['promoted_version']}, live {result['promotion_seconds']} s after the drift began"),
        ("accuracy on drifted rows", f"{result['accuracy_before']} before, {result['accuracy_after']} after"),
        ("false alarms", str(result["false_alarms"])),
        ("windows since then", "stable" if result["stable_after_promotion"] else "not stable"),
        ("Slack messages", str(result["slack_messages"])),
        ("Evidently's report", str(result["report_path"])),
        ("replay it", f"driftloop replay --config {folder / 'driftloop.yaml'}"),
    ]
    lines = "\n".join(f"  {name:<26}{value}" for name, value in rows)
    return f"\n{state} {result['events']} predictions, {result['wall_seconds']} s in all.\n{lines}\n"
