"""The protocol's messages, as they are in JSON; with those of Triton that its clients ask for."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from serving.contracts.oip.tensors import Datatype

MAX_TENSORS = 1000

Parameters = dict[str, Any]


class ServerMetadata(BaseModel):
    """What the server can do."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    """A tensor that the model takes or gives; a dimension of -1 may have any size."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters | None = Field(
        default=None,
        description="content_type of BYTES: json, or base64 where they are in JSON; "
        "field: its name on other routes.",
    )


class ModelMetadata(BaseModel):
    """What the model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorConfig(BaseModel):
    """A tensor in Triton's configuration of the model."""

    name: str
    data_type: str
    dims: list[int]


class InputConfig(TensorConfig):
    """A tensor that the model takes, in Triton's configuration of it."""

    optional: bool


class ModelConfiguration(BaseModel):
    """Triton's configuration of the model, as far as there is one here."""

    name: str
    platform: str
    backend: str
    # 0: no shape in the metadata leaves out a first dimension, as Triton's would.
    max_batch_size: int = 0
    input: list[InputConfig]
    output: list[TensorConfig]


class DurationStatistics(BaseModel):
    """How often something was done, and how many nanoseconds that took in all."""

    count: int
    ns: int


class InferStatistics(BaseModel):
    """What became of requests, and where their time went."""

    success: DurationStatistics
    fail: DurationStatistics
    queue: DurationStatistics
    compute_input: DurationStatistics
    compute_infer: DurationStatistics
    compute_output: DurationStatistics
    cache_hit: DurationStatistics
    cache_miss: DurationStatistics


class ModelStatistics(BaseModel):
    """Triton's statistics of the model: of this protocol's requests to this process."""

    name: str
    version: str
    last_inference: int = Field(description="In milliseconds since 1970; 0 before the first.")
    inference_count: int = Field(description="Of inputs.")
    execution_count: int = Field(description="Of calls of the model.")
    inference_stats: InferStatistics
    batch_stats: list[Parameters] = []


class AllStatistics(BaseModel):
    """The statistics of all models: of the one."""

    model_config = ConfigDict(protected_namespaces=())  # for names that begin with model_

    model_stats: list[ModelStatistics]


class ModelNames(BaseModel):
    """The models that are here, in KServe's form."""

    models: list[str]


class IndexRequest(BaseModel):
    """What of Triton's index of its repository is asked for."""

    ready: StrictBool = False


class ModelIndex(BaseModel):
    """A model in Triton's index of its repository."""

    name: str
    version: str
    state: str
    reason: str


class RequestInput(BaseModel):
    """A tensor of a request: its elements are in `data`, or behind the JSON."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(max_length=32)]
    datatype: Datatype
    parameters: Parameters | None = None
    data: Any = None


class RequestOutput(BaseModel):
    """A tensor that is asked for."""

    name: str
    parameters: Parameters | None = None


class InferRequest(BaseModel):
    """A request."""

    id: str | None = None
    parameters: Parameters | None = None
    inputs: Annotated[list[RequestInput], Field(max_length=MAX_TENSORS)]
    outputs: list[RequestOutput] | None = None


class ResponseOutput(BaseModel):
    """A tensor of an answer, row by row; where it is binary its data follow the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters | None = None
    data: list[Any] | None = None


class InferResponse(BaseModel):
    """An answer."""

    model_config = ConfigDict(protected_namespaces=())  # for names that begin with model_

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[ResponseOutput]


class ModelReady(BaseModel):
    """Whether the model can take requests."""

    name: str
    ready: bool


class ErrorMessage(BaseModel):
    """Body of every error."""

    error: str
