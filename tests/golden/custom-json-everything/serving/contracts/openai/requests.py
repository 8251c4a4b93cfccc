"""What clients send, and what of it a method of the model takes."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from serving.contracts.openai.errors import NoSuchModel, Refused
from serving.generation import Message, Schema
from serving.schemas import inline_refs
from serving.settings import settings

MAX_CHOICES = 128


def as_list(value: Any) -> Any:
    """Return a list of what may come alone."""
    return [value] if isinstance(value, str) else value


def as_text(content: Any) -> Any:
    """Return the text that several parts make. Raises ValueError where one is none."""
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for part in content:
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case _:
                raise ValueError("this model takes text alone: a string, or parts of type 'text'")
    return "\n".join(texts)


Texts = Annotated[list[str], BeforeValidator(as_list, json_schema_input_type=str | list[str])]
Text = Annotated[
    str | None,
    BeforeValidator(as_text, json_schema_input_type=str | list[dict[str, Any]] | None),
]


def check_name(name: str) -> None:
    """Raise NoSuchModel where this is another model's name."""
    own = settings.openai_model_name
    if name != own:
        raise NoSuchModel(f"The model '{name}' does not exist; there is '{own}'.")


class Body(BaseModel):
    """A JSON object; null is what is not there."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def drop_nulls(cls, fields: Any) -> Any:
        """Take out what is null."""
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}


class Asked(NamedTuple):
    """One thing that a request asks for."""

    field: str  # of the request
    keyword: str  # of the method
    value: Any
    is_usual: bool = False  # what is done anyway


class ModelRequest(Body):
    """What all requests have; but for the model it changes no answer."""

    @model_validator(mode="before")
    @classmethod
    def unwrap(cls, fields: Any) -> Any:
        """Return what Model Engine's forwarder has under "args"."""
        is_wrapped = isinstance(fields, dict) and fields.keys() == {"args"}
        return fields["args"] if is_wrapped else fields

    model: str
    user: str = ""
    metadata: dict[str, str] = Field(default_factory=dict)
    store: bool = False
    safety_identifier: str = ""
    prompt_cache_key: str = ""
    service_tier: str = ""

    def check_model(self) -> None:
        """Raise NoSuchModel where another model is asked for."""
        check_name(self.model)


class StreamOptions(Body):
    """How an answer is streamed."""

    include_usage: bool = False
    include_obfuscation: bool = False


class GenerationRequest(ModelRequest):
    """What requests for a text have in common."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Texts = Field(default_factory=list, max_length=4)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, float] = Field(default_factory=dict)

    @property
    def includes_usage(self) -> bool:
        """Tell whether a stream is to end with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def asked(self) -> Iterator[Asked]:
        """Yield what the request asks for. Raises Refused where that makes no sense."""
        if self.stream_options and not self.stream:
            raise Refused("stream_options is for stream=true alone.", "stream_options")
        for name in ("max_tokens", "seed"):
            yield Asked(name, name, getattr(self, name))
        for name in ("stop", "logit_bias"):
            yield Asked(name, name, getattr(self, name) or None)
        for name in ("temperature", "top_p"):
            yield Asked(name, name, getattr(self, name), getattr(self, name) == 1)
        for name in ("presence_penalty", "frequency_penalty"):
            yield Asked(name, name, getattr(self, name), getattr(self, name) == 0)


