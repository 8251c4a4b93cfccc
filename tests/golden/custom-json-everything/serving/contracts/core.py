"""What other contracts are built on: the service without its own routes."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter

from serving.inputs import decode
from serving.requests import ParamsT, Reader, Upload
from serving.worker import Job, Worker

T = TypeVar("T")
ANYTHING = TypeAdapter[Any](Any, config=ConfigDict(ser_json_inf_nan="constants"))


@dataclass(frozen=True)
class Core(Generic[ParamsT]):
    """The model, and all that guards it; each adapter is handed one, and none imports `main`."""

    name: str  # of the service
    version: str
    read: Reader[ParamsT]
    encode: Callable[[list[Any]], bytes]  # the model's outputs, as its own route answers them
    output: type[BaseModel]  # one output of the model
    body: type[BaseModel]  # of its own route's answer
    worker: Worker
    streams: bool  # whether the model answers in parts

    async def answer(
        self,
        upload: Upload[ParamsT],
        encode: Callable[[list[Any]], T],
        gone: Callable[[], Awaitable[bool]],
    ) -> T:
        """Have the model answer; `gone` tells whether anybody still waits for it.

        Raises what `Worker.run` does, and BadInput.
        """
        return await self.worker.run(Job(partial(decode, upload), encode), gone)

    def stream(
        self,
        upload: Upload[ParamsT],
        encode: Callable[[list[Any]], T],
        gone: Callable[[], Awaitable[bool]],
    ) -> AsyncGenerator[T, None]:
        """Have the model answer in parts; who stops asking stops the model, too.

        Raises as `answer` does, the deadline being for each part.
        """
        return self.worker.stream(Job(partial(decode, upload), encode), gone)

    def take(self, document: Any) -> Upload[ParamsT]:
        """Return the request that a JSON document makes. Raises RequestValidationError."""
        return self.read.check(ANYTHING.dump_json(document))
