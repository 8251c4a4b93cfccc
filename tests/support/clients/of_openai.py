"""Drives OpenAI's own client, and libraries that speak its API; each answer is validated."""

import asyncio
import base64
import os
from collections.abc import Iterator
from functools import reduce
from typing import Any

import openai
from lines import serve
from openai.types import Completion, CreateEmbeddingResponse, ImagesResponse
from openai.types.audio import Transcription
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it is fetched from the internet

ANSWERS: dict[str, type[BaseModel]] = {
    "chat": ChatCompletion,
    "completions": Completion,
    "embeddings": CreateEmbeddingResponse,
    "transcriptions": Transcription,
    "images": ImagesResponse,
}
CHUNKS: dict[str, type[BaseModel]] = {"chat": ChatCompletionChunk, "completions": Completion}


def method_of(client: Any, api: str, kind: str = "") -> Any:
    """Return what creates answers of this part of the API, or responses of a kind."""
    names = {"chat": "chat.completions", "transcriptions": "audio.transcriptions"}
    names |= {"speech": "audio.speech"}
    path = [*names.get(api, api).split("."), *filter(None, [kind])]
    return getattr(reduce(getattr, path, client), "generate" if api == "images" else "create")


def extras(value: Any, place: str = "") -> Iterator[str]:
    """Yield the fields that the client's types do not have."""
    if isinstance(value, BaseModel):
        yield from (f"{place}.{name}" for name in value.model_extra or ())
        for name in type(value).model_fields:
            yield from extras(getattr(value, name), f"{place}.{name}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from extras(item, f"{place}.{number}")


def validated(kind: type[BaseModel], raw: Any) -> dict[str, Any]:
    """Return what an answer says, which has to be of the client's type to the letter."""
    document = raw
    if kind is Completion:
        # OpenAI's API has null until a choice ends, which the client's own type does not allow.
        choices = [
            {**each, "finish_reason": each["finish_reason"] or "stop"} for each in raw["choices"]
        ]
        document = {**raw, "choices": choices}
    unknown = list(extras(kind.model_validate(document, strict=True)))
    assert not unknown, unknown
    return dict(raw)


def failure(error: openai.APIError) -> dict[str, Any]:
    """Return what the client tells of an error, whose body has to be complete."""
    body: Any = error.body
    assert sorted(body) == ["code", "message", "param", "type"], body
    told = {"status": getattr(error, "status_code", None), "class": type(error).__name__}
    return {"failure": {**told, **body}}


def told(headers: Any, file: bytes) -> dict[str, Any]:
    """Return what there is to tell of a file."""
    return {"headers": dict(headers), "data": base64.b64encode(file).decode()}


def create(
    url: str,
    api: str,
    body: dict[str, Any],
    *,
    key: str = "no key",
    how: str = "sync",
    retries: int = 0,
) -> Any:
    """Create an answer: by the client for coroutines, too, or as the raw response.

    A file may be streamed, too.
    """
    options: dict[str, Any] = {"base_url": f"{url}/v1", "api_key": key, "max_retries": retries}
    if "file" in body:
        body = {**body, "file": open(body["file"], "rb")}  # noqa: SIM115, PTH123
    try:
        if how == "async":

            async def ask() -> Any:
                async with openai.AsyncOpenAI(**options) as client:
                    return await method_of(client, api)(**body)

            answer = asyncio.run(ask())
        else:
            with openai.OpenAI(**options) as client:
                if how == "sync":
                    answer = method_of(client, api)(**body)
                elif how == "streamed":
                    with method_of(client, api, "with_streaming_response")(**body) as response:
                        return told(response.headers, response.read())
                else:
                    response = method_of(client, api, "with_raw_response")(**body)
                    assert response.headers["content-type"] == "application/json"
                    answer = response.parse()
    except openai.APIError as error:
        return failure(error)
    if isinstance(answer, str):
        return answer
    if isinstance(answer, openai.HttpxBinaryResponseContent):
        return told(answer.response.headers, answer.content)
    return validated(
        ANSWERS[api], answer.model_dump(mode="json", by_alias=True, exclude_unset=True)
    )


def stream(
    url: str, api: str, body: dict[str, Any], *, how: str = "sync", key: str = "no key"
) -> Any:
    """Return all chunks of a stream; a failure is the last item."""
    options: dict[str, Any] = {"base_url": f"{url}/v1", "api_key": key, "max_retries": 0}
    chunks: list[Any] = []

    def take(chunk: BaseModel) -> None:
        raw = chunk.model_dump(mode="json", by_alias=True, exclude_unset=True)
        chunks.append(validated(CHUNKS[api], raw))

    async def ask() -> None:
        async with openai.AsyncOpenAI(**options) as client:
            async for chunk in await method_of(client, api)(**body, stream=True):
                take(chunk)

    try:
        if how == "async":
            asyncio.run(ask())
        else:
            with openai.OpenAI(**options) as client:
                for chunk in method_of(client, api)(**body, stream=True):
                    take(chunk)
    except openai.APIError as error:
        chunks.append(failure(error))
    return chunks


def models(url: str, name: str) -> Any:
    """Return the names of all models, and what is told of one."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="no key", max_retries=0) as client:
        found = [model.id for model in client.models.list()]
        try:
            return found, client.models.retrieve(name).to_dict()
        except openai.APIError as error:
            return found, failure(error)


def by_litellm(url: str, model: str, text: str) -> Any:
    """Ask by litellm, at once and in a stream."""
    import litellm

    options: dict[str, Any] = {
        "model": f"openai/{model}",
        "api_base": f"{url}/v1",
        "api_key": "no key",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 5,
    }
    whole = litellm.completion(**options)
    chunks = litellm.completion(**options, stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    return whole.choices[0].message.content, streamed, whole.usage.completion_tokens


def media_by_litellm(url: str, model: str, text: str) -> Any:
    """Have litellm ask for speech and for a picture; return both in base64."""
    import litellm

    options: dict[str, Any] = {"model": f"openai/{model}", "api_key": "no key"}
    options["api_base"] = f"{url}/v1"
    speech = litellm.speech(input=text, voice="default", **options)
    drawn = litellm.image_generation(prompt=text, **options)
    return base64.b64encode(speech.content).decode(), drawn.data[0].b64_json


def by_langchain(url: str, model: str, text: str) -> Any:
    """Ask by langchain-openai, at once and in a stream, and embed."""
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    options: dict[str, Any] = {"model": model, "base_url": f"{url}/v1", "api_key": "no key"}
    chat = ChatOpenAI(**options, max_retries=0, stream_usage=True)
    whole = chat.invoke(text)
    chunks = list(chat.stream(text))
    streamed = "".join(str(chunk.content) for chunk in chunks)
    usage = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    embeddings = OpenAIEmbeddings(**options, check_embedding_ctx_length=False)
    vectors = embeddings.embed_documents(["a", "bb"])
    return whole.content, streamed, usage[-1]["output_tokens"], vectors


def by_pydantic_ai(url: str, model: str, text: str, *, native: bool) -> Any:
    """Have pydantic-ai ask for an object, by a tool or by a schema."""
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    class City(BaseModel):
        name: str
        inhabitants: int

    provider = OpenAIProvider(base_url=f"{url}/v1", api_key="no key")
    kind: Any = NativeOutput(City) if native else City
    agent = Agent(OpenAIChatModel(model, provider=provider), output_type=kind)
    found: Any = agent.run_sync(text).output
    return {"name": found.name, "inhabitants": found.inhabitants}


if __name__ == "__main__":
    serve(
        {
            "create": create,
            "stream": stream,
            "models": models,
            "by_litellm": by_litellm,
            "media_by_litellm": media_by_litellm,
            "by_langchain": by_langchain,
            "by_pydantic_ai": by_pydantic_ai,
        }
    )
