"""SageMaker's contract: `GET /ping` and `POST /invocations`, and scripts that replace them.

AWS's own library finds the handlers and middleware that lie beside the model, in model.py or where
the environment says. They go inside the service's own middleware: its limits hold for them, too.
"""

import inspect
import logging
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.actions import Action
from serving.contracts.documents import (
    describe_document,
    load_json,
    off_the_loop,
    parse_document,
    parse_json,
    wrong,
)
from serving.contracts.json_lines import answer_lines, is_json_lines
from serving.errors import RESPONSES, BadInput, Busy
from serving.isolation import is_model_process
from serving.requests import ParsedRequest, essence, read_json
from serving.service import Service
from serving.settings import settings
from serving.streaming import EventStream

LIBRARY = "model_hosting_container_standards"


@contextmanager
def kept_logging() -> Iterator[None]:
    """Undo what the library's import does to the log: it sets levels, and has a form of its own."""
    root = logging.getLogger()
    level, levels = root.level, [(handler, handler.level) for handler in root.handlers]
    yield
    root.setLevel(level)
    for handler, own in levels:
        handler.setLevel(own)
    library = logging.getLogger(LIBRARY)
    library.handlers.clear()
    library.propagate = True


with kept_logging():
    from model_hosting_container_standards import sagemaker
    from model_hosting_container_standards.common.fastapi.middleware.source import decorator_loader
    from model_hosting_container_standards.common.handler import handler_registry
    from model_hosting_container_standards.sagemaker.sagemaker_router import (
        get_sagemaker_route_config,
    )
    from model_hosting_container_standards.sagemaker.sessions.manager import get_session_manager

HANDLERS = {"ping": "CUSTOM_FASTAPI_PING_HANDLER", "invoke": "CUSTOM_FASTAPI_INVOCATION_HANDLER"}
ADAPTER = "X-Amzn-SageMaker-Adapter-Identifier"
SESSION = "X-Amzn-SageMaker-Session-Id"
CLOSED_SESSION = "X-Amzn-SageMaker-Closed-Session-Id"

# Parts of the OpenAPI document.
ASKS_FOR_PARTS = {
    "stream": {
        "type": "boolean",
        "default": False,
        "description": "Answer in parts, as server-sent events.",
    }
}
OPENS_OR_CLOSES = {
    "type": "object",
    "properties": {"requestType": {"type": "string", "enum": ["NEW_SESSION", "CLOSE"]}},
    "required": ["requestType"],
}
LOADS = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "src": {"type": "string"}},
    "required": ["name", "src"],
}

Handler = Callable[[Request], Awaitable[Response]]
Dispatch = Callable[[Request, RequestResponseEndpoint], Awaitable[Response]]
Ask = Callable[..., Awaitable[Response]]

logger = logging.getLogger(__name__)


class BadScript(Exception):
    """A script, or the variable that names it, cannot be used."""


@runtime_checkable
class Adapts(Protocol):
    """A model that takes LoRA adapters; a request names its own in `Params.adapter`."""

    def load_adapter(self, name: str, source: str) -> None:
        """Load the adapter that lies at `source`."""

    def unload_adapter(self, name: str) -> None:
        """Drop an adapter."""


class Hearing:
    """Lets handlers hear that a client has left, which Starlette keeps from them in a function.

    It stands on both sides of the scripts' middleware: the outer one keeps what the inner one asks.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; further in, past the body, with the server's own `receive`."""
        own = scope.setdefault("own_receive", receive)
        has_come = own is receive

        async def hear() -> Message:
            nonlocal has_come
            message = await (own if has_come else receive)()
            has_come |= not message.get("more_body", False)
            return message

        await self.app(scope, hear, send)


