"""Large requests: they are read off the event loop, and one after the other."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool

from serving.errors import ServiceError

LARGE = 64 * 1024  # bytes from which on a body is no business of the event loop
# Large requests are read one after the other: meanwhile each takes many times its size.
reading = asyncio.Semaphore(1)

Failure = ServiceError | RequestValidationError
T = TypeVar("T")


async def one_at_a_time(size: int, function: Callable[[], T]) -> T:
    """Return what a function returns that takes memory where there are many bytes."""
    if size <= LARGE:
        return function()
    async with reading:
        found = await run_in_threadpool(settle, function)
    return result(found)


async def off_the_loop(size: int, function: Callable[[], T]) -> T:
    """Return what a function returns that takes long where there are many bytes."""
    return await run_in_threadpool(function) if size > LARGE else function()


def settle(function: Callable[[], T]) -> T | Failure:
    """Return what a function returns, or what refuses a request, without all that the call held."""
    try:
        return function()
    except (ServiceError, RequestValidationError) as error:
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)


def result(found: T | Failure) -> T:
    """Return what was settled, or raise it."""
    if not isinstance(found, ServiceError | RequestValidationError):
        return found
    try:
        raise found
    finally:
        del found  # else it and its traceback would hold each other