class ChatMessage(Message, Body):
    """One message; `developer` is another name of `system`."""

    content: Text = None
    refusal: str | None = Field(default=None, exclude=True)
    annotations: list[Any] | None = Field(default=None, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def rename_developer(cls, fields: Any) -> Any:
        """Return what the message is under its older name."""
        if isinstance(fields, dict) and fields.get("role") == "developer":
            return {**fields, "role": "system"}
        return fields

    @model_validator(mode="after")
    def check_content(self) -> Self:
        """Reject a message that says nothing."""
        if self.content is None and not self.tool_calls:
            raise ValueError("content is missing")
        return self


class JsonSchema(Body):
    """A schema, and what it is called."""

    name: str
    schema_: Schema = Field(default_factory=dict, alias="schema")
    description: str = ""
    strict: bool = False


class ResponseFormat(Body):
    """What the answer has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def check_schema(self) -> Self:
        """Reject a schema that is not there, or not asked for."""
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with type 'json_schema'")
        return self

    @property
    def schema_of_answer(self) -> Schema | None:
        """Return what the answer has to follow."""
        if self.json_schema:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class FunctionTool(Body):
    """A function that the model may ask to be called."""

    name: str
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool, of which there is one kind."""

    type: Literal["function"]
    function: FunctionTool


def name_of_tool(choice: Any) -> Any:
    """Return "auto", "none" or "required" as it is, and of an object the name of the function."""
    if isinstance(choice, dict) and choice.get("type") == "function":
        function = choice.get("function")
        return function.get("name") if isinstance(function, dict) else None
    return choice


ToolChoice = Annotated[
    str, BeforeValidator(name_of_tool, json_schema_input_type=str | dict[str, Any])
]


class ChatRequest(GenerationRequest):
    """Body of `POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] = Field(default_factory=list)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True

    def asked(self) -> Iterator[Asked]:
        """Yield what the request asks for. Raises Refused where that makes no sense."""
        yield from super().asked()
        if self.max_tokens and self.max_completion_tokens:
            raise Refused("Send max_completion_tokens or max_tokens, not both.", "max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise Refused("top_logprobs is for logprobs=true alone.", "top_logprobs")
        names = {"auto", "none"} | ({"required"} if self.tools else set())
        names |= {tool.function.name for tool in self.tools}
        if self.tool_choice and self.tool_choice not in names:
            raise Refused(f"Choose one of {', '.join(sorted(names))}.", "tool_choice")
        yield Asked("max_completion_tokens", "max_tokens", self.max_completion_tokens)
        if self.logprobs:
            yield Asked("logprobs", "top_logprobs", self.top_logprobs or 0)
        if self.response_format:
            yield Asked("response_format", "schema", self.response_format.schema_of_answer)
        if self.tools:
            tools = [tool.model_dump(exclude_none=True) for tool in self.tools]
            yield Asked("tools", "tools", tools)
            yield Asked("tool_choice", "tool_choice", self.tool_choice or "auto")
            several = self.parallel_tool_calls
            yield Asked("parallel_tool_calls", "parallel_tool_calls", several, several)


class CompletionRequest(GenerationRequest):
    """Body of `POST /v1/completions`."""

    prompt: Annotated[Texts, Field(min_length=1, max_length=MAX_CHOICES)]
    suffix: str | None = None
    echo: bool = False
    best_of: int = Field(default=1, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=5)

    def asked(self) -> Iterator[Asked]:
        """Yield what the request asks for."""
        yield from super().asked()
        yield Asked("suffix", "suffix", self.suffix, self.suffix == "")
        yield Asked("echo", "echo", self.echo, not self.echo)
        yield Asked("best_of", "best_of", self.best_of, self.best_of == 1)
        yield Asked("logprobs", "top_logprobs", self.logprobs)


class EmbeddingRequest(ModelRequest):
    """Body of `POST /v1/embeddings`."""

    input: Annotated[Texts, Field(min_length=1, max_length=2048)]
    dimensions: int | None = Field(default=None, ge=1)
    encoding_format: Literal["float", "base64"] = "float"

    def asked(self) -> Iterator[Asked]:
        """Yield what the request asks for."""
        yield Asked("dimensions", "dimensions", self.dimensions)


# Fields that a method need not know of.
OURS = {*ModelRequest.model_fields, "stream", "stream_options", "n", "echo", "best_of"}
OURS |= {"messages", "prompt", "input", "encoding_format"}
KEYWORDS = {"max_completion_tokens": "max_tokens", "logprobs": "top_logprobs"}
KEYWORDS |= {"response_format": "schema"}


@dataclass(frozen=True)
class Options:
    """What a method of the model takes beside its input."""

    names: frozenset[str]

    @classmethod
    def of(cls, method: Callable[..., Any]) -> Self:
        """Read the method's signature; `**sampling: Unpack[Sampling]` is each of these.

        Other `**options` end the start: they would promise everything.
        """
        names: set[str] = set()
        for parameter in signature(method).parameters.values():
            if parameter.kind is Parameter.VAR_KEYWORD:
                fields = get_args(get_type_hints(method).get(parameter.name))
                if not fields:
                    name = f"Model.{method.__name__}: **{parameter.name}"
                    sys.exit(f"{name} must be Unpack[Sampling], or each option by its name")
                names |= get_type_hints(fields[0]).keys()
            else:
                names.add(parameter.name)
        return cls(frozenset(names))

    def choose(self, asked: Iterator[Asked]) -> dict[str, Any]:
        """Return the method's options. Raises Refused for what it does not take."""
        options = {}
        for field, keyword, value, is_usual in asked:
            if value is None:
                continue
            if keyword in self.names:
                options[keyword] = value
            elif not is_usual:
                message = f"This model does not support {field}."
                raise Refused(message, field, "unsupported_parameter")
        return options

    def describe(self, request: type[ModelRequest], ours: set[str] = OURS) -> dict[str, Any]:
        """Describe the body for the OpenAPI document: only what is supported, and our own."""
        schema = inline_refs(request.model_json_schema())
        schema["properties"] = {
            name: field
            for name, field in schema["properties"].items()
            if name in ours or KEYWORDS.get(name, name) in self.names
        }
        schema["properties"]["model"]["enum"] = [settings.openai_model_name]
        content = {"application/json": {"schema": schema}}
        return {"requestBody": {"required": True, "content": content}}
