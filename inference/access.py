"""Who may post to the gateway: everybody, or whoever shows the token in one of the three ways that senders know."""

import binascii
import hmac
from base64 import b64decode
from collections.abc import Iterator, Sequence
from urllib.parse import unquote_to_bytes

MIN_TOKEN = 8


class Access:
    """A token that a request must show: as the password of HTTP Basic (any user), as Bearer, or as the path's first or last part.

    KServe's agent sets no headers: what its logger URL holds is all it can show (`http://any:TOKEN@gateway/`, `http://gateway/TOKEN`).
    """

    def __init__(self, token: str) -> None:
        if len(token) < MIN_TOKEN:
            raise ValueError(f"a token needs at least {MIN_TOKEN} characters")
        self._token = token.encode()

    def allows(self, headers: Sequence[tuple[bytes, bytes]], target: bytes) -> bool:
        """`headers` with names in lower case; `target` is the request's path as it came, a query may follow it."""
        return any(hmac.compare_digest(shown, self._token) for shown in _shown(headers, target))


def _shown(headers: Sequence[tuple[bytes, bytes]], target: bytes) -> Iterator[bytes]:
    for name, value in headers:
        if name == b"authorization":
            scheme, _, credentials = value.partition(b" ")
            if scheme.lower() == b"bearer":
                yield credentials.strip()
            elif scheme.lower() == b"basic":
                try:
                    yield b64decode(credentials.strip(), validate=True).partition(b":")[2]
                except binascii.Error:
                    continue
    parts = target.partition(b"?")[0].strip(b"/").split(b"/")
    for part in {parts[0], parts[-1]}:
        yield unquote_to_bytes(part)
