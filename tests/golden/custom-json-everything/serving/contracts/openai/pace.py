"""How soon answers begin, and how fast they go on: for /metrics."""

from contextlib import aclosing
from time import monotonic

from serving.contracts.openai.answers import Parts
from serving.metrics import FIRST_TOKENS, SPEEDS
from serving.streaming import PAUSE


async def measure(parts: Parts, began: float) -> Parts:
    """Yield the parts of an answer, and note their pace; `began` is when the request came."""
    first = 0.0
    tokens = 0
    async with aclosing(parts):
        async for part in parts:
            if part != PAUSE:
                if not first:
                    first = monotonic()
                    FIRST_TOKENS.observe(first - began)
                tokens += part[1].completion_tokens or 0
            yield part
    if tokens > 1:
        SPEEDS.observe((tokens - 1) / max(monotonic() - first, 1e-6))
