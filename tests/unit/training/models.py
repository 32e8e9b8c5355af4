"""A tiny target, a tiny head and a byte tokenizer for the training tests."""

from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from arborist.draft.head import EagleHead
from arborist.training.head_shape import head_config_of
from arborist.training.target_states import SequenceStates, TargetReadout

VOCAB_SIZE = 64


class LetterEncoder:
    """One id a letter; <|user|>, <|assistant|> and <|end|> have ids of their own."""

    bos_token_id = 0
    eos_token_id = 1
    specials = (("<|end|>", 1), ("<|user|>", 2), ("<|assistant|>", 3))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of the letters, 4 to 63."""
        ids = []
        while text:
            for name, number in self.specials:
                if text.startswith(name):
                    ids.append(number)
                    text = text[len(name) :]
                    break
            else:
                ids.append(4 + ord(text[0]) % (VOCAB_SIZE - 4))
                text = text[1:]
        return ids


def tiny_target(num_layers: int = 3, seed: int = 0) -> LlamaForCausalLM:
    """A random target with tied embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        initializer_range=0.15,  # a peaked output, so that there is something to learn
    )
    return LlamaForCausalLM(config).eval()


def tiny_head(target: LlamaForCausalLM, seed: int = 1) -> EagleHead:
    """A random head that fits the target."""
    torch.manual_seed(seed)
    return EagleHead(head_config_of(target.config))


class TinyStates:
    """States of a target as transformers gives them."""

    def __init__(self, target: LlamaForCausalLM) -> None:
        self._target = target
        self.embedding = target.model.embed_tokens.weight.detach()
        self.readout = TargetReadout(self.embedding)

    @torch.no_grad()
    def states(self, token_ids: Sequence[int]) -> SequenceStates:
        """States after the final norm."""
        ids = torch.tensor([list(token_ids)])
        finals = self._target.model(input_ids=ids).last_hidden_state[0].bfloat16()
        return SequenceStates(finals, finals)
