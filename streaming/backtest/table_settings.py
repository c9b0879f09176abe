"""How the rows of a table are judged: as a configuration says of a model, or by default."""

from pathlib import Path

from inference.errors import SettingsError
from streaming.backtest.tabular import MODEL
from streaming.settings import ModelSettings, TimeWindowSettings, load_settings

_DEFAULT = {
    "window": {"size": 1000, "slide": 100},
    "limits": [{"kind": "budget", "false_alarms": "1 per 100k events"}],
    "governor": {"confirm": 1, "of": 1, "cooldown": 0},
    "errors": None,
    "schema": None,
}


def table_settings(config: Path | None) -> tuple[str, ModelSettings]:
    """The only model of a configuration, or what a table is judged by without one: one false alarm in 100,000 rows."""
    if config is None:
        return MODEL, ModelSettings.model_validate(_DEFAULT)
    models = load_settings(config, alerts=False, gateway=False).models
    if len(models) != 1:
        raise SettingsError([f"{config}: --table needs a configuration of one model, not of {', '.join(models)}"])
    ((model, settings),) = models.items()
    return model, settings


def check_times(place: str, settings: ModelSettings) -> None:
    """SettingsError where the settings want to know the rows' times; for rows that have none."""
    budgets = [budget for limit in settings.limits if (budget := getattr(limit, "false_alarms", None)) is not None]
    if any(budget.seconds is not None for budget in budgets):
        raise SettingsError([f"{place}: a budget in time needs the rows' times: name their column with --time"])
    if any(isinstance(window, TimeWindowSettings) for window in settings.named_windows.values()):
        raise SettingsError([f"{place}: a window of a stretch of time needs the rows' times: name their column with --time"])
