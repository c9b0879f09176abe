"""How the gateway and the watcher are run, and who is told."""

from pathlib import Path
from typing import Annotated

from pydantic import (
    Field,
    SecretStr,
)

from streaming.settings.values import Frozen, Seconds, SecretUrl


class SlackSettings(Frozen):
    """Slack's incoming webhook."""

    webhook: SecretUrl
    timeout: Annotated[Seconds, Field(gt=0, le=60)] = 10.0


class WebhookSettings(Frozen):
    """Where each drift is POSTed as a CloudEvent."""

    url: SecretUrl
    timeout: Annotated[Seconds, Field(gt=0, le=60)] = 10.0


class AlertSettings(Frozen):
    """Who hears of it."""

    slack: SlackSettings | None = None
    webhook: WebhookSettings | None = None


class WatchSettings(Frozen):
    """The watcher as one of several: members of one `group` share the log's partitions and one place for snapshots.

    `member` names this one (static membership: a restart within `session` moves no partition); after `session` without a sign
    of life the others get its partitions. `snapshots` is a folder or an fsspec URL, by default a folder in `state`.
    """

    group: Annotated[str, Field(pattern=r"^(\$Default|[A-Za-z0-9._-]{1,200})$")] = "driftloop"
    member: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,200}$")] | None = None
    session: Annotated[Seconds, Field(ge=6, le=1800)] = 30.0
    snapshots: str = ""
    snapshot_every: Annotated[Seconds, Field(gt=0)] = 30.0


class TeeSettings(Frozen):
    """A second receiver of every event that the gateway accepts, for example TrustyAI or a Knative broker; best effort."""

    url: SecretUrl
    timeout: Annotated[Seconds, Field(gt=0, le=60)] = 5.0
    connections: int = Field(default=4, ge=1, le=64)
    max_events: int = Field(default=10_000, ge=1)
    max_bytes: int = Field(default=64_000_000, ge=1)
    ca: Path | None = None


class GatewaySettings(Frozen):
    """How the gateway is run; what its command line says counts more. Sizes are in bytes.

    `spool` is where events wait for a log on the network. `token`: who posts must show it. `close_connections`: after each answer,
    as KServe's agent needs over TLS (else it leaks a connection an event). `drain`: how long an ending gateway carries its spool on.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8090, ge=0, le=65_535)
    spool: Path = Path(".driftloop/spool")
    spool_bytes: int = Field(default=2_000_000_000, ge=1_000_000)
    drain: Annotated[Seconds, Field(le=3600)] = 10.0
    max_body: int = Field(default=1_000_000, ge=1_000, le=100_000_000)
    token: Annotated[SecretStr, Field(min_length=8)] | None = None
    close_connections: bool = False
    tee: TeeSettings | None = None

    def placed(self, folder: Path) -> "GatewaySettings":
        """The same with its paths made absolute, relative ones from `folder`."""
        tee = self.tee
        if tee is not None and tee.ca is not None:
            tee = tee.model_copy(update={"ca": (folder / tee.ca).resolve()})
        return self.model_copy(update={"spool": (folder / self.spool).resolve(), "tee": tee})
