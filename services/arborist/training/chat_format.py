"""How a target is spoken to: its own chat template, or this project's format."""

from __future__ import annotations

from typing import Any

from arborist.training.records import Encoder, chat_prompt


class ChatFormat:
    """Turns prompts and texts into the token ids that the target is used to."""

    def __init__(self, encoder: Encoder) -> None:
        """Take the target's tokenizer.

        Args:
            encoder: tokenizer; its chat template is used if it has one.
        """
        self._encoder: Any = encoder
        bos = encoder.bos_token_id
        self.begin: list[int] = [] if bos is None else [bos]
        eos = encoder.eos_token_id
        self.end: list[int] = [] if eos is None else [eos]

    def prompt_text(self, prompt: str) -> str:
        """The text in front of a response, special tokens spelt out, without the first one."""
        if not getattr(self._encoder, "chat_template", None):
            return chat_prompt(prompt)
        turns = [{"role": "user", "content": prompt}]
        rendered: str = self._encoder.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        return rendered.removeprefix(self._encoder.bos_token or "")

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of a single user turn, up to where the response begins."""
        return [*self.begin, *self.encode(self.prompt_text(prompt))]

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added."""
        ids: list[int] = self._encoder.encode(text, add_special_tokens=False)
        return ids