def bootstrap(app: FastAPI, service: Service[Any], body: type[BaseModel]) -> None:
    """Add the routes and the scripts' middleware; a script that cannot be used ends the start.

    The service's own /invocations answers with such a body.
    """
    if is_model_process():  # which serves nothing, and runs no scripts
        return

    async def ask(request: Request, method: str, *arguments: str) -> Response:
        """Call one of the model's methods, in its turn."""
        action = Action(method=method, arguments=arguments)
        await service.worker.run(action, request.state.body.is_disconnected)
        return Response()

    model = service.runner.model_class
    app.state.service = service  # for handlers that have something to add to what the model does
    add_defaults(service)
    fields = service.parse.params.model_fields
    sessions, adapts = "session" in fields, issubclass(model, Adapts)
    if settings.workers > 1 and (adapts or (sessions and get_session_manager())):
        sys.exit("WORKERS must be 1: each would have adapters and sessions of its own")
    if adapts:
        add_adapters(service, ask)
    if sessions or "adapter" in fields:
        tells = hasattr(model, "close_session")
        add_headers(service, ask, sessions=sessions, tells=tells)
    own = {name: handler_registry.get_handler(name) for name in handler_registry.list_handlers()}
    share_main(app)
    loader = load_script()
    for variable in HANDLERS.values():
        find(loader, variable)
    sagemaker.register_sagemaker_overrides()
    for name in HANDLERS:
        handler = handler_registry.get_handler(name)
        with blaming(f"The handler {handler.__name__}"):
            take_request(handler)
    # Innermost, and not by the library's `bootstrap`: that leaves out what cannot be loaded, and
    # makes a 500 of whatever is raised further in.
    app.user_middleware += load_middleware(loader)
    described = describe(service, body)
    for name in handler_registry.list_handlers():
        handler = handler_registry.get_handler(name)
        with blaming(f"The handler {handler.__name__}"):
            mount(app, name, handler, described.get(name, {}) if handler is own.get(name) else {})


def add_defaults(service: Service[Any]) -> None:
    """Register the service's own handlers, for want of a script's."""
    read = partial(parse_asked, service, sees_stream=has_stream(service))

    async def ping() -> dict[str, str]:
        """Health: the model can take requests, now or in its turn."""
        with suppress(Busy):  # an instance that fails this is replaced, which helps no busy one
            service.worker.check()
        return {"status": "ready"}

    async def invocations(request: Request) -> Response:
        """Answer as the service's own route does."""
        service.worker.admit()
        content_type = essence(request.headers.get("content-type"))
        if is_json_lines(content_type):
            return await answer_lines(service, request)
        parsed, in_parts = await off_the_loop(read, await read_json(request))

        async def parse(_request: Request) -> ParsedRequest[Any]:
            return parsed

        if in_parts:
            return await service.stream(request, parse)
        return await service.answer(request, parse)

    handler_registry.set_handler("ping", ping)
    handler_registry.set_handler("invoke", invocations)


def parse_asked(
    service: Service[Any], body: bytes, *, sees_stream: bool
) -> tuple[ParsedRequest[Any], bool]:
    """Return the request that this JSON makes, and whether it wants the answer in parts.

    `"stream": true` asks for them. `sees_stream` tells whether the model has such a field.
    Raises BadInput, TooLarge and RequestValidationError.
    """
    if not service.streams or b'"stream"' not in body:
        return parse_json(service.parse, body), False
    document = load_json(body)
    in_parts = isinstance(document, dict) and document.get("stream", False)
    if isinstance(document, dict) and not sees_stream:
        document.pop("stream", None)
        if not isinstance(in_parts, bool):
            raise wrong(("stream",), "Input should be a valid boolean")
    return parse_document(service.parse, document), in_parts is True


def has_stream(service: Service[Any]) -> bool:
    """Tell whether the model's parameters have a field of this name."""
    return "stream" in service.parse.params.model_json_schema().get("properties", {})


def describe(service: Service[Any], body: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Return what the OpenAPI document says of the service's own handlers, by their names."""
    schema = describe_document(service.parse)
    responses = dict(service.responses)
    if service.streams and schema.get("type") == "object":
        properties = {**ASKS_FOR_PARTS, **schema.get("properties", {})}
        schema = {**schema, "properties": properties}
        answer = responses.get(200, {})
        events = {EventStream.media_type: {"schema": {"type": "string"}}}
        content = {"content": {**answer.get("content", {}), **events}}
        told = {"description": "The answer, or its parts as events."}
        responses[200] = {**answer, **content, **told}
    fields = service.parse.params.model_fields
    if "session" in fields:
        schema = {"anyOf": [schema, OPENS_OR_CLOSES]}
    headers = {"adapter": ADAPTER, "session": SESSION}
    parameters = [
        {"name": header, "in": "header", "required": False, "schema": {"type": "string"}}
        for name, header in headers.items()
        if name in fields
    ]
    others = "JSON Lines"
    invoke = {
        "response_model": body,
        "responses": responses,
        "openapi_extra": {
            "parameters": parameters,
            "requestBody": {
                "description": f"A JSON document; or {others}.",
                "required": True,
                "content": {"application/json": {"schema": schema}},
            },
        },
    }
    errors = {status: RESPONSES[status] for status in (400, 500, 503, 504)}
    load: dict[str, Any] = {
        "response_class": PlainTextResponse,
        "responses": errors,
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": LOADS}}}
        },
    }
    return {
        "ping": {"responses": {503: RESPONSES[503]}},
        "invoke": invoke,
        "register_adapter": load,
        "unregister_adapter": {"response_class": PlainTextResponse, "responses": errors},
    }


