"""A machine-learning model behind an HTTP API.

`POST /infer` answers requests; `GET /health` and `GET /ready` tell how the service is.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from operator import attrgetter

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi_offline import FastAPIOffline

from inference import EXAMPLE, MODEL_NAME, Model, Output, Params
from serving.errors import RESPONSES
from serving.limits import ModelRoute
from serving.logs import configure_logging
from serving.observability import TELEMETRY
from serving.requests import RequestParser
from serving.service import Service
from serving.tasks.routes import create_router as create_tasks_router

configure_logging()
parse = RequestParser(Params)
service = Service(Model, parse, Output, example=EXAMPLE, name=MODEL_NAME)
model_router = APIRouter(route_class=ModelRoute)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Load the model when the app starts; release it at the end."""
    async with service.running():
        yield


app = FastAPIOffline(
    redoc_url=None,  # unlike /docs, it would load a file from the internet
    title="my-model-server",
    summary="Follows the ML Microservice Spec 1.0.0.",
    description="A machine-learning model behind an HTTP API",
    version="0.1.0",
    generate_unique_id_function=attrgetter("name"),  # the names of a generated client's methods
    lifespan=lifespan,
    redirect_slashes=False,  # a redirect would name http, also behind a proxy that speaks TLS
    telemetry=TELEMETRY,
)


@app.api_route("/health", methods=["HEAD", "OPTIONS"], include_in_schema=False)
@app.get("/health")
async def health() -> dict[str, str]:
    """Liveness: the process answers, whatever the model does."""
    return {"status": "ok"}


@app.api_route("/ready", methods=["HEAD", "OPTIONS"], include_in_schema=False)
@app.get("/ready", responses={503: RESPONSES[503]})
async def ready() -> dict[str, str]:
    """Readiness: the model is loaded, and a request would be served."""
    service.worker.check()
    return {"status": "ready"}


@model_router.post(
    "/infer",
    response_model=Output,
    responses=service.responses,
    openapi_extra=parse.openapi(EXAMPLE),
)
async def infer(request: Request) -> Response:
    """Answer for one JSON document."""
    return await service.answer(request, parse)


# Your own endpoints, routers and middleware go here.

app.include_router(model_router)
app.include_router(create_tasks_router(service, "/infer", parse, EXAMPLE))
service.install(app)  # last: what it adds is outermost

if __name__ == "__main__":
    service.serve(app)
