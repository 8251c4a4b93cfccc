"""Tells others that a task has ended, as the Standard Webhooks specification has it.

https://www.standardwebhooks.com: each message has an id, a time and a signature.
"""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import logging
import socket
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial

import httpx
from pydantic_core import to_json

from serving.errors import ServiceError
from serving.runner import request_id
from serving.settings import settings
from serving.tasks.files import ANSWERED, Folder
from serving.tasks.records import CannotKeep, Delivery, Record, Task
from serving.tasks.table import Table

TIMEOUT_SECONDS = 15
LOOK_SECONDS = 0.5  # how often to look for what is due
AT_ONCE = 20
# The pause after an attempt that failed is so many times as long as the one before.
GROWTH, MAX_PAUSE_SECONDS, MAX_ATTEMPTS = 4, 4 * 3600, 10
GONE = 410  # nobody wants to be told there any more
PREFIX = "whsec_"
PORTS = {"http": 80, "https": 443}

logger = logging.getLogger(__name__)


class BadWebhook(ServiceError):
    """The URL to tell is none, or none that is allowed."""

    status, message = 422, "Webhook-URL must be a URL of a host that this service may tell."


class Blocked(Exception):
    """The host has an address that no client may have this service send to."""


class Claimed(Exception):
    """Another process makes this attempt."""


class Webhooks:
    """Tells of tasks that have ended, until somebody has listened."""

    def __init__(self, table: Table, files: Folder) -> None:
        self.table = table
        self.files = files

    def announce(self, record: Record) -> None:
        """Note on a task's row that its end has to be told; it is not saved yet."""
        if record.webhook:
            record.webhook_status, record.webhook_due = Delivery.PENDING, time.time()

    async def deliver(self) -> None:
        """Send what is due, for ever."""
        logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line for each attempt
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False) as client:
            while True:
                try:
                    due = await self.table.with_webhook_due(time.time(), AT_ONCE)
                    await asyncio.gather(*(self._tell(client, record) for record in due))
                except (OSError, CannotKeep):
                    logger.exception("Webhooks cannot be delivered at present")
                await asyncio.sleep(LOOK_SECONDS)

    async def _tell(self, client: httpx.AsyncClient, record: Record) -> Record | None:
        """Make one attempt, and write down how it went; None where another process makes it."""
        try:
            claimed = await self.table.change(record.id, claim)
        except Claimed:
            return None
        if not claimed:
            return None
        request_id.set(record.request_id)
        answer = await asyncio.to_thread(self.files.read, record.name, ANSWERED)
        body = to_json(
            {
                "type": f"task.{record.status}",
                "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.ended)),
                "data": Task.of(record, answer).model_dump(mode="json", exclude={"webhook"}),
            }
        )
        try:
            request = await build_request(client, record, body)
            response = await client.send(request, stream=True)
            await response.aclose()  # what it says beside its status is of no interest
            status, outcome = response.status_code, f"status {response.status_code}"
        except Exception as error:  # noqa: BLE001 -- a client has chosen the URL
            status, outcome = 0, f"{type(error).__name__}: {error}"
        told = await self.table.change(record.id, partial(write_outcome, status=status))
        if told:
            level = logging.INFO if told.webhook_status is Delivery.DELIVERED else logging.WARNING
            message = "Webhook of task %s, attempt %d: %s (%s)"
            logger.log(level, message, told.id, told.webhook_attempts, told.webhook_status, outcome)
        return told


def claim(record: Record) -> None:
    """Have no other process make this attempt; if this one dies, it is made after a while."""
    if not record.webhook_due or record.webhook_due > time.time():
        raise Claimed
    record.webhook_attempts += 1
    record.webhook_due = time.time() + 2 * TIMEOUT_SECONDS


def write_outcome(record: Record, status: int) -> None:
    """Note how an attempt went, and when there is another one."""
    record.webhook_due = None
    if httpx.codes.is_success(status):
        record.webhook_status = Delivery.DELIVERED
    elif status == GONE or record.webhook_attempts >= MAX_ATTEMPTS:
        record.webhook_status = Delivery.FAILED
    else:
        pause = settings.webhook_pause_seconds * GROWTH ** (record.webhook_attempts - 1)
        record.webhook_due = time.time() + min(pause, MAX_PAUSE_SECONDS)


async def build_request(client: httpx.AsyncClient, record: Record, body: bytes) -> httpx.Request:
    """Return the signed message. Raises Blocked, and OSError where the host has no address.

    A URL that a client has named is asked at the address that was checked: between a check and the
    request a name may come to mean another machine.
    """
    now = str(int(time.time()))
    headers = {
        "Content-Type": "application/json",
        "webhook-id": record.id,
        "webhook-timestamp": now,
        "webhook-signature": sign(settings.webhook_secret, record.id, now, body),
    }
    url = httpx.URL(record.webhook)
    if record.webhook == settings.webhook_url:
        return client.build_request("POST", url, content=body, headers=headers)
    address = await resolve(url.host, url.port or PORTS[url.scheme])
    headers["Host"] = url.netloc.decode()
    return client.build_request(
        "POST",
        url.copy_with(host=address),
        content=body,
        headers=headers,
        extensions={"sni_hostname": url.host},
    )


async def resolve(host: str, port: int) -> str:
    """Return an address of a host. Raises Blocked where one of them is not of the internet."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not may_reach(address, settings.webhook_networks):
            raise Blocked(f"{host} is {address}, which is not of the internet")
    return addresses[0]


def may_reach(text: str, networks: Sequence[str]) -> bool:
    """Tell whether a client may have this service send to an address."""
    address = ipaddress.ip_address(text)
    address = getattr(address, "ipv4_mapped", None) or address
    if any(address in ipaddress.ip_network(network) for network in networks):
        return True
    return address.is_global and not address.is_multicast


def choose_url(wanted: str | None) -> str:
    """Return whom to tell, by a request's Webhook-URL; empty for nobody. Raises BadWebhook."""
    if not wanted:
        return settings.webhook_url
    try:
        url = httpx.URL(wanted)
    except httpx.InvalidURL:
        raise BadWebhook from None
    is_allowed = any(fnmatchcase(url.host, pattern) for pattern in settings.webhook_hosts)
    if url.scheme not in PORTS or url.userinfo or not is_allowed:
        hosts = ", ".join(settings.webhook_hosts) or "none"
        raise BadWebhook(f"Webhook-URL must be a URL of a host that is allowed: {hosts}.")
    return wanted


def sign(secret: str, message_id: str, timestamp: str, body: bytes) -> str:
    """Return the signature of a message."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    content = f"{message_id}.{timestamp}.".encode() + body
    digest = hmac.digest(key, content, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"


def check_settings() -> None:
    """End the start with a plain message where a setting cannot be."""
    if not settings.webhook_url and not settings.webhook_hosts:
        return
    try:
        key = base64.b64decode(settings.webhook_secret.removeprefix(PREFIX), validate=True)
    except ValueError:
        key = b""
    if not settings.webhook_secret.startswith(PREFIX) or not 24 <= len(key) <= 64:  # noqa: PLR2004
        sys.exit(
            "WEBHOOK_SECRET must be whsec_ and 24 to 64 bytes in base64: "
            "`echo whsec_$(openssl rand -base64 32)` makes one"
        )
