"""The Open Inference Protocol over gRPC, with health and reflection: the same model as over HTTP.

open_inference.proto is compiled, and gRPC imported, while the HTTP side answers already.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial, wraps
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Generic

import numpy as np
from starlette.concurrency import run_in_threadpool

from serving.contracts.oip.grpc_auth import Authorize
from serving.contracts.oip.large import one_at_a_time
from serving.contracts.oip.messages import MAX_TENSORS, TensorMetadata
from serving.contracts.oip.metadata import list_models, tell_statistics
from serving.contracts.oip.routes import EXTENSIONS, SERVER_VERSION, Route
from serving.contracts.oip.signature import NAME, VERSION, Signature, answers
from serving.contracts.oip.statistics import statistics
from serving.contracts.oip.tensors import DATATYPES, Answer, Tensor
from serving.errors import BadInput, Busy, NotReady, TooLarge, describe
from serving.inputs import ParamsT
from serving.limits import MAX_UPLOAD_BYTES, Share
from serving.runner import Job
from serving.settings import settings

if TYPE_CHECKING:
    from serving.service import Service

logger = logging.getLogger(__name__)

PROTOCOL = "serving/contracts/oip/open_inference.proto"  # found from where main.py is
SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
LOOK_SECONDS = 1.0  # how often a client that watches the health is told of a change
# Other calls than inference, which a crowd must not shut out.
MORE_CALLS = 64
MAX_DIMENSIONS = 32
# Names of fields and parameters beside the elements.
OVERHEAD = 64 * 1024

# Of a request: where its inputs are, their contents, and the lists of whole numbers in both. These
# take up to eight times as much in a message that is read.
INPUTS, CONTENTS_OF_INPUT = 5, 5
NUMBERS = [{3}, {1, 2, 3, 4, 5}]
VARINT, EIGHT_BYTES, WITH_LENGTH, FOUR_BYTES = 0, 1, 2, 5  # how a field is written
MORE = 128  # on every byte of a whole number but the last
NUMBER_BYTES = 4  # of MAX_UPLOAD_MB, for each of these numbers

UNREADABLE = "The message cannot be read."
ABSENT = (
    "There is no such extension here: no shared memory, streams, sequences or settings, and no "
    "loading and unloading of models."
)

# Which gRPC status says what an HTTP status says.
CODES = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
# Where a message has the elements of a tensor.
CONTENTS = dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents")
CONTENTS |= dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents")
CONTENTS |= {
    name: f"{name.lower()}_contents"
    for name in ("BOOL", "INT64", "UINT64", "FP32", "FP64", "BYTES")
}

Method = Callable[[Any, Any, Any], Awaitable[Any]]


def refusing(method: Method) -> Method:
    """Give what a method raises the status and the words that it has over HTTP."""

    @wraps(method)
    async def answer(self: Any, request: Any, context: Any) -> Any:
        try:
            if isinstance(request, Unreadable):
                raise BadInput(UNREADABLE)
            return await method(self, request, context)
        except Exception as error:  # noqa: BLE001 -- `describe` logs what was not foreseen
            scope = {"method": "gRPC", "path": f"/v2/{method.__name__}"}
            status, body = Route.error_form(error, *describe(error, scope))
        # Not before the error is gone: its traceback holds the message.
        code = CODES.get(status, "INVALID_ARGUMENT")
        return await self.abort(context, code, body["error"])

    return answer


class Unreadable:
    """In the place of a message that is none."""


class Tolerant:
    """Has the service answer to what is no message; gRPC itself would log a traceback for each.

    It answers to calls that are not in open_inference.proto, too, with a sentence.
    """

    absent: Any  # the handler for these

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> Any:
        """Return the handler of a call."""
        handler = await continuation(details)
        if not details.method.startswith(f"/{SERVICE}/"):
            return handler
        if handler is None:
            return self.absent
        later = Unread if details.method == f"/{SERVICE}/ModelInfer" else read
        return handler._replace(request_deserializer=partial(later, handler.request_deserializer))


class Unread:
    """A message that is large maybe: it is read off the event loop, when its turn comes."""

    def __init__(self, deserialize: Callable[[bytes], Any], body: bytes) -> None:
        """Take what reads it."""
        self.deserialize = deserialize
        self.body = body

    def read(self, max_bytes: int, most: int) -> Any:
        """Return the message, once. Raises BadInput and TooLarge."""
        body, self.body = self.body, b""
        check_message(body, max_bytes, most)
        message = read(self.deserialize, body)
        if isinstance(message, Unreadable):
            raise BadInput(UNREADABLE)
        return message


def check_message(body: bytes, max_bytes: int, most: int) -> None:
    """Raise TooLarge for a request that would take many times its size once it is read.

    `most` is of fields, those in its inputs and in their contents included.
    """
    levels = [[memoryview(body)], [], []]
    fields = numbers = 0
    for depth, level in enumerate(levels):
        for message in level:
            for number, content in fields_of(message):
                fields += 1
                if fields > most:
                    raise TooLarge(f"A request may have {most} fields at most; send raw contents.")
                if depth and number in NUMBERS[depth - 1]:  # each ends with a byte below MORE
                    numbers += int(np.count_nonzero(np.frombuffer(content, np.uint8) < MORE))
                elif depth < len(levels) - 1 and number == (INPUTS, CONTENTS_OF_INPUT)[depth]:
                    levels[depth + 1].append(content)
            if numbers > max_bytes // NUMBER_BYTES:
                words = f"{max_bytes // NUMBER_BYTES} whole numbers"
                raise TooLarge(f"A request may have {words} at most; send raw contents.")


def fields_of(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of a message's fields, as far as it is one."""
    at = 0
    while at < len(message):
        tag, at = read_varint(message, at)
        size = {EIGHT_BYTES: 8, FOUR_BYTES: 4}.get(tag & 7, 0)
        if tag & 7 == WITH_LENGTH:
            size, at = read_varint(message, at)
        elif tag & 7 == VARINT:
            _, at = read_varint(message, at)
        yield tag >> 3, message[at : at + size]
        at += size


