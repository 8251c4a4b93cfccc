"""What is done with the model, where it runs: load it; decode, predict and encode for a request."""

import gc
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from device import get_device
from serving.errors import OutOfMemory, is_out_of_memory
from serving.settings import settings
from serving.threads import NUM_THREADS, THREADS_LIMIT, limit_threads

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Of the request that is worked for here; its lines in the log have it, where there are such ids.
request_id: ContextVar[str] = ContextVar("request_id", default="")


@dataclass(frozen=True, slots=True)
class Job(Generic[T]):
    """A request's work: what decodes it to the model's inputs, and what encodes the outputs."""

    decode: Callable[[], list[Any]]
    encode: Callable[[list[Any]], T]
    request_id: str = field(default_factory=request_id.get)


class Runner:
    """The model, and what is done with it; all but `model` is called where the model runs."""

    def __init__(self, model_class: type[Any], name: str, example: Job[Any]) -> None:
        """Take the class, the model's name for the log, and a job to warm it up with."""
        self.model_class = model_class
        self.name = name
        self.example = example
        self.model: Any = None  # until it is loaded

    def load(self) -> None:
        """Load the model and run it once, so that the first user does not pay for that."""
        start = time.perf_counter()
        device = get_device()
        limit_threads()
        logger.info("Threads: %d, limited by %s", NUM_THREADS, THREADS_LIMIT)
        logger.info("Loading %s on %s", self.name, device)
        model = self.model_class(device)
        if settings.warmup:
            self.example.encode(model.predict(self.example.decode()))
        self.model = model
        gc.collect()
        gc.freeze()  # what is loaded stays: no collection has to look at it again
        logger.info("Model loaded in %.1f s", time.perf_counter() - start)

    def answer(self, jobs: Sequence[Job[Any]]) -> list[Any]:
        """Return an answer for each job, or the error that it ended with."""
        return [attempt(partial(self._answer, job), job) for job in jobs]

    def predict(self, inputs: list[Any]) -> list[Any]:
        """Return the model's outputs, one for each input."""
        outputs: list[Any] = self.model.predict(inputs)
        if len(outputs) != len(inputs):
            raise RuntimeError(f"predict returned {len(outputs)} outputs for {len(inputs)} inputs")
        return outputs

    def close(self) -> None:
        """Release what the model holds, where it has a `close` for that."""
        if close := getattr(self.model, "close", None):
            close()
        self.model = None

    def _answer(self, job: Job[T]) -> T:
        return job.encode(self.predict(job.decode()))


def attempt(function: Callable[[], T], job: Job[Any] | None = None) -> T | Exception:
    """Return what the function returns for a job, or the error that it raised."""
    request_id.set(job.request_id if job else "")
    try:
        return function()
    except StopIteration as error:  # which no future takes
        return RuntimeError(f"The model raised {error!r}")
    except Exception as error:
        if not is_out_of_memory(error):
            return error
        logger.exception("Out of memory")
        is_gpu = get_device() != "cpu" and not isinstance(error, MemoryError)
    except BaseException as error:  # noqa: BLE001 -- sys.exit in a model must not end the thread
        return RuntimeError(f"The model raised {error!r}")
    # Not before the error is gone: its traceback holds what the call had allocated.
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()
    return OutOfMemory("GPU out of memory." if is_gpu else None)
