"""How the command logs: text on a terminal, one JSON object a line elsewhere. Used by the CLI only."""

import logging
from datetime import UTC, datetime

import orjson


class JsonLines(logging.Formatter):
    """`{"time", "level", "logger", "message"}`, and `exception` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def configure(level: int, *, as_json: bool) -> None:
    """Set up the root logger, on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if as_json else logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # kafka-python tells of every try to connect, as an error each; that the log is away we tell ourselves, once.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    # Azure's tell dozens of lines of each connection.
    logging.getLogger("azure").setLevel(logging.WARNING)
    logging.getLogger("azure.eventhub").setLevel(logging.CRITICAL)
