"""Who we are at an event log: Event Hubs' connection strings taken apart, and Entra's tokens, kept until shortly before they expire."""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from inference.errors import LogUnavailable, SettingsError
from inference.log.connection import ConnectionString, Entra

logger = logging.getLogger(__name__)

_EARLY = 900.0
"""Seconds before its end that a token is replaced, behind the scenes: brokers want a new one when 5 to 15 % of its time is left."""
_LAST = 60.0
"""Seconds before its end that a token is not handed out any more: a connection that is made with it must outlive the handshake."""
_PATIENCE = 8.0
"""Seconds that a caller waits for a token."""
_WORKLOAD = ("AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE")
"""What AKS sets where a service account has an identity."""


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

    Kafka's clients ask on the thread that does all their work: a token is fetched on another one, and while the old one holds
    nobody waits for the new. `credential` stands in for azure-identity's default chain: workload identity on AKS, a managed
    identity, whoever is logged in.
    """

    def __init__(self, auth: Entra, host: str, *, credential: Credential | None = None, clock: Callable[[], float] = time.time) -> None:
        self._scope = f"https://{host.partition(':')[0]}/.default"
        self._credential = credential or default_credential(auth)
        self._clock = clock
        self._lock = threading.Lock()
        self._token = ""
        self._renewal: _Renewal | None = None
        self.until = float("-inf")

    def token(self) -> str:
        """A token that holds for a minute at least. LogUnavailable, within seconds, says why there is none."""
        with self._lock:
            left = self.until - self._clock()
            if left > _EARLY:
                return self._token
            if self._renewal is None:
                self._renewal = _Renewal(self._renew)
                self._renewal.start()
            renewal, token = self._renewal, self._token
        if left > _LAST:
            return token
        renewal.join(_PATIENCE)
        with self._lock:
            if self.until - self._clock() > 0:
                return self._token
        why = _first_line(renewal.error) if renewal.error else f"there was no answer within {_PATIENCE:.0f} s"
        raise LogUnavailable(
            f"no Entra token for {self._scope}: {why}; give this workload an identity (on AKS a service account with workload"
            " identity) that has the role Azure Event Hubs Data Sender or Receiver"
        ) from renewal.error

    def _renew(self) -> None:
        try:
            given = self._credential.get_token(self._scope)
        except Exception as error:
            with self._lock:
                self._renewal = None
                left = self.until - self._clock()
            if left > 0:
                logger.warning("the Entra token cannot be renewed yet, the old one holds for %.0f s more: %s", left, _first_line(error))
            raise
        with self._lock:
            self._token, self.until, self._renewal = str(given.token), float(given.expires_on), None


class _Renewal(threading.Thread):
    """One try to have a new token; `error` tells why it failed."""

    def __init__(self, renew: Callable[[], None]) -> None:
        # A daemon: an identity service that does not answer must not keep a process from ending.
        super().__init__(name="entra", daemon=True)
        self._renew = renew
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._renew()
        except Exception as error:  # noqa: BLE001 - whoever waits for the token is told
            self.error = error


def default_credential(auth: Entra) -> Credential:
    """On AKS the workload's identity; elsewhere the managed identity that is named, or the first of azure-identity's ways that works."""
    try:
        from azure.identity import DefaultAzureCredential, ManagedIdentityCredential, WorkloadIdentityCredential
    except ImportError as error:
        raise SettingsError(["log.auth of kind entra needs azure-identity: pip install 'driftloop[azure]'"]) from error
    # It tells of every request, and warns of each way that is not there.
    logging.getLogger("azure").setLevel(logging.WARNING)
    logging.getLogger("azure.identity").setLevel(logging.ERROR)
    credential: Credential
    if all(os.environ.get(name) for name in _WORKLOAD) and (auth.client_id or os.environ.get("AZURE_CLIENT_ID")):
        credential = WorkloadIdentityCredential(**({"client_id": auth.client_id} if auth.client_id else {}))
    elif auth.client_id:
        credential = ManagedIdentityCredential(client_id=auth.client_id)
    else:
        credential = DefaultAzureCredential()
    return credential


def _first_line(error: Exception) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:300]
