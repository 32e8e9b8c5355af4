"""`stream_options` of a request."""

from __future__ import annotations

from arborist.orchestrator.api.openai.request_model import RequestModel


class StreamOptions(RequestModel):
    """What a stream carries besides the output.

    Attributes:
        include_usage: Whether a last chunk without choices counts tokens.
        continuous_usage_stats: Whether every chunk counts tokens.
        include_obfuscation: Padding against observers of sizes; there is none.
    """

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False
