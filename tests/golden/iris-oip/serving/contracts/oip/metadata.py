"""What clients ask beside inference: the protocol's metadata, and what KServe and Triton add."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Response

from serving.contracts.oip.messages import (
    AllStatistics,
    IndexRequest,
    ModelConfiguration,
    ModelIndex,
    ModelMetadata,
    ModelNames,
    ModelStatistics,
)
from serving.contracts.oip.signature import NAME, VERSION, Signature
from serving.contracts.oip.statistics import statistics
from serving.errors import BadInput, Busy, NotReady

if TYPE_CHECKING:
    from serving.service import Service

# Of Triton's, what there is not.
ABSENT = {
    "/v2/repository/models/{name}/load": "loading and unloading of models",
    "/v2/repository/models/{name}/unload": "loading and unloading of models",
    "/v2/models/{name}/generate": "generate extension",
    "/v2/models/{name}/generate_stream": "generate extension",
    "/v2/models/{name}/versions/{version}/generate": "generate extension",
    "/v2/models/{name}/versions/{version}/generate_stream": "generate extension",
    "/v2/models/{name}/trace/setting": "setting of traces",
    "/v2/trace/setting": "setting of traces",
    "/v2/logging": "setting of the log",
}
ABSENT |= {
    f"/v2/{kind}sharedmemory/{region}{verb}": "shared memory"
    for kind in ("system", "cuda")
    for region in ("", "region/{name}/")
    for verb in ("status", "register", "unregister")
}


def add_metadata_routes(
    router: APIRouter, service: "Service[Any]", signature: Signature[Any]
) -> None:
    """Add routes that tell what the model is, and what it has done."""

    @router.get("/v2/models")
    async def model_names() -> ModelNames:
        """Tell the models' names, as KServe does."""
        return ModelNames(models=[NAME])

    @router.post("/v2/repository/index")
    async def repository_index(asked: IndexRequest | None = None) -> list[ModelIndex]:
        """Tell which models are here, and whether they are ready, as Triton does."""
        return list_models(service, only_ready=bool(asked and asked.ready))

    # Before those of one model, whose name could be "stats".
    @router.get("/v2/models/stats")
    async def all_statistics() -> AllStatistics:
        """Tell the statistics of all models, as Triton does."""
        return tell_statistics()

    @router.get("/v2/models/{name}", response_model_exclude_none=True)
    @router.get(
        "/v2/models/{name}/versions/{version}",
        name="model_metadata_of_version",
        response_model_exclude_none=True,
    )
    async def model_metadata(name: str, version: str = "") -> ModelMetadata:
        """Tell what the model takes and gives."""
        signature.check(name, version)
        return signature.metadata()

    @router.get("/v2/models/{name}/config")
    @router.get("/v2/models/{name}/versions/{version}/config", name="model_config_of_version")
    async def model_config(name: str, version: str = "") -> ModelConfiguration:
        """Tell what the model takes and gives, as Triton's configuration does."""
        signature.check(name, version)
        return signature.config()

    @router.get("/v2/models/{name}/stats")
    @router.get("/v2/models/{name}/versions/{version}/stats", name="model_stats_of_version")
    async def model_stats(name: str, version: str = "") -> AllStatistics:
        """Tell how many requests there were, and where their time went, as Triton does."""
        signature.check(name, version)
        return tell_statistics()

    for path, extension in ABSENT.items():
        router.add_api_route(
            path, absent(extension), methods=["GET", "POST"], include_in_schema=False
        )


def tell_statistics() -> AllStatistics:
    """Return the statistics of the model."""
    told = ModelStatistics(name=NAME, version=VERSION, **statistics.as_dict())
    return AllStatistics(model_stats=[told])


def list_models(service: "Service[Any]", *, only_ready: bool) -> list[ModelIndex]:
    """Return what Triton calls the index of the repository: the one model."""
    index = ModelIndex(name=NAME, version=VERSION, state="READY", reason="")
    try:
        service.worker.check()
    except (NotReady, Busy) as error:
        if only_ready:
            return []
        index.state, index.reason = "UNAVAILABLE", error.detail
    return [index]


def absent(extension: str) -> Callable[[], Awaitable[Response]]:
    """Return a route that says that there is no such extension."""

    async def refuse() -> Response:
        raise BadInput(f"There is no {extension} here.")

    return refuse
