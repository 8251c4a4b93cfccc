"""Answers requests that waited together by one call of the model."""

import time
from collections import defaultdict
from collections.abc import Hashable, Sequence
from functools import partial
from itertools import islice
from typing import Any

from serving.runner import Job, Runner, attempt
from serving.settings import settings
from serving.worker import Call, Worker


class BatchingWorker(Worker):
    """A worker that takes from its queue what goes into one batch."""

    def _take(self) -> list[Call]:
        """Take what waits, at most MAX_BATCH_SIZE calls, after MAX_BATCH_DELAY_MS at most."""
        if settings.max_batch_delay_ms:
            ready = self.waiting[0].queued + settings.max_batch_delay_ms / 1000
            self._changed.wait_for(self._is_batch_full, ready - time.monotonic())
        calls = super()._take()
        while self.waiting and can_join(self.waiting[0]) and can_join(calls[0]):
            if len(calls) == settings.max_batch_size:
                break
            calls.append(self.waiting.popleft())
        return calls

    def _is_batch_full(self) -> bool:
        is_full = len(self.waiting) >= settings.max_batch_size
        return is_full or not all(map(can_join, self.waiting))


def can_join(call: Call) -> bool:
    """Tell whether a call may share a batch; a stream, for one, is a batch by itself."""
    return type(call) is Call and type(call.job) is Job


class BatchingRunner(Runner):
    """Answers several jobs by as few calls of the model as can be.

    Inputs go into one call where `Model.batch_key` is the same, or where the model has none.
    """

    def answer(self, jobs: Sequence[Job[Any]]) -> list[Any]:
        """Return an answer for each job, or the error that it alone caused."""
        decoded = [attempt(job.decode, job) for job in jobs]
        inputs = [
            (job, item)
            for job, items in zip(jobs, decoded, strict=True)
            if not isinstance(items, Exception)
            for item in items
        ]
        outputs = iter(self._predict_groups(inputs))
        answers: list[Any] = []
        for job, items in zip(jobs, decoded, strict=True):
            if isinstance(items, Exception):
                answers.append(items)
                continue
            own = list(islice(outputs, len(items)))
            errors = [output for output in own if isinstance(output, Exception)]
            answers.append(errors[0] if errors else attempt(partial(job.encode, own), job))
        return answers

    def _predict_groups(self, inputs: list[tuple[Job[Any], Any]]) -> list[Any]:
        """Return the output of each input, or the error that it alone caused."""
        groups: defaultdict[Any, list[int]] = defaultdict(list)
        outputs: list[Any] = [None] * len(inputs)
        for place, (job, item) in enumerate(inputs):
            key = attempt(partial(self._batch_key, item), job)
            if isinstance(key, Exception):
                outputs[place] = key
            else:
                groups[key].append(place)
        for places in groups.values():
            for start in range(0, len(places), settings.max_batch_size):
                batch = places[start : start + settings.max_batch_size]
                found = self._predict_batch([inputs[place] for place in batch])
                for place, output in zip(batch, found, strict=True):
                    outputs[place] = output
        return outputs

    def _batch_key(self, item: Any) -> Hashable:
        """Return what inputs of one call have in common."""
        key = getattr(self.model, "batch_key", None)
        found: Hashable = key(item) if key else None
        hash(found)
        return found

    def _predict_batch(self, inputs: list[tuple[Job[Any], Any]]) -> list[Any]:
        """Predict all in one call; where that fails one by one, so that only the bad one does."""
        job = inputs[0][0]
        only = job if all(other is job for other, _ in inputs) else None
        outputs = attempt(partial(self.predict, [item for _, item in inputs]), only)
        if not isinstance(outputs, Exception):
            return outputs
        if only:
            return [outputs] * len(inputs)
        return [output for item in inputs for output in self._predict_batch([item])]