def mount(app: FastAPI, name: str, handler: Callable[..., Any], described: dict[str, Any]) -> None:
    """Add the route of a handler, if it has one: some are called by the library alone."""
    if route := get_sagemaker_route_config(name):
        app.add_api_route(
            route.path,
            handler,
            methods=[route.method],
            name={"invoke": "invocations"}.get(name, name),
            tags=route.tags,
            summary=route.summary,
            **described,
        )


async def check(service: Service[Any], request: Request) -> None:
    """Reject what the library's own code fails at."""
    service.worker.admit()
    body = await request.body()
    if body and not isinstance(load_json(body), dict):
        raise BadInput("The body has to be a JSON object.")


def add_adapters(service: Service[Any], ask: Ask) -> None:
    """Register what loads and drops adapters; the library checks the requests, and answers them."""

    async def load(adapter: Any, request: Request) -> Response:
        return await ask(request, "load_adapter", adapter.name, adapter.source)

    async def unload(adapter: Any, request: Request) -> Response:
        return await ask(request, "unload_adapter", adapter.name)

    register = sagemaker.register_load_adapter_handler
    loaded: Handler = register({"name": "body.name", "source": "body.src"})(load)
    register = sagemaker.register_unload_adapter_handler
    unloaded: Handler = register({"name": "path_params.adapter_name"})(unload)

    async def load_adapter(request: Request) -> Response:
        await check(service, request)
        return await loaded(request)

    async def unload_adapter(adapter_name: str, request: Request) -> Response:  # noqa: ARG001
        await check(service, request)
        return await unloaded(request)

    handler_registry.set_handler("register_adapter", load_adapter)
    handler_registry.set_handler("unregister_adapter", unload_adapter)


def add_headers(service: Service[Any], ask: Ask, *, sessions: bool, tells: bool) -> None:
    """Have the library write the adapter and the session that headers name into the body."""
    plain: Handler = handler_registry.get_handler("invoke")
    adapted: Handler = sagemaker.inject_adapter_id("adapter")(plain)

    async def answer(request: Request) -> Response:
        return await (adapted if ADAPTER in request.headers else plain)(request)

    stateful: Handler = sagemaker.stateful_session_manager("session")(answer)

    async def invocations(request: Request) -> Response:
        """Answer as the service's own route does; or open or close a session."""
        service.worker.admit()
        is_lines = is_json_lines(essence(request.headers.get("content-type")))
        names_any = ADAPTER in request.headers or SESSION in request.headers
        if not names_any and (is_lines or b'"requestType"' not in await request.body()):
            return await plain(request)  # the library would parse the body once more
        if is_lines:
            raise BadInput(f"{ADAPTER} and {SESSION} go with application/json.")
        await check(service, request)
        response = await (stateful if sessions else answer)(request)
        closed = response.headers.get(CLOSED_SESSION)
        if closed and tells:
            await ask(request, "close_session", closed)
        return response

    handler_registry.set_handler("invoke", invocations)


def share_main(app: FastAPI) -> None:
    """Let a script that imports `main` have the one that runs.

    `python main.py` calls that `__main__`; `import main` would run the file again, as another
    service whose model is never loaded.
    """
    started = sys.modules["__main__"]
    if getattr(started, "app", None) is app:
        sys.modules["main"] = started
    elif getattr(sys.modules.get("main"), "app", app) is not app:
        raise BadScript("it is the service itself, which runs already; name it as main:function")


def load_script() -> Any:
    """Run the script, whose decorators register what they stand at; return what finds functions."""
    folder = Path(os.getenv("SAGEMAKER_MODEL_PATH", "/opt/ml/model"))
    script = folder / os.getenv("CUSTOM_SCRIPT_FILENAME", "model.py")
    with blaming(f"The script {script}"):
        if "CUSTOM_SCRIPT_FILENAME" in os.environ and not script.is_file():
            raise BadScript("there is no such file")
        return sagemaker.SageMakerFunctionLoader.get_function_loader()


def find(loader: Any, variable: str) -> Any:
    """Return the function that an environment variable names, if it is set."""
    spec = os.getenv(variable)
    if not spec:
        return None
    with blaming(f"{variable}={spec}"):
        if function := loader.load_function(spec):
            return function
        raise BadScript("write module:function or file.py:function")


