"""Who we are at an event log: Event Hubs' connection strings taken apart, and Entra's tokens, kept until shortly before they expire."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from inference.errors import LogUnavailable, SettingsError
from inference.log.connection import ConnectionString, Entra

logger = logging.getLogger(__name__)

_EARLY = 300.0
"""Seconds before its end that a token is replaced: a connection that is made with it must outlive the handshake."""


@dataclass(frozen=True, slots=True)
class SharedKey:
    """A connection string's parts; `hub` is "" where it is for the whole namespace."""

    host: str
    name: str
    key: str = field(repr=False)
    hub: str


def shared_key(auth: ConnectionString, hub: str) -> SharedKey:
    """The parts of a connection string that is used for `hub`. SettingsError names what is missing or does not fit, never a value."""
    text = auth.connection_string.get_secret_value().strip()
    parts = dict(piece.split("=", 1) for piece in text.split(";") if "=" in piece)
    wanted = ("Endpoint", "SharedAccessKeyName", "SharedAccessKey")
    missing = [name for name in wanted if not parts.get(name)]
    if missing:
        looks = "Endpoint=sb://NAMESPACE.servicebus.windows.net/;SharedAccessKeyName=...;SharedAccessKey=..."
        raise SettingsError([f"log.auth.connection_string: {', '.join(missing)} is missing; it should look like {looks}"])
    found = parts.get("EntityPath", "")
    if found and found != hub:
        raise SettingsError(
            [f"log.auth.connection_string is for the event hub {found[:80]!r}, and the log's address names {hub!r}: make them the same"]
        )
    host = parts["Endpoint"].partition("://")[2].rstrip("/")
    return SharedKey(host, parts["SharedAccessKeyName"], parts["SharedAccessKey"], found)


class Credential(Protocol):
    """azure-identity's: gives an object with `token` and `expires_on` (seconds since 1970)."""

    def get_token(self, *scopes: str) -> Any: ...


class EntraTokens:
    """Tokens for one namespace, the newest of which holds `until` (seconds since 1970); safe for several threads.

    `credential` stands in for azure-identity's default chain: workload identity on AKS, a managed identity, whoever is logged in.
    """

    def __init__(self, auth: Entra, host: str, *, credential: Credential | None = None, clock: Callable[[], float] = time.time) -> None:
        self._scope = f"https://{host.partition(':')[0]}/.default"
        self._credential = credential or _default_credential(auth)
        self._clock = clock
        self._lock = threading.Lock()
        self._token = ""
        self.until = float("-inf")

    def token(self) -> str:
        """A token that holds for some minutes yet. LogUnavailable says why there is none."""
        with self._lock:
            if self._clock() < self.until - _EARLY:
                return self._token
            try:
                token = self._credential.get_token(self._scope)
            except Exception as error:
                if self._clock() < self.until:
                    logger.warning("the Entra token cannot be renewed yet, the old one still holds: %s", _first_line(error))
                    return self._token
                raise LogUnavailable(
                    f"no Entra token for {self._scope}: {_first_line(error)}; give this workload an identity (on AKS a service account"
                    " with workload identity) that has the role Azure Event Hubs Data Sender or Receiver"
                ) from error
            self._token, self.until = str(token.token), float(token.expires_on)
            return self._token


def _default_credential(auth: Entra) -> Credential:
    try:
        from azure.identity import DefaultAzureCredential
    except ImportError as error:
        raise SettingsError(["log.auth of kind entra needs azure-identity: pip install 'driftloop[azure]'"]) from error
    # It tries one way after the other and logs a warning for each that is not there.
    logging.getLogger("azure.identity").setLevel(logging.ERROR)
    named = {"managed_identity_client_id": auth.client_id, "workload_identity_client_id": auth.client_id} if auth.client_id else {}
    credential: Credential = DefaultAzureCredential(exclude_interactive_browser_credential=True, **named)
    return credential


def _first_line(error: Exception) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:300]
