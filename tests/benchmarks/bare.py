"""A bare ASGI app on the gateway's own server settings: it reads the body and answers 200. What the gateway is measured against."""

import sys

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from inference.gateway_server import listen, make_server


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    server = make_server(app)
    server.config.http = HttpToolsProtocol
    with listen("127.0.0.1", int(sys.argv[1])) as listener:
        server.run(sockets=[listener])
