"""Answers requests that waited together by one call of the model."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from itertools import islice
from typing import Any

from serving.limits import env_int
from serving.worker import Job, Predict, attempt, predicted

MAX_BATCH_SIZE = env_int("MAX_BATCH_SIZE", 32, minimum=1)
MAX_BATCH_DELAY_MS = env_int("MAX_BATCH_DELAY_MS", 0)


def answer_together(
    predict: Predict, key: Callable[[Any], Hashable], jobs: Sequence[Job[Any]]
) -> list[Any]:
    """Answer requests by as few calls as can be; an answer is the error where it failed.

    Inputs of the same key go into one call, at most MAX_BATCH_SIZE of them.
    """
    decoded = [attempt(job.decode, job) for job in jobs]
    inputs = [
        (job, item)
        for job, items in zip(jobs, decoded, strict=True)
        if not isinstance(items, Exception)
        for item in items
    ]
    outputs = iter(_predict_groups(predict, key, inputs))
    answers: list[Any] = []
    for job, items in zip(jobs, decoded, strict=True):
        if isinstance(items, Exception):
            answers.append(items)
            continue
        own = list(islice(outputs, len(items)))
        errors = [output for output in own if isinstance(output, Exception)]
        answers.append(errors[0] if errors else attempt(partial(job.encode, own), job))
    return answers


def _predict_groups(
    predict: Predict, key: Callable[[Any], Hashable], inputs: list[tuple[Job[Any], Any]]
) -> list[Any]:
    """Return the output of each input, or the error that it alone caused."""
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for place, (_, item) in enumerate(inputs):
        groups[key(item)].append(place)
    outputs: list[Any] = [None] * len(inputs)
    for places in groups.values():
        for start in range(0, len(places), MAX_BATCH_SIZE):
            batch = places[start : start + MAX_BATCH_SIZE]
            found = _predict_batch(predict, [inputs[place] for place in batch])
            for place, output in zip(batch, found, strict=True):
                outputs[place] = output
    return outputs


def _predict_batch(predict: Predict, inputs: list[tuple[Job[Any], Any]]) -> list[Any]:
    """Predict all in one call; where that fails one by one, so that only the bad one does."""
    job = inputs[0][0]
    only = job if all(other is job for other, _ in inputs) else None
    outputs = attempt(partial(predicted, predict, [item for _, item in inputs]), only)
    if not isinstance(outputs, Exception):
        return outputs
    if only:
        return [outputs] * len(inputs)
    return [output for item in inputs for output in _predict_batch(predict, [item])]
