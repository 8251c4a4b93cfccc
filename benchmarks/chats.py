"""Has clients ask for streams of tokens, each one after the other, and prints what came as JSON.

Every answer has as many tokens as a request may ask for, and each token comes in an event of its
own: so events are counted as they come, also those of answers that are not whole when time is up.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from statistics import quantiles
from typing import Any

import httpx

PATH = "/v1/chat/completions"
MAX_TOKENS = 64
SHEEP = range(2, 102)  # each number is another prompt
WARM_UP_SECONDS = 1


def chat(sheep: int) -> dict[str, Any]:
    """Return a request whose answer goes on for long."""
    content = f"Write a long story about {sheep} sheep."
    return {
        "model": "smollm2",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "stream": True,
    }


@dataclass
class Tally:
    """What has come: how many tokens, and after how many seconds the first of an answer."""

    tokens: int = 0
    firsts: list[float] = field(default_factory=list)


async def ask(client: httpx.AsyncClient, sheep: int, note: Callable[[float, int], None]) -> str:
    """Return the answer's text; each token is noted, with the seconds that it took and its place.

    Raises RuntimeError where an answer is not as long as it must be.
    """
    sent = time.perf_counter()
    texts: list[str] = []
    reason = None
    async with client.stream("POST", PATH, json=chat(sheep)) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            [choice] = json.loads(line[6:])["choices"]
            if text := choice["delta"].get("content"):
                note(time.perf_counter() - sent, len(texts))
                texts.append(text)
            reason = choice["finish_reason"] or reason
    if reason != "length" or len(texts) != MAX_TOKENS:
        raise RuntimeError(f"{len(texts)} tokens, and {reason!r} at their end: {texts}")
    return "".join(texts)


def client_of(url: str) -> httpx.AsyncClient:
    """Return a client that opens a connection for each request.

    Now and then llama.cpp's server closes one that it keeps, while the next request is on its way.
    """
    return httpx.AsyncClient(base_url=url, headers={"Connection": "close"}, timeout=60)


async def answers(url: str, number: int) -> list[str]:
    """Return the texts that answer the first prompts, which are sent one after the other."""
    async with client_of(url) as client:
        return [await ask(client, sheep, lambda *_: None) for sheep in SHEEP[:number]]


async def talk(client: httpx.AsyncClient, prompts: Iterator[int], tally: Tally) -> None:
    """Ask for one answer after the other."""

    def note(seconds: float, place: int) -> None:
        tally.tokens += 1
        if place == 0:
            tally.firsts.append(seconds)

    while True:
        await ask(client, next(prompts), note)


async def measure(url: str, clients: int, seconds: float) -> dict[str, float]:
    """Return what comes while so many clients ask.

    Raises what a client has failed with, and RuntimeError where the time was too short to tell.
    """
    tally, prompts = Tally(), cycle(SHEEP)
    async with client_of(url) as client:
        talks = [asyncio.create_task(talk(client, prompts, tally)) for _ in range(clients)]
        await wait(talks, WARM_UP_SECONDS)
        warm, tally.firsts = tally.tokens, []
        start = time.perf_counter()
        await wait(talks, seconds)
        seconds = time.perf_counter() - start
        for each in talks:
            each.cancel()
        await asyncio.wait(talks)
    if len(tally.firsts) < 2:
        raise RuntimeError(f"Fewer than two answers began in {seconds:.0f} s: measure for longer")
    cuts = quantiles(tally.firsts, n=100, method="inclusive")
    return {
        "rate": (tally.tokens - warm) / seconds,
        "total": tally.tokens,
        "p50": cuts[49] * 1e3,
        "p99": cuts[98] * 1e3,
    }


async def wait(talks: list[asyncio.Task[None]], seconds: float) -> None:
    """Wait for so long. Raises what a client has failed with."""
    done, _ = await asyncio.wait(talks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for each in done:
        each.result()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(measure(options.url, options.clients, options.seconds))))
