"""`speculation` of a request: on, off, or the shape of the tree."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from arborist.orchestrator.api.openai.request_model import RequestModel
from arborist.orchestrator.generation import SpeculationOptions

_SWITCHES = {"on": True, "off": False}


class SpeculationFields(RequestModel):
    """The object form; `"on"`, `"off"`, true and false stand for `enabled` alone."""

    enabled: bool | None = None
    depth: int | None = None
    top_k: int | None = None
    num_draft_tokens: int | None = None
    policy: str | None = None
    adaptive: bool | None = None

    def options(self) -> SpeculationOptions:
        """Returns it as the controller has it, unchecked."""
        return SpeculationOptions(
            self.enabled,
            self.depth,
            self.top_k,
            self.num_draft_tokens,
            self.policy,
            self.adaptive,
        )


def _from_switch(value: Any) -> Any:
    if isinstance(value, bool):
        return {"enabled": value}
    if isinstance(value, str):
        if value not in _SWITCHES:
            raise PydanticCustomError("switch", "'on', 'off', true, false or an object")
        return {"enabled": _SWITCHES[value]}
    return value


Speculation = Annotated[SpeculationFields, BeforeValidator(_from_switch)]
