"""How long prompts and outputs are, as seen lately."""

from __future__ import annotations

# About so many sessions count.
_SESSIONS = 64
# What is thought of outputs before any was seen counts as so many sessions.
_GUESSED_SESSIONS = 1
_GUESSED_OUTPUT_TOKENS = 128


class SessionLengths:
    """Running means over sessions; those that are still under way count with what they have."""

    def __init__(self) -> None:
        """Starts with a guess."""
        self._sessions = float(_GUESSED_SESSIONS)
        self._outputs = float(_GUESSED_SESSIONS * _GUESSED_OUTPUT_TOKENS)
        self._prompts = 0.0

    def began(self, prompt_tokens: int) -> None:
        """Takes a session.

        Args:
            prompt_tokens: Of its prompt, as far as they had to be computed.
        """
        keep = 1.0 - 1.0 / _SESSIONS
        self._sessions = keep * self._sessions + 1.0
        self._outputs *= keep
        self._prompts = keep * self._prompts + prompt_tokens

    def decoded(self, tokens: int) -> None:
        """Takes output tokens of any session."""
        self._outputs += tokens

    @property
    def output_tokens(self) -> float:
        """Returns the output tokens of a session, at least 1."""
        return max(1.0, self._outputs / self._sessions)

    @property
    def prompt_tokens(self) -> float:
        """Returns the prompt tokens of a session that have to be computed."""
        return self._prompts / self._sessions
