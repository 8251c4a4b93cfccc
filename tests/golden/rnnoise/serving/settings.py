"""All that can be tuned: each field is the environment variable of its name, in capitals."""

# ruff: noqa: S104 -- a container is reached from outside

import re
import sys
from contextlib import suppress
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def split(value: Any) -> Any:
    """Return the items of a list that is written with commas."""
    if not isinstance(value, str):
        return value
    return [item for item in map(str.strip, value.split(",")) if item]


def check_device(name: str) -> str:
    """Return the name if it is one of a device. Raises ValueError."""
    if not re.fullmatch(r"cuda(:\d+)?|mps|cpu", name):
        raise ValueError("'cuda', 'mps', 'cpu', or 'cuda:1' for the second GPU")
    return name


def check_path(path: str) -> str:
    """Return the path if routes can stand behind it. Raises ValueError."""
    if not re.fullmatch(r"(/[^/?#\s]+)*", path):
        raise ValueError("a path such as '/models/ocr', with a slash at its start alone")
    return path


def check_origin(origin: str) -> str:
    """Return the origin if a browser can send it. Raises ValueError, with the right form."""
    if origin in ("*", "null"):
        return origin
    right = "https://app.example"
    with suppress(ValueError):  # what is no URL, or no name of a host
        url = urlsplit(origin if "//" in origin else f"https://{origin}")
        host = url.netloc.rpartition("@")[2].lower().encode("idna").decode()
        port = {"http": ":80", "https": ":443"}.get(url.scheme, "")  # which browsers leave out
        if re.fullmatch(r"[^\s*']+", host) and url.scheme:
            right = f"{url.scheme}://{host.removesuffix(port)}"
    if right != origin:
        raise ValueError(f"'*', or whole origins as browsers send them, such as {right!r}")
    return origin


Device = Annotated[str, AfterValidator(check_device)]
Port = Annotated[int, Field(ge=0, le=65535)]
Origin = Annotated[str, AfterValidator(check_origin)]
Root = Annotated[str, AfterValidator(check_path)]


class Settings(BaseSettings):
    """The variables, their defaults, and what each is for. REFERENCE.md has them as a table."""

    model_config = SettingsConfigDict(env_ignore_empty=True)

    port: Port = 8000
    """Port to listen on."""
    host: str = "0.0.0.0"
    """Address to listen on; `::` is every one, of IPv6 and IPv4."""
    root_path: Root = ""
    """Path that a proxy serves this below, such as `/models/ocr`; /docs has to know."""
    device: Device | None = None
    """Device to use, taken as it stands, such as `cuda:1`; by default the best there is."""
    max_upload_mb: PositiveInt = 20
    """Larger bodies are 413."""
    max_bodies_mb: PositiveInt = 512
    """What the bodies of all requests may take at once; above it requests are 503."""
    max_queue_size: PositiveInt = 64
    """Requests that may wait for the model; more are 503."""
    infer_timeout_seconds: PositiveInt = 60
    """Slower answers are 504."""
    infer_hang_seconds: PositiveInt = 300
    """A call that runs longer ends the process, for the container to restart."""
    request_timeout_seconds: PositiveInt = 30
    """Bodies that take longer to arrive are 408."""
    drain_seconds: NonNegativeInt = 0
    """After SIGTERM, seconds in which /ready is 503 and requests are still answered."""
    stop_seconds: PositiveInt | None = None
    """After SIGTERM, seconds until what is left is cut off; by default, what a request may take."""
    http_parser: Literal["httptools", "h11"] = "httptools"
    """h11 is slower, and reads bodies of requests that offer an upgrade, as Java's client does."""
    max_audio_seconds: PositiveInt = 600
    """Longer recordings are 400."""
    num_threads: Annotated[
        PositiveInt | None, Field(validation_alias=AliasChoices("NUM_THREADS", "OMP_NUM_THREADS"))
    ] = None
    """Threads of the frameworks; by default the container's CPUs."""
    warmup: bool = True
    """Answer EXAMPLE before /ready is 200."""
    cors_origins: Annotated[list[Origin], NoDecode, BeforeValidator(split)] = ["*"]
    """Origins that browsers may call from, such as `https://app.example`, separated by commas."""
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(str.upper)
    ] = "INFO"
    """What is logged."""
    log_format: Annotated[Literal["text", "json"], BeforeValidator(str.lower)] = "text"
    """`json` is one object per line."""


def read_settings() -> Settings:
    """Return what the environment says; a wrong value ends the start with one line."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = error.errors()[0]
        name = str(wrong["loc"][0]).upper()
        rule = re.sub("^(Input should be|Value error,) |, unable.*", "", wrong["msg"])
        sys.exit(f"{name} must be {rule}; not {wrong['input']!r}")


settings = read_settings()