def take_request(handler: Callable[..., Any]) -> None:
    """Let a handler's only parameter go without a type, as in AWS's guide.

    FastAPI would look for it in the query.
    """
    parameters = inspect.signature(handler).parameters.values()
    bare = [each.name for each in parameters if each.annotation is each.empty]
    if len(bare) > 1:
        raise BadScript(f"it has to take one parameter, the request; not {', '.join(bare)}")
    for name in bare:
        getattr(handler, "__func__", handler).__annotations__[name] = Request


def load_middleware(loader: Any) -> list[Middleware]:
    """Return the scripts' middleware, outermost first; the environment goes before decorators."""
    throttle = find(loader, "CUSTOM_FASTAPI_MIDDLEWARE_THROTTLE")
    around = find(loader, "CUSTOM_FASTAPI_MIDDLEWARE_PRE_POST_PROCESS")
    before, after = find(loader, "CUSTOM_PRE_PROCESS"), find(loader, "CUSTOM_POST_PROCESS")
    chosen = [
        throttle or decorator_loader.throttle_middleware,
        around
        or process(before, after)
        or decorator_loader.pre_post_middleware
        or process(decorator_loader.pre_fn, decorator_loader.post_fn),
    ]
    found = [as_middleware(each) for each in chosen if each]
    return [Middleware(Hearing), *found, Middleware(Hearing)] if found else []


def as_middleware(found: Any) -> Middleware:
    """Return middleware that is a class, or a function of the request and what comes next."""
    with blaming(f"The middleware {getattr(found, '__qualname__', found)}"):
        is_class = inspect.isclass(found)
        if not is_class:
            check_middleware(found, "request", "call_next")
            return Middleware(BaseHTTPMiddleware, dispatch=partial(dispatch, found))
        if not takes(found, "app"):
            raise BadScript("its __init__ has to take app alone")
        check_middleware(found.__call__, "self", "scope", "receive", "send")
        if BaseHTTPMiddleware in found.__mro__:
            check_middleware(found.dispatch, "self", "request", "call_next")
        return Middleware(found)


def check_middleware(function: Any, *parameters: str) -> None:
    """Raise BadScript where a function cannot be called with these and awaited."""
    if not is_async(function) or not takes(function, *parameters):
        raise BadScript(f"write async def {function.__name__}({', '.join(parameters)})")


def is_async(function: Any) -> bool:
    """Tell whether a function, or an object that can be called, is asynchronous."""
    inner = inspect.unwrap(function)
    called = getattr(inner, "__call__", None)  # noqa: B004 -- of an object's class
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(called)


def takes(function: Any, *parameters: str) -> bool:
    """Tell whether a function can be called with these."""
    try:
        inspect.signature(function).bind(*parameters)
    except TypeError:
        return False
    return True


def process(before: Any, after: Any) -> Dispatch | None:
    """Return middleware that changes requests and responses; either function may be missing."""
    if not before and not after:
        return None
    for function, parameter in (before, "request"), (after, "response"):
        if function and not takes(function, parameter):
            with blaming(f"The function {function.__qualname__}"):
                raise BadScript(f"it has to take one parameter, the {parameter}")

    async def call(request: Request, call_next: RequestResponseEndpoint) -> Response:
        if before:
            request = await ask_script(before, request) or request
        response = await call_next(request)
        return (await ask_script(after, response) or response) if after else response

    return call


async def ask_script(function: Any, argument: Request | Response) -> Any:
    """Return what a function of a script does; it need not be asynchronous."""
    if is_async(function):
        return await function(argument)
    return await run_in_threadpool(function, argument)


async def dispatch(
    function: Dispatch, request: Request, call_next: RequestResponseEndpoint
) -> Response:
    """Call middleware that is a function; what is raised further in is not to come in groups."""

    async def call(request: Request) -> Response:
        try:
            return await call_next(request)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    return await function(request, call)


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """End the start where something is wrong with a script, with one line that says what."""
    try:
        yield
    except Exception as error:  # whatever a script raises
        frames = traceback.extract_tb(error.__traceback__)
        ours = (__file__, "<frozen", f"{os.sep}{LIBRARY}{os.sep}", f"{os.sep}importlib{os.sep}")
        lines = [
            f" ({frame.filename}, line {frame.lineno})"
            for frame in frames
            if not any(part in frame.filename for part in ours)
        ]
        reason = error if isinstance(error, BadScript) else f"{type(error).__name__}: {error}"
        text = " ".join(f"{what} cannot be used: {reason}".split())
        logger.critical("%s%s", text, lines[0] if lines else "")
        logger.debug("The traceback", exc_info=True)
        sys.exit(1)
