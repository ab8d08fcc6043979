"""The exceptions of aiohttp's client that seamless-remote can meet, as the same tree.

seamless-remote decides by the type whether it tries again: what is a `ClientConnectionError`, a
`ClientPayloadError` or a timeout is tried five times, and everything else once.
"""

import asyncio


class ClientError(Exception):
    """The root of the tree (aiohttp.ClientError)."""


class ClientConnectionError(ClientError):
    """Anything that is wrong with a connection."""


class ClientOSError(ClientConnectionError, OSError):
    """The operating system reported the fault."""


class ClientConnectorError(ClientOSError):
    """No connection could be made; `os_error` says why."""

    def __init__(self, address: str, os_error: OSError) -> None:
        self.os_error = os_error
        # asyncio puts what several addresses have said into a message of one that has neither.
        why = os_error.strerror or str(os_error)
        super().__init__(os_error.errno, f"Cannot connect to {address}: {why}")


class ServerConnectionError(ClientConnectionError):
    """The server is to blame for a broken connection."""


class ServerDisconnectedError(ServerConnectionError):
    """The server closed the connection before it answered."""


class ServerTimeoutError(ServerConnectionError, asyncio.TimeoutError):
    """The server took too long."""


class ConnectionTimeoutError(ServerTimeoutError):
    """No connection within the time allowed for it."""


class SocketTimeoutError(ServerTimeoutError):
    """No byte within the time allowed between bytes."""


class ClientPayloadError(ClientError):
    """The body of an answer was cut short, or cannot be decoded."""


class ClientResponseError(ClientError):
    """The answer is not HTTP."""


class InvalidURL(ClientError, ValueError):
    """A URL that no request can be sent to."""
