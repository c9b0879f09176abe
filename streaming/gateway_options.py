"""How the gateway is run: the configuration's `log` and `gateway`, and over them what the command line says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from inference.errors import SettingsError
from inference.gateway_server import GatewayOptions
from inference.log.connection import connection_to
from inference.tee import TeeOptions
from streaming.settings import GatewaySettings, load_gateway


def gateway_options(config: Path | None, log: str | None, **flags: Any) -> GatewayOptions:
    """`flags` are fields of GatewayOptions, None where the command line says nothing.

    A `log` there takes the place of the configured one as a whole: credentials are not shown to another address than their own.
    """
    if config is not None:
        part = load_gateway(config)
        options = _options(part.gateway, log=part.log)
        if log is not None:
            options = replace(options, log=connection_to(log))
    elif log is not None:
        options = GatewayOptions(connection_to(log))
    else:
        raise SettingsError(["where do events belong? give --log PATH or URL, or --config FILE"])
    return replace(options, **{name: value for name, value in flags.items() if value is not None})


def _options(settings: GatewaySettings, **more: Any) -> GatewayOptions:
    tee = settings.tee
    return GatewayOptions(
        host=settings.host,
        port=settings.port,
        spool=settings.spool,
        spool_bytes=settings.spool_bytes,
        drain=settings.drain,
        max_body=settings.max_body,
        token=None if settings.token is None else settings.token.get_secret_value(),
        close_connections=settings.close_connections,
        tee=None if tee is None else TeeOptions(**{**dict(tee), "url": tee.url.get_secret_value()}),
        **more,
    )
