"""Python SDK: `Client` and `AsyncClient` talk to a server's public gRPC port."""

from arborist.client.async_client import AsyncClient, AsyncGenerationStream
from arborist.client.client import Client, GenerationStream
from arborist.client.completion import (
    Completion,
    ModelCard,
    OutputLogprobs,
    RoundEvent,
    RoundTimes,
    SpeculationSummary,
    Started,
    Summary,
    Timing,
    TokenLogprob,
)
from arborist.client.prompt import JsonSchema, Message, Prompt, Speculation

__all__ = [
    "AsyncClient",
    "AsyncGenerationStream",
    "Client",
    "Completion",
    "GenerationStream",
    "JsonSchema",
    "Message",
    "ModelCard",
    "OutputLogprobs",
    "Prompt",
    "RoundEvent",
    "RoundTimes",
    "Speculation",
    "SpeculationSummary",
    "Started",
    "Summary",
    "Timing",
    "TokenLogprob",
]
