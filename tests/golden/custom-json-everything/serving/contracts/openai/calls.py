"""Calls of the model's methods that answer in parts."""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from serving.actions import Action
from serving.generation import FinishReason, Part
from serving.runner import Job
from serving.streaming import StreamingRunner

Method = Callable[[], Iterable[Part | str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation(Action):
    """A call of such a method for each of several inputs, `n` times; each makes a choice."""

    n: int = 1

    def methods(self, model: Any) -> list[Method]:
        """Return the calls, in the order of the choices; a seed is another for each of them."""
        method = getattr(model, self.method)
        calls: list[Method] = []
        for item in self.arguments:
            for place in range(self.n):
                options = dict(self.options)
                if "seed" in options:
                    options["seed"] += place
                calls.append(partial(method, item, **options))
        return calls


class GeneratingRunner(StreamingRunner):
    """A runner that makes such calls, too; it yields each part with the number of its choice."""

    def parts(self, job: Job[Any]) -> Generator[Any, None, None]:
        """Yield the parts of all choices, one choice after the other."""
        if not isinstance(job, Generation):
            yield from super().parts(job)
            return
        for index, method in enumerate(job.methods(self.model)):
            for part in closed(method()):
                yield index, part


def closed(parts: Iterable[Part | str]) -> Generator[Part, None, None]:
    """Yield the parts of a choice; what they say about its end comes in one more, the last."""
    reason: FinishReason | None = None
    prompt: int | None = None
    completion: int | None = None
    called = False
    for found in parts:
        part = Part(found) if isinstance(found, str) else found
        reason = part.finish_reason or reason
        prompt = part.prompt_tokens if part.prompt_tokens is not None else prompt
        completion = part.completion_tokens if part.completion_tokens is not None else completion
        called = called or bool(part.tool_calls)
        if part.text or part.tool_calls or part.logprobs:
            yield Part(part.text, part.tool_calls, part.logprobs)
    if called and reason in (None, "stop"):
        reason = "tool_calls"
    yield Part(finish_reason=reason or "stop", prompt_tokens=prompt, completion_tokens=completion)
