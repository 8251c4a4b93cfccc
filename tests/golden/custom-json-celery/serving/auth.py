"""Who may ask: whatever could run the model needs a key, and a policy may have a say."""

import asyncio
import hashlib
import hmac
import logging
import re
import sys
from dataclasses import dataclass
from typing import Any, Self

import httpx
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.errors import ServiceError, respond
from serving.settings import settings

# They run no model and change nothing.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
OK = 200
RUNS = "/tasks/"  # which workers ask, who have a ticket for each

logger = logging.getLogger(__name__)


class Unauthorized(ServiceError):
    """The request has no key, or one that is not valid."""

    status, message = 401, "Send a key, as Authorization: Bearer KEY or as X-API-Key: KEY."

    def __init__(self, wrong: str | None = None) -> None:
        """Say what is wrong with the one that came, if one did."""
        super().__init__(wrong)
        told = f' error="invalid_token", error_description="{wrong}"' if wrong else ""
        self.headers = {**(self.headers or {}), "WWW-Authenticate": f"Bearer{told}"}


class Forbidden(ServiceError):
    """The policy does not allow it."""

    status, message = 403, "Not allowed."


class CannotAuthorize(ServiceError):
    """Whoever has to be asked about the request did not answer in time."""

    status, message, retry_after = 503, "Cannot find out at present whether this is allowed.", 1


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    subject: str
    claims: dict[str, Any]


def bearer(headers: dict[bytes, bytes]) -> str | None:
    """Return what stands behind `Authorization: Bearer`, if anything does."""
    scheme, _, credentials = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    return credentials.strip() or None if scheme.lower() == "bearer" else None


class Keys:
    """Knows callers by one of API_KEYS."""

    def __init__(self) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in settings.api_keys]

    async def identify(self, headers: dict[bytes, bytes]) -> Caller:
        """Return who asks: the start of the key's digest, for a key has no name."""
        key = bearer(headers) or headers.get(b"x-api-key", b"").decode("latin-1")
        if not key:
            raise Unauthorized
        digest = hashlib.sha256(key.encode()).digest()
        if not any(hmac.compare_digest(digest, known) for known in self._digests):
            raise Unauthorized("The key is not valid.")
        return Caller(subject=digest.hex()[:12], claims={})


def check_settings() -> None:
    """End the start with a plain message where a setting cannot be."""
    keys = settings.api_keys
    if not keys or not all(re.fullmatch("[!-~]{16,}", key) for key in keys):
        sys.exit(
            "API_KEYS must be one or several keys, separated by commas, of at least 16 characters"
            " each, of ASCII and without blanks: `openssl rand -hex 32` makes one"
        )
    if settings.pdp_url:
        check_url("PDP_URL", settings.pdp_url)


def check_url(name: str, url: str) -> None:
    """End the start with a plain message where a setting is no URL."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        sys.exit(f"{name} must be a URL with http:// or https://")


class Authorizer:
    """Decides who may ask; to be entered for as long as requests come."""

    private: tuple[str, ...] = ()  # paths below which nobody may even look without credentials

    async def __aenter__(self) -> Self:
        """Make what asks others, on the event loop that will use it."""
        check_settings()
        logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line for each decision
        self._client = httpx.AsyncClient(timeout=settings.pdp_timeout_seconds)
        self._callers = Keys()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def authorize(self, headers: list[tuple[bytes, bytes]], method: str, path: str) -> None:
        """Return where a request may come in.

        Raises Unauthorized, Forbidden and CannotAuthorize.
        """
        if not self.guards(method, path):
            return
        caller = await self.identify(headers)
        if settings.pdp_url:
            await self._ask_policy(caller, method, path)

    def guards(self, method: str, path: str) -> bool:
        """Tell whether a request needs credentials."""
        if method != "OPTIONS" and path.startswith(self.private):
            return True
        if path.startswith(RUNS):
            return False
        return method not in SAFE_METHODS

    async def identify(self, headers: list[tuple[bytes, bytes]]) -> Caller:
        """Return who asks. Raises Unauthorized and CannotAuthorize."""
        return await self._callers.identify(dict(headers))

    async def _ask_policy(self, caller: Caller, method: str, path: str) -> None:
        """Ask as Open Policy Agent is asked."""
        request = {
            "subject": caller.subject,
            "method": method,
            "path": path,
            "claims": caller.claims,
        }
        try:
            async with asyncio.timeout(settings.pdp_timeout_seconds):
                response = await self._client.post(settings.pdp_url, json={"input": request})
        except (httpx.HTTPError, TimeoutError) as error:
            logger.warning("PDP_URL does not answer: %s %s", type(error).__name__, error)
            raise CannotAuthorize from error
        if not allows(response):
            raise Forbidden


def allows(response: httpx.Response) -> bool:
    """Tell whether a policy consents: `{"result": true}` or `{"result": {"allow": true}}`."""
    try:
        document = response.json()
    except ValueError:
        document = None
    if response.status_code != OK or not isinstance(document, dict):
        logger.warning("PDP_URL answers %d, and no decision", response.status_code)
        return False
    result = document.get("result")
    return (result.get("allow") if isinstance(result, dict) else result) is True


class Authorize:
    """Middleware that rejects who may not ask, before any of the request's body is read."""

    def __init__(self, app: ASGIApp, authorizer: Authorizer) -> None:
        self.app = app
        self.authorizer = authorizer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or reject it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        method = scope.get("method", "CONNECT")  # which a web socket does not have
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        try:
            await self.authorizer.authorize(scope["headers"], method, path)
        except Exception as error:  # noqa: BLE001 -- whatever fails here lets nobody in
            await respond(error, scope)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def install_auth(app: FastAPI, authorizer: Authorizer) -> None:
    """Put the authorizer before an app, and have the OpenAPI document say so.

    Before CORS is added: a browser may read a refusal, too.
    """
    app.add_middleware(Authorize, authorizer=authorizer)
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        document.setdefault("components", {})["securitySchemes"] = SCHEMES
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if authorizer.guards(method.upper(), path):
                    operation["security"] = [{name: []} for name in SCHEMES]
                    for error in (Unauthorized, Forbidden):
                        operation["responses"][str(error.status)] = {"description": error.__doc__}
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's way to extend it
