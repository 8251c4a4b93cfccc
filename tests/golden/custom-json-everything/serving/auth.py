"""Who may ask: whatever could run the model needs a token, and a policy may have a say."""

import asyncio
import json
import logging
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

import httpx
import jwt
from fastapi import FastAPI
from pydantic_core import from_json, to_json
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.errors import ServiceError, respond
from serving.settings import settings

# They run no model and change nothing.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
SCHEMES = {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}

ALGORITHM = settings.jwt_algorithm or ("RS256" if settings.jwt_jwks_url else "HS256")
# The algorithms of a secret, and its least length in bytes: that of the hash.
SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
PUBLIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
# What JWK calls the keys of those that begin like this.
KEY_TYPES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
LEEWAY_SECONDS = 5  # by which clocks may differ

# The issuer's keys are fetched again when they are so old, or for a token whose key is not there...
FRESH_SECONDS = 300
# ... but no more often than this, whatever tokens come.
RETRY_SECONDS = 5
FETCH_SECONDS = 3
# How long they are good for while the issuer cannot be reached.
STALE_SECONDS = 3600
MAX_SET_BYTES = 4_000_000  # ten thousand keys
MAX_TRIES = 16  # keys that one token may cost to check: more cannot share an id, or have none

# What a client is told; of any other mistake, no more than that there is one.
MISTAKES: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: "The token has expired.",
    jwt.ImmatureSignatureError: "The token is not valid yet.",
    jwt.InvalidAudienceError: "The token is for another audience.",
    jwt.InvalidIssuerError: "The token is from another issuer.",
}
OK = 200

logger = logging.getLogger(__name__)


class Unauthorized(ServiceError):
    """The request has no token, or one that is not valid."""

    status, message = 401, "Send a token, as Authorization: Bearer TOKEN."

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


class KeySet:
    """The issuer's public keys, at JWT_JWKS_URL."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._keys: dict[str | None, list[Any]] = {}  # by their ids; under None, those without one
        self._fetched = self._tried = float("-inf")
        self._is_known = False  # whether the last attempt to fetch them was successful
        self._fetching: asyncio.Task[None] | None = None
        self._refresh()

    async def find(self, key_id: str | None) -> list[Any]:
        """Return the keys that a token with this id may be signed with, in the set's order.

        Raises as `authorize` does.
        """
        age = time.monotonic() - self._fetched
        if age > STALE_SECONDS:
            self._keys = {}
        is_there = key_id in self._keys if key_id else bool(self._keys)
        if not is_there or age > FRESH_SECONDS:
            self._refresh()
        if not is_there and self._fetching:
            await asyncio.wait([self._fetching])
        if key_id:  # a key without an id may have any
            keys = self._keys.get(key_id) or self._keys.get(None, [])
        else:
            keys = list(chain.from_iterable(self._keys.values()))
        if not keys and not self._is_known:
            raise CannotAuthorize
        if not keys:
            raise Unauthorized("The token's key is not known.")
        return keys[:MAX_TRIES]

    def _refresh(self) -> None:
        """Begin to fetch the keys, unless that goes on or was tried just now."""
        now = time.monotonic()
        if now - self._tried > RETRY_SECONDS and (not self._fetching or self._fetching.done()):
            self._tried = now
            self._fetching = asyncio.create_task(self._fetch())

    async def _fetch(self) -> None:
        self._is_known = False
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                document = await self._download()
                # Off the event loop, which thousands of keys would stop.
                self._keys = await asyncio.to_thread(read_keys, document)
        except Exception as error:  # noqa: BLE001 -- an issuer may answer anything
            logger.warning("JWT_JWKS_URL has no keys: %s %s", type(error).__name__, error)
            return
        self._is_known, self._fetched = True, time.monotonic()

    async def _download(self) -> bytes:
        """Return what is at JWT_JWKS_URL. Raises ValueError for what cannot be a set of keys."""
        document, url = b"", settings.jwt_jwks_url
        async with self._client.stream("GET", url, timeout=FETCH_SECONDS) as response:
            if response.status_code != OK:
                raise ValueError(f"status {response.status_code}")
            async for part in response.aiter_bytes():
                document += part
                if len(document) > MAX_SET_BYTES:
                    raise ValueError(f"more than {MAX_SET_BYTES} bytes")
        return document


def read_keys(document: bytes) -> dict[str | None, list[Any]]:
    """Return the keys of a JWK set that the algorithm can use, by their ids.

    One that cannot be used takes nothing from the others, also if it has another's id. Raises
    ValueError and others for what is no set.
    """
    keys: dict[str | None, list[Any]] = {}
    members = json.loads(document)["keys"]
    if not isinstance(members, list):
        raise TypeError("its keys are no list")
    for place, found in enumerate(members):
        try:
            if (key := read_key(found)) is not None:
                keys.setdefault(found.get("kid"), []).append(key)
        except Exception as error:  # noqa: BLE001 -- an entry may be anything
            text = "Key %d at JWT_JWKS_URL is not used: %s %s"
            logger.warning(text, place + 1, type(error).__name__, error)
    return keys


def read_key(found: dict[str, Any]) -> Any:
    """Return the public key of a JWK; None for one that is for something else.

    Raises ValueError, TypeError, PyJWTError and others for one that cannot be used.
    """
    if found["kty"] != KEY_TYPES[ALGORITHM[:2]] or found.get("alg") not in (None, ALGORITHM):
        return None
    if found.get("use") not in (None, "sig") or "verify" not in found.get("key_ops", ["verify"]):
        return None
    if not isinstance(found.get("kid"), str | None):
        raise TypeError("its kid is no text")
    if "d" in found:
        raise ValueError("it is a private key: whoever can read it there can sign with it")
    key = jwt.PyJWK(found, ALGORITHM)
    if weakness := key.Algorithm.check_key_length(key.key):
        raise ValueError(weakness)
    return key.Algorithm.prepare_key(key.key)  # raises for another curve


class Tokens:
    """Knows callers by a signed token."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._keys = KeySet(client) if settings.jwt_jwks_url else None

    async def identify(self, headers: dict[bytes, bytes]) -> Caller:
        """Return who asks, as the token says."""
        token = bearer(headers)
        if token is None:
            raise Unauthorized
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
            keys = await self._keys.find(key_id) if self._keys else [settings.jwt_secret]
            claims = read_claims(token, keys)
        except (jwt.PyJWTError, RecursionError) as error:
            raise Unauthorized(MISTAKES.get(type(error), "The token is not valid.")) from error
        return Caller(subject=claims.get("sub", ""), claims=claims)