def read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return a whole number of a message, and where it ends."""
    value = 0
    for place, byte in enumerate(message[at : at + 10]):
        at += 1
        value |= (byte % MORE) << 7 * place
        if byte < MORE:
            break
    return value, at


def read(deserialize: Callable[[bytes], Any], body: bytes) -> Any:
    """Return a message."""
    try:
        return deserialize(body)
    except Exception:  # noqa: BLE001 -- protobuf's own, which is not imported here
        return Unreadable()


class Inference(Generic[ParamsT]):
    """The protocol's service; `messages` is the compiled open_inference.proto."""

    def __init__(
        self,
        service: "Service[ParamsT]",
        messages: Any,
        codes: Any,
    ) -> None:
        """Take the service, and what the protocol's messages and gRPC's statuses are made of."""
        self.service = service
        self.signature = Signature(service.parse, service.output)
        self.messages = messages
        self.codes = codes

    async def abort(self, context: Any, code: str, message: str) -> Any:
        """End a call with an error."""
        await context.abort(self.codes[code], message)

    @refusing
    async def end_call(self, error: Exception, _context: Any) -> Any:
        """End a call with what `authorize` raised."""
        raise error

    @refusing
    async def ServerLive(self, _request: Any, _context: Any) -> Any:
        """Liveness, as `GET /health`."""
        return self.messages.ServerLiveResponse(live=True)

    @refusing
    async def ServerReady(self, _request: Any, _context: Any) -> Any:
        """Readiness, as `GET /ready`."""
        return self.messages.ServerReadyResponse(ready=is_ready(self.service))

    @refusing
    async def ModelReady(self, request: Any, _context: Any) -> Any:
        """Readiness, as `GET /ready`."""
        self.signature.check(request.name, request.version)
        return self.messages.ModelReadyResponse(ready=is_ready(self.service))

    @refusing
    async def ServerMetadata(self, _request: Any, _context: Any) -> Any:
        """Tell what the server can do."""
        return self.messages.ServerMetadataResponse(
            name=settings.oip_server_name, version=SERVER_VERSION, extensions=EXTENSIONS
        )

    @refusing
    async def ModelMetadata(self, request: Any, _context: Any) -> Any:
        """Tell what the model takes and gives."""
        self.signature.check(request.name, request.version)
        found = self.signature.metadata()
        message = self.messages.ModelMetadataResponse.TensorMetadata

        def tensor(column: TensorMetadata) -> Any:
            return message(name=column.name, datatype=column.datatype, shape=column.shape)

        return self.messages.ModelMetadataResponse(
            name=found.name,
            versions=found.versions,
            platform=found.platform,
            inputs=[tensor(column) for column in found.inputs],
            outputs=[tensor(column) for column in found.outputs],
        )

    @refusing
    async def ModelConfig(self, request: Any, _context: Any) -> Any:
        """Tell what the model takes and gives, as Triton's configuration does."""
        self.signature.check(request.name, request.version)
        config = self.signature.config().model_dump()
        return self.messages.ModelConfigResponse(config=config)

    @refusing
    async def ModelStatistics(self, request: Any, _context: Any) -> Any:
        """Tell how many requests there were, and where their time went; no name is all models."""
        self.signature.check(request.name or NAME, request.version)
        return self.messages.ModelStatisticsResponse(**tell_statistics().model_dump())

    @refusing
    async def RepositoryIndex(self, request: Any, _context: Any) -> Any:
        """Tell which models are here, and whether they are ready, as Triton does."""
        models = list_models(self.service, only_ready=request.ready)
        told = [model.model_dump() for model in models]
        return self.messages.RepositoryIndexResponse(models=told)

    @refusing
    async def ModelInfer(self, unread: Unread, context: Any) -> Any:
        """Answer, tensors for tensors."""
        self.service.worker.admit()
        with statistics.count(), Share() as share:
            size = len(unread.body)
            share.take(size)
            work = await one_at_a_time(size, partial(self._prepare, unread))
            share.take(work.size)
            found = await statistics.run(self.service.worker, work.job, partial(is_gone, context))
        response = self.messages.ModelInferResponse(
            model_name=NAME, model_version=VERSION, id=work.id
        )
        for answer in found:
            tensor = response.outputs.add(
                name=answer.name, datatype=answer.datatype, shape=answer.shape
            )
            if answer.content_type == "json":
                tensor.parameters["content_type"].string_param = answer.content_type
            if work.is_raw:
                response.raw_output_contents.append(answer.binary)
            else:
                getattr(tensor.contents, CONTENTS[answer.datatype]).extend(answer.flat)
        return response

    def _prepare(self, unread: Unread) -> "Work":
        request = unread.read(MAX_UPLOAD_BYTES, self.signature.max_elements)
        self.signature.check(request.model_name, request.model_version)
        tensors = read_tensors(request.inputs, request.raw_input_contents)
        parameters = read_parameters(request.parameters)
        question = self.signature.read(tensors, parameters)
        outputs = {output.name: read_parameters(output.parameters) for output in request.outputs}
        columns = self.signature.wanted(outputs, in_rows=question.rows is not None)
        job = Job(question.decoder(), partial(answers, columns))
        # As Triton does, whatever the request has: only so there is FP16.
        is_raw = parameters.get("binary_data_output") is not False
        if not is_raw and (raw := [x.name for x in columns if x.datatype not in CONTENTS]):
            raise BadInput(f"The output {raw[0]!r} can only be had in raw_output_contents.")
        return Work(job, question.size, request.id, is_raw=is_raw)


