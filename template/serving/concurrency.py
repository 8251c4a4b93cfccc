"""Answers in parts beside each other, where the model can do several at once."""

import logging
import time
from threading import Thread
from typing import Any

from serving.settings import settings
from serving.streaming import StreamCall, StreamingWorker
from serving.worker import Call

logger = logging.getLogger(__name__)


class ConcurrentWorker(StreamingWorker):
    """A worker that has up to `Model.max_streams` answers in parts made at once.

    Each has a thread of its own. All else that the model is asked is asked by the model's thread,
    one after the other and while streams are made; so such a model has to be thread-safe.
    """

    def __init__(self, runner: Any) -> None:
        super().__init__(runner)
        self.streams: list[Call] = []
        self.max_streams: int = getattr(runner.model_class, "max_streams", 1)

    @property
    def at_work(self) -> list[Call]:
        """What the model works on, streams included."""
        return [*self.running, *self.streams]

    def _has_work(self) -> bool:
        """Tell whether there is a call, or none is wanted; a stream waits until one has ended."""
        if self._is_stopping or not self.waiting:
            return super()._has_work()
        waits = isinstance(self.waiting[0], StreamCall) and len(self.streams) >= self.max_streams
        return not waits and super()._has_work()

    def _answer(self, calls: list[Call]) -> None:
        call = calls[0]
        if self.max_streams > 1 and isinstance(call, StreamCall):
            with self._changed:
                self.streams.append(call)
            Thread(target=self._answer_beside, args=(call,), name="stream", daemon=True).start()
        else:
            super()._answer(calls)

    def _answer_beside(self, call: Call) -> None:
        """Body of a stream's thread."""
        try:
            super()._answer([call])
        finally:
            with self._changed:
                self.streams.remove(call)
                self._changed.notify()

    def _is_overdue(self) -> bool:
        """Tell whether the model works on nothing but what is past its deadline."""
        calls, now = self.at_work, time.monotonic()
        return bool(calls) and all(call.deadline < now for call in calls)

    def _tick(self) -> None:
        """End the process where a stream hangs for good, too."""
        super()._tick()
        limit = settings.infer_hang_seconds
        for call in list(self.streams):
            if time.monotonic() - call.started > limit and not self.failed:
                logger.critical("A stream has hung for %d s; ending the process", limit)
                self.fail()