def read_claims(token: str, keys: list[Any]) -> dict[str, Any]:
    """Return a token's claims, if it is valid by any of the keys. Raises PyJWTError."""
    for key in keys:
        with suppress(jwt.InvalidSignatureError):
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                audience=settings.jwt_audience,
                issuer=settings.jwt_issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp"]},
            )
            check_claims(claims)
            return claims
    raise jwt.InvalidSignatureError


def check_claims(claims: dict[str, Any]) -> None:
    """Raise InvalidTokenError for claims that PyJWT takes and that are none.

    It takes "1", true and null for times. NaN and half a surrogate pair are no JSON, and what is
    nested too deeply cannot be told to a policy.
    """
    times = [claims[name] for name in ("exp", "nbf", "iat") if name in claims]
    if not all(isinstance(time, int | float) and not isinstance(time, bool) for time in times):
        raise jwt.InvalidTokenError
    try:
        from_json(to_json(claims), allow_inf_nan=False)
    except ValueError as error:
        raise jwt.InvalidTokenError from error


def check_settings() -> None:
    """End the start with a plain message where a setting cannot be."""
    secret = settings.jwt_secret
    if bool(secret) == bool(settings.jwt_jwks_url):
        sys.exit(
            "JWT_SECRET or JWT_JWKS_URL must be set, and not both: the secret that signs tokens"
            " (`openssl rand -hex 32` makes one), or where the issuer has its public keys"
        )
    source, algorithms = ("JWT_SECRET", SECRET_BYTES) if secret else ("JWT_JWKS_URL", PUBLIC)
    if ALGORITHM not in algorithms:
        names = ", ".join(algorithms)
        sys.exit(f"JWT_ALGORITHM must be one of {names} with {source}; not {ALGORITHM!r}")
    if secret and len(secret.encode()) < SECRET_BYTES[ALGORITHM]:
        sys.exit(
            f"JWT_SECRET must be at least {SECRET_BYTES[ALGORITHM]} bytes long for {ALGORITHM}:"
            " `openssl rand -hex 32` makes one"
        )
    for name in ("jwt_jwks_url", "pdp_url"):
        if url := getattr(settings, name):
            check_url(name.upper(), url)


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

    async def __aenter__(self) -> Self:
        """Make what asks others, on the event loop that will use it."""
        check_settings()
        logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line for each decision
        self._client = httpx.AsyncClient(timeout=settings.pdp_timeout_seconds)
        self._callers = Tokens(self._client)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def authorize(self, headers: list[tuple[bytes, bytes]], method: str, path: str) -> None:
        """Return where a request may come in.

        Raises Unauthorized, Forbidden and CannotAuthorize.
        """
        if method in SAFE_METHODS:
            return
        caller = await self.identify(headers)
        if settings.pdp_url:
            await self._ask_policy(caller, method, path)

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
        for operations in document["paths"].values():
            for method, operation in operations.items():
                if method.upper() not in SAFE_METHODS:
                    operation["security"] = [{name: []} for name in SCHEMES]
                    for error in (Unauthorized, Forbidden):
                        operation["responses"][str(error.status)] = {"description": error.__doc__}
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's way to extend it
