"""The configuration: what each part of the file may say (values, windows, limits, model, services), and how the file is read."""

from streaming.settings.file import GatewayPart, Settings, load_gateway, load_settings
from streaming.settings.limits import LimitSettings
from streaming.settings.model import ErrorSettings, ModelSettings, RetrainingSettings
from streaming.settings.services import GatewaySettings
from streaming.settings.values import FalseAlarms, seconds
from streaming.settings.windows import TAKEN_WINDOW_NAMES, TimeWindowSettings, WindowSettings

__all__ = [
    "TAKEN_WINDOW_NAMES",
    "ErrorSettings",
    "FalseAlarms",
    "GatewayPart",
    "GatewaySettings",
    "LimitSettings",
    "ModelSettings",
    "RetrainingSettings",
    "Settings",
    "TimeWindowSettings",
    "WindowSettings",
    "load_gateway",
    "load_settings",
    "seconds",
]
