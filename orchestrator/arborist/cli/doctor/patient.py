"""The pair that is examined: engines, tokenizer, and prompts made for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from arborist.cli.doctor.prompts import DoctorPrompt, own_prompts
from arborist.cli.local import LocalModel
from arborist.common.config import ArboristConfig
from arborist.common.model_files import ModelFiles
from arborist.core.engine import DraftEngine, TargetEngine
from arborist.core.errors import InvalidArgumentError, MismatchError
from arborist.orchestrator.api.incoming import ChatTurn
from arborist.orchestrator.api.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Patient:
    """A pair that was loaded.

    Attributes:
        target: Engine of the target.
        draft: Engine of the head.
        tokenizer: Of the target; None = it has none.
        head_files: Of the head.
        target_files: Of the target.
        bos_id: Begin-of-sequence token that the target's config names; None = none.
        config: Tree and limits.
    """

    target: TargetEngine
    draft: DraftEngine
    tokenizer: Tokenizer | None
    head_files: ModelFiles
    target_files: ModelFiles
    bos_id: int | None
    config: ArboristConfig

    @classmethod
    def load(cls, config: ArboristConfig) -> Patient:
        """Loads target, head and tokenizer; imports torch.

        Args:
            config: Models, device, dtype, KV capacity, tree.
        Raises:
            InvalidArgumentError: There is no such model or device.
            MismatchError: The head does not fit the target, or one of them is broken.
        """
        from transformers.utils.logging import disable_progress_bar

        from arborist.draft.engine import load_draft
        from arborist.draft.language_model_files import is_language_model
        from arborist.target.engine import load_target

        disable_progress_bar()
        target, draft = config.target, config.draft
        model, head = target.resolved_model(), draft.resolved_model()
        head_files = ModelFiles(head, draft.revision)
        if is_language_model(head_files.config, head_files.shards):
            raise InvalidArgumentError("draft.model", head, "an EAGLE head, not a language model")
        # First the head, which is refused without loading the target.
        draft_engine = load_draft(
            head,
            model,
            device=draft.device,
            dtype=draft.dtype,
            kv_capacity_tokens=draft.kv_capacity_tokens,
            revision=draft.revision,
            target_revision=target.revision,
            name=draft.served_name(),
            token_ids=draft.token_ids(),
        )
        target_engine = load_target(
            model,
            device=target.device,
            dtype=target.dtype,
            kv_capacity_tokens=target.kv_capacity_tokens,
            revision=target.revision,
            name=target.served_name(),
        )
        files = ModelFiles(model, target.revision)
        bos_id = (files.config.get("text_config") or files.config).get("bos_token_id")
        return cls(
            target_engine,
            draft_engine,
            load_tokenizer(model, target.revision),
            head_files,
            files,
            bos_id if isinstance(bos_id, int) else None,
            config,
        )

    @property
    def has_chat_template(self) -> bool:
        """Returns whether conversations can be rendered."""
        return self.tokenizer is not None and self.tokenizer.has_chat_template

    def model(self) -> LocalModel:
        """Returns target and draft as one model that decodes token ids; nobody reads its text."""
        return LocalModel(self.target, self.draft, None, self.config)

    def embedding(self) -> Tensor | None:
        """Returns the target's embedding (V, H); None = it has no table of the usual name."""
        try:
            return self.target_files.read(self.target_files.embedding_name())[0]
        except MismatchError:
            return None

    def own_prompts(self) -> list[DoctorPrompt]:
        """Returns ten neutral prompts in the form that suits the target.

        Raises:
            InvalidArgumentError: The target has no tokenizer.
        """
        if self.tokenizer is None:
            raise InvalidArgumentError(
                "--prompts", "unset", "a file with prompt_ids: this target has no tokenizer"
            )
        return own_prompts(as_chat=self.has_chat_template)

    def as_given(self, prompt: DoctorPrompt) -> list[int]:
        """Returns a prompt's token ids.

        Raises:
            InvalidArgumentError: It needs a tokenizer or a chat template that is not there.
        """
        if prompt.token_ids:
            return list(prompt.token_ids)
        if self.tokenizer is None:
            raise InvalidArgumentError(
                "--prompts", "text", "prompt_ids: this target has no tokenizer"
            )
        if prompt.turns:
            return self.tokenizer.render_chat(prompt.turns)
        return self.tokenizer.encode(prompt.text)

    def with_template(self, prompt: DoctorPrompt) -> list[int] | None:
        """Returns a text prompt as the user's turn; None = it is no text, or there is no way."""
        if not prompt.text or not self.has_chat_template:
            return None
        return self.as_given(replace(prompt, text="", turns=(ChatTurn("user", prompt.text),)))

    def with_bos(self, prompt_ids: Sequence[int]) -> list[int] | None:
        """Returns a prompt behind its begin-of-sequence token; None = nothing to put there."""
        if self.bos_id is None or prompt_ids[0] == self.bos_id:
            return None
        return [self.bos_id, *prompt_ids]
