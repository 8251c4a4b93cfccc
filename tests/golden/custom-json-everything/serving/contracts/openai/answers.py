"""What clients get: the objects of OpenAI's API, and how they are made of a model's parts."""

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.requests import ClientDisconnect

from serving.generation import FinishReason, Part, TokenLogprob, ToolCall
from serving.streaming import PAUSE

Parts = AsyncGenerator[Any, None]  # of the number of a choice and a Part, or PAUSE
Object = dict[str, Any]
CREATED = int(time.time())


class ModelCard(BaseModel):
    """The model."""

    id: str
    object: Literal["model"] = "model"
    created: int = CREATED
    owned_by: str = "owner"


class ModelList(BaseModel):
    """All the models: one."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Usage(BaseModel):
    """How many tokens there were."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatLogprobs(BaseModel):
    """How likely the tokens were."""

    content: list[TokenLogprob]


class AnswerMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] = []


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """Answer of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class CompletionLogprobs(BaseModel):
    """How likely the tokens were, in lists of the same length."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class Completion(BaseModel):
    """Answer of `POST /v1/completions`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Embedding(BaseModel):
    """One vector: numbers, or in base64 as little-endian 32-bit floats."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """How many tokens there were."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """Answer of `POST /v1/embeddings`."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


FIRST = Part()  # which no model has made


@dataclass
class Choice:
    """One answer, as far as it has come."""

    text: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    end: Part = FIRST

    def add(self, part: Part) -> None:
        """Add the next part; the last has the reason."""
        self.text += part.text
        self.tool_calls += part.tool_calls
        self.logprobs += part.logprobs
        self.end = part


def count(choices: Iterable[Choice], n: int) -> Usage | None:
    """Return the numbers of tokens, if the model tells; a prompt counts once for `n` choices."""
    prompt = completion = 0
    for index, end in enumerate(choice.end for choice in choices):
        if end.prompt_tokens is None or end.completion_tokens is None:
            return None
        prompt += end.prompt_tokens if index % n == 0 else 0
        completion += end.completion_tokens
    return Usage(
        prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion
    )


class Form:
    """How a text is answered, whole or in chunks."""

    prefix, kind, kind_of_chunk = "cmpl-", "text_completion", "text_completion"

    def __init__(self, model: str) -> None:
        self.head = {
            "id": self.prefix + uuid4().hex,
            "created": int(time.time()),
            "model": model,
        }
        self.begun: defaultdict[int, Choice] = defaultdict(Choice)  # of a stream

    def whole(self, choices: list[Choice], usage: Usage | None) -> bytes:
        """Return the answer's body."""
        made = [{"index": index, **self.choice(each)} for index, each in enumerate(choices)]
        counted = {"usage": usage} if usage else {}
        return to_json({**self.head, "object": self.kind, "choices": made, **counted})

    def chunk(self, index: int, part: Part) -> Iterator[Object]:
        """Yield the chunks that a part makes."""
        sofar = self.begun[index]
        for piece in self.pieces(sofar, part):
            yield self.around([{"index": index, **piece}])
        sofar.add(part)

    def around(self, choices: list[Object]) -> Object:
        """Return a chunk of these choices."""
        return {**self.head, "object": self.kind_of_chunk, "choices": choices}

    def choice(self, choice: Choice) -> Object:
        """Return a choice of a whole answer, without its index."""
        logprobs = logprobs_in_lists(choice.logprobs, 0)
        reason = choice.end.finish_reason
        return {"text": choice.text, "logprobs": logprobs, "finish_reason": reason}

    def pieces(self, sofar: Choice, part: Part) -> Iterator[Object]:
        """Yield what a part adds to a choice."""
        logprobs = logprobs_in_lists(part.logprobs, len(sofar.text))
        yield {"text": part.text, "logprobs": logprobs, "finish_reason": part.finish_reason}


class ChatForm(Form):
    """How a conversation is answered."""

    prefix, kind, kind_of_chunk = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def choice(self, choice: Choice) -> Object:
        """Return a choice of a whole answer, without its index."""
        text = choice.text if choice.text or not choice.tool_calls else None
        message: Object = {"role": "assistant", "content": text, "refusal": None}
        if choice.tool_calls:
            message["tool_calls"] = choice.tool_calls
        logprobs = {"content": choice.logprobs} if choice.logprobs else None
        reason = choice.end.finish_reason
        return {"message": message, "logprobs": logprobs, "finish_reason": reason}

    def pieces(self, sofar: Choice, part: Part) -> Iterator[Object]:
        """Yield what a part adds to a choice; the first piece says who speaks."""
        if sofar.end is FIRST:
            who = {"role": "assistant", "content": ""}
            yield {"delta": who, "logprobs": None, "finish_reason": None}
        delta: Object = {"content": part.text} if part.text else {}
        if part.tool_calls:
            before = len(sofar.tool_calls)
            calls = enumerate(part.tool_calls, start=before)
            delta["tool_calls"] = [{"index": place, **dict(call)} for place, call in calls]
        logprobs = {"content": part.logprobs} if part.logprobs else None
        yield {"delta": delta, "logprobs": logprobs, "finish_reason": part.finish_reason}


def logprobs_in_lists(logprobs: list[TokenLogprob], offset: int) -> Object | None:
    """Return what completions have of these tokens, of which the first is so far into the text."""
    if not logprobs:
        return None
    offsets = [offset]
    for each in logprobs[:-1]:
        offsets.append(offsets[-1] + len(each.token))
    return {
        "tokens": [each.token for each in logprobs],
        "token_logprobs": [each.logprob for each in logprobs],
        "top_logprobs": [
            {other.token: other.logprob for other in each.top_logprobs} for each in logprobs
        ],
        "text_offset": offsets,
    }


async def join(parts: Parts, is_disconnected: Callable[[], Awaitable[bool]]) -> list[Choice]:
    """Return the choices that the parts make. Raises ClientDisconnect when nobody waits."""
    choices: defaultdict[int, Choice] = defaultdict(Choice)
    async with aclosing(parts):
        async for part in parts:
            if await is_disconnected():
                raise ClientDisconnect
            if part != PAUSE:
                index, piece = part
                choices[index].add(piece)
    return list(choices.values())


async def in_chunks(
    parts: Parts, form: Form, n: int, *, includes_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Yield the chunks of a stream; the last has the numbers of tokens, where these are wanted."""
    usage: Object = {"usage": None} if includes_usage else {}
    async with aclosing(parts):
        async for part in parts:
            if part == PAUSE:
                yield PAUSE
                continue
            for chunk in form.chunk(*part):
                yield to_json({**chunk, **usage})
    if includes_usage and (counted := count(form.begun.values(), n)):
        yield to_json({**form.around([]), "usage": counted})
