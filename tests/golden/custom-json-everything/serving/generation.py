"""What a language model is asked, and what it answers: for `chat` and `complete` of a `Model`."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from pydantic import BaseModel

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class Function(BaseModel):
    """A function that is to be called."""

    name: str
    arguments: str  # an object, as JSON


class ToolCall(BaseModel):
    """A call that the model asks for; a message with the role `tool` has its result."""

    id: str
    type: Literal["function"] = "function"
    function: Function


class Message(BaseModel):
    """One message of a conversation; `model_dump(exclude_none=True)` is for chat templates."""

    role: Role
    content: str | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Logprob(BaseModel):
    """How likely a token was."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(Logprob):
    """How likely a token of the answer was, and which others were."""

    top_logprobs: list[Logprob]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an answer. What is known at the end alone comes with the last ones."""

    text: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)  # each of them whole
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None  # "stop", if no part has one
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Sampling(TypedDict, total=False):
    """How tokens are chosen, and when it is enough; a request says what is here."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: list[str]
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[str, float]
    top_logprobs: int  # how many others than the token itself


Schema = dict[str, Any]  # a JSON schema, which the answer has to follow
