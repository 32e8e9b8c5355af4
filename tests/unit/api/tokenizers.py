"""Tiny tokenizers of the two kinds that decode differently, made in memory."""

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from arborist.orchestrator.api.tokenizer import Tokenizer

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('system comes first') }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


def byte_level_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE) -> Tokenizer:
    """Bytes and a few merges; specials first; every token id below 256 + 4 + merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("ab", "c"), ("Ġ", "a"), ("e", "n"), ("en", "d"), ("Ã", "©")]
    tokens = [*SPECIAL, *alphabet, *("".join(pair) for pair in merges)]
    rust = RustTokenizer(models.BPE({one: i for i, one in enumerate(tokens)}, merges))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    return _wrap(rust, chat_template)


def byte_fallback_tokenizer() -> Tokenizer:
    """Llama-2's kind: words with a leading block, bytes as `<0x41>` where words are missing."""
    words = ["▁", "▁a", "b", "c", "▁end", "en", "\N{REPLACEMENT CHARACTER}"]
    tokens = ["<unk>", *SPECIAL, *(f"<0x{one:02X}>" for one in range(256)), *words]
    rust = RustTokenizer(
        models.BPE(
            {one: i for i, one in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True
        )
    )
    rust.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _wrap(rust, None)


def _wrap(rust: RustTokenizer, chat_template: str | None) -> Tokenizer:
    backend = PreTrainedTokenizerFast(
        tokenizer_object=rust, eos_token=SPECIAL[0], extra_special_tokens=SPECIAL[1:]
    )
    backend.chat_template = chat_template
    return Tokenizer(backend)


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Number of ids the tokenizer knows."""
    return len(tokenizer._backend)
