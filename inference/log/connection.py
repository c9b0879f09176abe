"""How to reach an event log: its address, the client library, and who we are there. Read from a configuration, without the clients."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from inference.errors import SettingsError
from inference.log.address import LogUrl, is_eventhubs, is_kafka, is_remote


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ConnectionString(_Frozen):
    """Event Hubs' connection string: SASL PLAIN as `$ConnectionString` on the Kafka endpoint, its shared access key by AMQP."""

    kind: Literal["connection_string"] = "connection_string"
    connection_string: SecretStr


class Entra(_Frozen):
    """Microsoft Entra ID: workload identity on AKS, a managed identity, or whoever is logged in; needs the extra `azure`.

    `client_id` names one of several identities.
    """

    kind: Literal["entra"]
    client_id: str | None = None


class SasToken(_Frozen):
    """A shared access signature made elsewhere; AMQP only."""

    kind: Literal["sas_token"]
    token: SecretStr


class Sasl(_Frozen):
    """A user and password of another Kafka."""

    kind: Literal["sasl"]
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username: str = Field(min_length=1)
    password: SecretStr


Auth = Annotated[ConnectionString | Entra | SasToken | Sasl, Field(discriminator="kind")]


class Tls(_Frozen):
    """PEM files: `ca` in place of the system's authorities; `certificate` and `key` where the broker asks who we are (mTLS)."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    key_password: SecretStr | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both or neither")
        return self


class Connection(_Frozen):
    """Where the event log is and how to get there. In a configuration a plain text stands for `{url: TEXT}`."""

    url: LogUrl
    client: Literal["kafka-python", "librdkafka"] = "kafka-python"
    auth: Auth | None = None
    tls: bool | Tls | None = None
    api_version: Annotated[str, Field(pattern=r"^(auto|\d+\.\d+)$")] = "auto"
    websocket: bool = False

    @model_validator(mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return {"url": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        kafka, eventhubs = is_kafka(self.url), is_eventhubs(self.url)
        if not kafka and (self.client != "kafka-python" or self.api_version != "auto"):
            raise ValueError("client and api_version are for a kafka:// log")
        if not eventhubs and self.websocket:
            raise ValueError("websocket is for an eventhubs:// log")
        if not (kafka or eventhubs) and (self.auth is not None or self.tls is not None):
            raise ValueError("auth and tls are for a log on the network: kafka:// or eventhubs://")
        if kafka and isinstance(self.auth, SasToken):
            raise ValueError("Event Hubs takes SAS tokens by AMQP only: use an eventhubs:// log, or another kind of auth")
        if kafka and isinstance(self.auth, ConnectionString | Entra) and self.tls is False:
            raise ValueError(f"auth of kind {self.auth.kind} goes over TLS only: leave tls away")
        if eventhubs and (self.auth is None or isinstance(self.auth, Sasl)):
            raise ValueError("an eventhubs:// log needs auth of kind connection_string, entra or sas_token")
        return self

    @property
    def encrypted(self) -> bool:
        """Whether the connection is TLS: what the configuration says, else where somebody logs in."""
        return self.auth is not None if self.tls is None else self.tls is not False

    def placed(self, folder: Path) -> Self:
        """The same with its paths made absolute, relative ones from `folder`."""
        if not is_remote(self.url):
            return self.model_copy(update={"url": f"embedded:{(folder / self.url.removeprefix('embedded:')).resolve()}"})
        if not isinstance(self.tls, Tls):
            return self
        paths = {name: (folder / path).resolve() for name in ("ca", "certificate", "key") if (path := getattr(self.tls, name)) is not None}
        return self.model_copy(update={"tls": self.tls.model_copy(update=paths)})


VARIABLE = "DRIFTLOOP_LOG_CONNECTION"
"""The environment variable through which a process that is only told the log's address (a pipeline's step) learns how to get there."""


def connection_to(url: str) -> Connection:
    """The connection to a log that is named by its address: as `VARIABLE` (a Connection as JSON) has it if that is for this
    address, else by the address alone. SettingsError says what an address looks like, or what is wrong with the variable."""
    if told := os.environ.get(VARIABLE):
        connection = _valid(VARIABLE, lambda: Connection.model_validate_json(told))
        if connection.url == url:
            return connection
    return _valid("log", lambda: Connection(url=url))


def as_environment(connection: Connection) -> dict[str, str]:
    """What `connection_to` reads in a process that is started with these variables; secrets go that way, never as arguments."""
    plain = connection.model_dump(mode="json", exclude_none=True)
    return {VARIABLE: json.dumps(_revealed(plain, connection.model_dump(exclude_none=True)))}


def _revealed(plain: Any, value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, dict):
        return {name: _revealed(plain[name], inner) for name, inner in value.items()}
    return plain


def _valid(where: str, make: Callable[[], Connection]) -> Connection:
    try:
        return make()
    except ValidationError as error:
        problems = error.errors(include_input=False, include_url=False)
        told = [(".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")) for problem in problems]
        raise SettingsError([f"{where}: {f'{place}: ' if place not in ('', 'url') else ''}{text}" for place, text in told]) from None
