"""Who may ask over gRPC, as over HTTP: decided before any of a call's message is received."""

from collections.abc import Awaitable, Callable
from typing import Any

from serving.auth import Authorizer

# They run no model and change nothing.
SAFE_METHODS = frozenset(
    {
        "ServerLive",
        "ServerReady",
        "ServerMetadata",
        "ModelReady",
        "ModelMetadata",
        "ModelConfig",
        "ModelStatistics",
        "RepositoryIndex",
    }
)


class Authorize:
    """Interceptor that rejects who may not call one of a service's methods.

    `end_call` ends a call with an error. `make_handler` makes gRPC's handler of a call: one that
    takes a stream is called before there is a message, and the client sees no difference.
    """

    def __init__(
        self,
        service: str,
        authorizer: Authorizer,
        end_call: Callable[[Exception, Any], Awaitable[Any]],
        make_handler: Callable[[Callable[[Any, Any], Awaitable[Any]]], Any],
    ) -> None:
        self.prefix = f"/{service}/"
        self.authorizer = authorizer
        self.end_call = end_call
        self.make_handler = make_handler

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> Any:
        """Return the handler of a call."""
        is_ours = details.method.startswith(self.prefix)
        if not is_ours or details.method.removeprefix(self.prefix) in SAFE_METHODS:
            return await continuation(details)
        headers = [as_header(*entry) for entry in details.invocation_metadata]
        try:
            await self.authorizer.authorize(headers, "POST", details.method)
        except Exception as raised:  # noqa: BLE001 -- whatever fails here lets nobody in
            error = raised
        else:
            return await continuation(details)

        async def reject(_messages: Any, context: Any) -> Any:
            return await self.end_call(error, context)

        return self.make_handler(reject)


def as_header(name: str, value: str | bytes) -> tuple[bytes, bytes]:
    """Return an entry of a call's metadata as HTTP has it."""
    return name.encode(), value.encode() if isinstance(value, str) else value
