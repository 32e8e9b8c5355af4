"""What was said so far."""

from __future__ import annotations

from arborist.client.prompt import Message


class Conversation:
    """Turns of user and model, after the system's if there is one."""

    def __init__(self, system: str | None) -> None:
        """Begins.

        Args:
            system: What the model is told before everything; None = nothing.
        """
        self._system = [Message("system", system)] if system is not None else []
        self._turns: list[Message] = []

    @property
    def messages(self) -> list[Message]:
        """Returns all turns, oldest first."""
        return [*self._system, *self._turns]

    def ask(self, text: str) -> None:
        """Adds what the user says."""
        self._turns.append(Message("user", text))

    def answer(self, text: str) -> None:
        """Adds what the model said; with nothing said, the question is taken back."""
        if text:
            self._turns.append(Message("assistant", text))
        else:
            self._turns.pop()

    def reset(self) -> None:
        """Forgets every turn; the system's stays."""
        self._turns.clear()
