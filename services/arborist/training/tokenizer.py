"""A tokenizer of one's own: byte-level BPE with single digits, in this project's chat format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits
from tokenizers.pre_tokenizers import Sequence as Steps
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from arborist.core.errors import InvalidArgumentError
from arborist.training.records import END_OF_TURN, data_files, read_records

BOS = "<|bos|>"
PAD = "<|pad|>"
ROLES = ("<|user|>", "<|assistant|>", "<|system|>")
MAX_VOCAB_SIZE = 1_000_000

_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '"
    + END_OF_TURN
    + "\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def train_tokenizer(
    paths: Sequence[Path], vocab_size: int, more_specials: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Learns merges from texts; the same texts in the same order give the same tokenizer.

    Args:
        paths: JSON-lines files as `read_records` takes them, or folders of such.
        vocab_size: Most token ids, in [256 + special tokens, 1,000,000]; a small text has fewer.
        more_specials: Special tokens besides those of the chat format.
    Returns:
        Any text encodes and decodes to itself; bos (id 0) is put first, `<|end|>` is id 1.
    Raises:
        InvalidArgumentError: A file cannot be read, no text is there, or a size is out of bounds.
    """
    specials = list(dict.fromkeys((BOS, END_OF_TURN, *ROLES, PAD, *more_specials)))
    if "" in specials:
        raise InvalidArgumentError("special_token", "''", "at least one character")
    lowest = 256 + len(specials)
    if not lowest <= vocab_size <= MAX_VOCAB_SIZE:
        raise InvalidArgumentError("vocab_size", vocab_size, f"in [{lowest}, {MAX_VOCAB_SIZE}]")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Steps(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=specials,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(paths), trainer)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        extra_special_tokens=[one for one in specials if one not in (BOS, END_OF_TURN, PAD)],
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _texts(paths: Sequence[Path]) -> Iterator[str]:
    """Yields every text, prompt and response.

    Raises:
        InvalidArgumentError: A file cannot be read, or nothing is in any of them.
    """
    found = False
    for path in _files(paths):
        try:
            for record in read_records(path):
                for text in (record.text, record.response):
                    if text:
                        found = True
                        yield text
        except (ValueError, OSError, EOFError) as error:
            raise InvalidArgumentError("texts", path, f"a file of records: {error}") from None
    if not found:
        raise InvalidArgumentError("texts", "no text", "files with at least one text")


def _files(paths: Sequence[Path]) -> Iterable[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        try:
            yield from data_files(path).values()
        except ValueError as error:
            raise InvalidArgumentError("texts", path, f"a folder of records: {error}") from None
