"""Small tokenizers of the kinds that models have, trained on a few lines in several scripts."""

from functools import cache

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

LINES = [
    "the cat sat on the cat's mat, and the cat ate it.  Twice   over!\n\n", "Café naïve déjà vu — “quoted” ‘text’…",
    "日本語の文字と漢字を書く", "Привет, мир! Как дела?", "emoji 🐈🐈‍⬛👩‍👩‍👧 and flags 🇫🇷", "tab\tand\r\nlines\n", "0123456789 3.14",
]  # fmt: skip
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
MARKS = ["<unk>", "<s>", "</s>"]
LLAMA2_DECODER = [
    decoders.Replace("▁", " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.Strip(" ", 1, 0),
]


def _byte_level(prefix: bool = False, normalizer=None) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    if normalizer:
        backend.normalizer = normalizer
    if prefix:  # as GPT-2 and RoBERTa have it: offsets without the spaces
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        LINES * 3,
        trainers.BpeTrainer(vocab_size=420, special_tokens=MARKS, initial_alphabet=alphabet),
    )
    return backend


def _pieces(way: str) -> Tokenizer:
    """SentencePiece's kind, with bytes for what it has no piece of."""
    unigram = way == "unigram"
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(
        LINES[:2] * 3, trainers.BpeTrainer(vocab_size=90, special_tokens=MARKS)
    )
    pieces = [piece for piece, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1])]
    if unigram:
        scores = [
            (piece, -float(len(piece) < 2) - 3.0) for piece in [*MARKS, *BYTES, *pieces[3:], "▁"]
        ]
        backend = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    else:
        vocabulary = {
            piece: i for i, piece in enumerate(dict.fromkeys([*MARKS, *BYTES, *pieces[3:], "▁"]))
        }
        merges = [(a, b) for a in pieces[3:] for b in pieces[3:] if a + b in vocabulary]
        backend = Tokenizer(
            models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True)
        )
    if way == "legacy":  # Llama 2
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        backend.decoder = decoders.Sequence(LLAMA2_DECODER)
    elif way == "gemma":  # nothing is put before the text
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.decoder = decoders.Sequence(LLAMA2_DECODER[:3])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Sequence(LLAMA2_DECODER)
    if way != "gemma":  # `<s>` before a text, as Llama has it
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return backend


def _word_pieces() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        LINES * 3, trainers.WordPieceTrainer(vocab_size=300, special_tokens=MARKS)
    )
    return backend


KINDS = {
    "bytes": _byte_level,
    "bytes, with a space before": lambda: _byte_level(prefix=True),
    "bytes, NFC": lambda: _byte_level(normalizer=normalizers.NFC()),
    "unigram": lambda: _pieces("unigram"),
    "legacy": lambda: _pieces("legacy"),
    "gemma": lambda: _pieces("gemma"),
    "bpe": lambda: _pieces("bpe"),
    "word pieces": _word_pieces,
}


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind."""
    backend = KINDS[kind]()
    backend.add_special_tokens([AddedToken("<|end|>", lstrip=True, rstrip=True, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