@dataclass(frozen=True)
class Work:
    """What is left of a message once it is read."""

    job: Job[list[Answer]]
    size: int  # of its inputs, in bytes
    id: str
    is_raw: bool


def read_tensors(inputs: Sequence[Any], raw: Sequence[bytes]) -> list[Tensor]:
    """Return the tensors of a message. Raises BadInput."""
    if len(inputs) > MAX_TENSORS:
        raise BadInput(f"There are {len(inputs)} inputs: send {MAX_TENSORS} at most.")
    if raw and len(raw) != len(inputs):
        message = f"raw_input_contents has {len(raw)} elements for {len(inputs)} inputs."
        raise BadInput(message)
    tensors: list[Tensor] = []
    for place, given in enumerate(inputs):
        if given.datatype not in DATATYPES:
            raise BadInput(f"{given.datatype!r} is no datatype: use one of {', '.join(DATATYPES)}.")
        if len(given.shape) > MAX_DIMENSIONS:
            raise BadInput(f"Tensor {given.name!r}: send {MAX_DIMENSIONS} dimensions at most.")
        if any(size < 0 for size in given.shape):
            raise BadInput(f"Tensor {given.name!r}: a shape has no negative sizes.")
        parameters = read_parameters(given.parameters)
        tensor = partial(Tensor, given.name, given.datatype, list(given.shape))
        if raw:
            tensors.append(tensor(binary=raw[place], parameters=parameters))
        elif given.datatype in CONTENTS:
            data = getattr(given.contents, CONTENTS[given.datatype])
            tensors.append(tensor(data=data, parameters=parameters))
        else:
            raise BadInput(f"Send {given.datatype} in raw_input_contents.")
    return tensors


def read_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as JSON has them."""
    if len(parameters) > MAX_TENSORS:
        raise BadInput(f"There are {len(parameters)} parameters: send {MAX_TENSORS} at most.")
    chosen = {name: value.WhichOneof("parameter_choice") for name, value in parameters.items()}
    return {name: getattr(parameters[name], kind) for name, kind in chosen.items() if kind}


def is_ready(service: "Service[Any]") -> bool:
    """Tell whether a request would be served."""
    try:
        service.worker.check()
    except (NotReady, Busy):
        return False
    return True


async def is_gone(context: Any) -> bool:
    """Tell whether a call's client has left."""
    return bool(context.cancelled())


