"""One message of a chat request."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FailFast, Field, model_validator

from arborist.orchestrator.api.incoming import ChatTurn
from arborist.orchestrator.api.openai.request_model import RequestModel

# The newer name of the same role.
_SAME_ROLE = {"developer": "system"}


class TextPart(RequestModel):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


def _as_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class ChatMessage(RequestModel):
    """Role and text. A field that is null is absent, so that an answer can be sent back as it is.

    Attributes:
        role: "system" or "developer", "user", "assistant".
        content: Text, whole or in parts.
        name: Taken and ignored: chat templates know no names.
        annotations: Taken and ignored: part of an answer sent back.
    """

    role: str
    content: Annotated[list[TextPart], FailFast(), BeforeValidator(_as_parts)]
    name: str = ""
    annotations: list[Any] = Field(default=[])

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None}

    def turn(self) -> ChatTurn:
        """Returns it as the chat template has it; parts are joined by line breaks."""
        text = "\n".join(part.text for part in self.content)
        return ChatTurn(_SAME_ROLE.get(self.role, self.role), text)
