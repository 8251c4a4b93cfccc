"""Calls of the model's other methods, each in its turn between requests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from serving.runner import Job, Runner, attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Action(Job[Any]):
    """A call of one of the model's methods, for a request that asks for no prediction.

    What `decode` returns comes before the arguments; `encode` gets what the method returns.
    """

    decode: Callable[[], list[Any]] = list
    encode: Callable[[list[Any]], Any] = list
    method: str
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


class ActingRunner(Runner):
    """A runner that makes such calls, too."""

    def answer(self, jobs: Sequence[Job[Any]]) -> list[Any]:
        """Return what an action returned, or the error that it ended with; it comes by itself."""
        action = jobs[0]
        if not isinstance(action, Action):
            return super().answer(jobs)
        return [attempt(partial(self._act, action), action)]

    def _act(self, action: Action) -> Any:
        method = getattr(self.model, action.method)
        return action.encode([method(*action.decode(), *action.arguments, **action.options)])