class Health:
    """gRPC's health checking protocol, as Kubernetes' probes and load balancers speak it."""

    def __init__(self, service: "Service[Any]", messages: Any, codes: Any) -> None:
        """Take the service, and what the protocol's messages and gRPC's statuses are made of."""
        self.service = service
        self.messages = messages
        self.codes = codes
        self.stopping = asyncio.Event()

    def _status(self, service: str) -> Any:
        statuses = self.messages.HealthCheckResponse
        if service not in {"", SERVICE}:
            return statuses.SERVICE_UNKNOWN
        return statuses.SERVING if is_ready(self.service) else statuses.NOT_SERVING

    async def Check(self, request: Any, context: Any) -> Any:
        """Tell the status now."""
        status = self._status(request.service)
        if status == self.messages.HealthCheckResponse.SERVICE_UNKNOWN:
            message = f"There is no service {request.service!r}: ask for {SERVICE}."
            await context.abort(self.codes["NOT_FOUND"], message)
        return self.messages.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, _context: Any) -> AsyncIterator[Any]:
        """Tell the status now, and whenever it changes."""
        seen = None
        while not self.stopping.is_set():
            if (status := self._status(request.service)) != seen:
                seen = status
                yield self.messages.HealthCheckResponse(status=status)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), LOOK_SECONDS)


@asynccontextmanager
async def serve_grpc(service: "Service[Any]") -> AsyncIterator[None]:
    """Serve on GRPC_PORT, until all calls have ended."""
    service.worker.starting.add("gRPC")
    starting = asyncio.create_task(start(service))
    yield
    if stop := await starting:
        await stop()


async def start(service: "Service[Any]") -> Callable[[], Awaitable[None]] | None:
    """Start the server, and return what stops it; a server that cannot start ends the process."""
    try:
        protocol = await run_in_threadpool(load)
        codes = {code.name: code for code in protocol.grpc.StatusCode}
        base = protocol.grpc.aio.ServerInterceptor
        inference = Inference(service, protocol.messages, codes)

        async def refuse(_request: Any, context: Any) -> None:
            await context.abort(codes["UNIMPLEMENTED"], ABSENT)

        absent = protocol.grpc.unary_unary_rpc_method_handler(refuse)
        tolerant = type("TolerantInterceptor", (Tolerant, base), {"absent": absent})
        authorize = type("AuthorizeInterceptor", (Authorize, base), {})
        make_handler = protocol.grpc.stream_unary_rpc_method_handler
        authorizing = authorize(SERVICE, service.authorizer, inference.end_call, make_handler)
        server = protocol.grpc.aio.server(
            interceptors=[authorizing, tolerant()],
            options=[
                ("grpc.max_receive_message_length", MAX_UPLOAD_BYTES + OVERHEAD),
                ("grpc.so_reuseport", int(settings.workers > 1)),
            ],
            maximum_concurrent_rpcs=settings.max_queue_size + settings.max_batch_size + MORE_CALLS,
        )
        protocol.services.add_GRPCInferenceServiceServicer_to_server(inference, server)
        # With the methods that the protocol gained later, which say that they are not there.
        complete = type("CompleteHealth", (Health, protocol.health_services.HealthServicer), {})
        watch: Health = complete(service, protocol.health_messages, codes)
        protocol.health_services.add_HealthServicer_to_server(watch, server)
        names = (SERVICE, HEALTH, protocol.reflection.SERVICE_NAME)
        protocol.reflection.enable_server_reflection(names, server)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        server.add_insecure_port(f"{host}:{settings.grpc_port}")
        await server.start()
    except Exception as error:
        trace = not isinstance(error, RuntimeError)  # which a port that is taken raises
        text = "gRPC cannot be served on GRPC_PORT=%d: %s"
        logger.critical(text, settings.grpc_port, error, exc_info=trace)
        service.worker.fail()
        return None
    service.worker.starting.remove("gRPC")
    logger.info("gRPC on port %d", settings.grpc_port)

    async def stop() -> None:
        watch.stopping.set()
        await server.stop(grace=settings.infer_timeout_seconds)

    return stop


def load() -> SimpleNamespace:
    """Import gRPC and compile the protocol, which takes half a second."""
    import grpc.aio
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection

    messages, services = grpc.protos_and_services(PROTOCOL)
    return SimpleNamespace(
        grpc=grpc,
        messages=messages,
        services=services,
        health_messages=health_pb2,
        health_services=health_pb2_grpc,
        reflection=reflection,
    )
