"""The merges against tokenizers' BpeTrainer: real text, several patterns and sizes, every option."""

from __future__ import annotations

import json
import sysconfig
from functools import cache
from pathlib import Path

import pytest

from bench import data
from bench.published import PUBLISHED
from bpe_llama import Tokenizer, WordCounts

tokenizers = pytest.importorskip("tokenizers", reason="the oracle is the tokenizers package: make parity installs it")


@cache
def stdlib() -> tuple[str, ...]:
    """Real text of this machine: about 2 MB of Python sources, one document a file."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]
    return tuple(file.read_text(encoding="utf-8") for file in files)


def oracle(texts, pattern: str, vocab_size: int, special_tokens=(), **options) -> list[tuple[str, str]]:
    """Return BpeTrainer's merges in order, in its byte-level alphabet."""
    from tokenizers import Regex, models, pre_tokenizers, trainers

    tok = tokenizers.Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        **options,
    )
    tok.train_from_iterator(texts, trainer)
    return [tuple(merge) for merge in json.loads(tok.to_str())["model"]["merges"]]


def merges(tok: Tokenizer) -> list[tuple[str, str]]:
    """Return our merges in the same alphabet, built here so as not to trust our own export."""
    first = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in first]
    letters = {byte: chr(byte) for byte in first} | {byte: chr(256 + index) for index, byte in enumerate(rest)}

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    return [(spell(left), spell(right)) for left, right in tok.merges]


@pytest.mark.parametrize("pattern", ["r50k", "cl100k", "llama3", "o200k", "qwen2"])
@pytest.mark.parametrize("vocab_size", [300, 4000])
def test_patterns_and_sizes(pattern, vocab_size):
    tok = Tokenizer.train_from_iterator(stdlib(), vocab_size, pattern=pattern, progress=False)
    assert merges(tok) == oracle(stdlib(), tok.pattern, vocab_size)


@pytest.mark.parametrize(
    "options",
    [
        {"min_frequency": 100},
        {"min_frequency": 1},
        {"max_token_length": 2},
        {"max_token_length": 5},
        {"max_token_length": 9, "min_frequency": 50},
        {"special_tokens": ["<|begin|>", "<|end|>"]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:the text has too few pairs")
def test_options(options):
    tok = Tokenizer.train_from_iterator(stdlib(), 6000, pattern="cl100k", progress=False, **options)
    assert merges(tok) == oracle(stdlib(), tok.pattern, 6000, **options)


def test_a_whole_vocabulary_of_little_text():
    """Until no pair is left: every tie, down to pairs that occur once."""
    texts = [stdlib()[0][:3000], "aaaaaaaaaaaaaaaaaaaaaaa bbbbbbb ababababababab", "日本語 текст émoji 😀😀😀"]
    with pytest.warns(UserWarning, match="too few pairs"):
        tok = Tokenizer.train_from_iterator(texts, 100_000, pattern="cl100k", progress=False)
    assert merges(tok) == oracle(texts, tok.pattern, 100_000)


def test_custom_regex_and_counts():
    pattern = r"\p{Lu}?\p{Ll}+|\s+(?!\S)|\s|[^\s\p{L}]{1,2}|\p{L}"
    counts = WordCounts.from_iterator(stdlib()[:20], pattern=pattern, progress=False)
    tok = Tokenizer.train_from_counts(counts, 1500, progress=False)
    assert merges(tok) == oracle(stdlib()[:20], pattern, 1500)


def test_files_equal_documents(tmp_path):
    for index, text in enumerate(stdlib()):
        (tmp_path / f"{index:03}.txt").write_text(text, encoding="utf-8", newline="")
    tok = Tokenizer.train(tmp_path, 3000, pattern="llama3", num_threads=2, progress=False)
    assert merges(tok) == oracle(stdlib(), tok.pattern, 3000)


@pytest.mark.filterwarnings("ignore:the text has too few pairs")
@pytest.mark.parametrize("vocab_size", [2000, 20_000])
def test_rustbpe_with_ties_by_bytes(vocab_size):
    rustbpe = pytest.importorskip("rustbpe", reason="make parity installs rustbpe")
    texts = [text[:2000] for text in stdlib()]
    tok = Tokenizer.train_from_iterator(texts, vocab_size, pattern="cl100k", tie_order="bytes", progress=False)
    other = rustbpe.Tokenizer()
    other.train_from_iterator(texts, vocab_size, pattern=tok.pattern)
    learned = [bytes(token) for token, _ in sorted(other.get_mergeable_ranks(), key=lambda item: item[1])]
    assert [tok.id_to_bytes(index) for index in range(256, tok.vocab_size)] == learned[256:]


def test_a_base_with_special_tokens_and_superwords_in_tokenizers():
    """Holes in the ids, a pattern of longer pieces: the file gives the same ids there, and fewer of them."""
    seen, held_out = stdlib()[:-10], stdlib()[-10:]
    special = ["<|begin|>", "<|end|>"]
    base = Tokenizer.train_from_iterator(seen, 2000, pattern="cl100k", special_tokens=special, progress=False)
    further = Tokenizer.train_from_iterator(seen, 3000, base=base, progress=False)
    words = Tokenizer.train_from_iterator(seen, 3000, pattern="cl100k", progress=False)
    superwords = Tokenizer.train_from_iterator(seen, 3000, pattern="cl100k", superword_from=2000, progress=False)
    both = Tokenizer.train_from_iterator(seen, 4000, base=further, superword_from=3500, progress=False)
    texts = [*held_out, "marks: नमस्ते दुनिया कैसे हैं", "  \t\n\n  x\r\n 12345 a...b\n", "naïve 日本語のテキスト 😀!?"]
    for tok in (further, words, superwords, both):
        peer = tokenizers.Tokenizer.from_str(tok.to_huggingface())
        for text in texts:
            ids = tok.encode(text)
            assert ids == peer.encode(text).ids
            assert tok.decode(ids) == text
        marked = "a<|end|>b"
        assert tok.encode(marked, allowed_special="all") == peer.encode(marked).ids
    assert any(b"self, " in token for token in superwords.mergeable_ranks)
    counts = {name: sum(map(tok.count, held_out)) for name, tok in (("words", words), ("superwords", superwords))}
    assert counts["superwords"] < 0.97 * counts["words"], counts


@pytest.mark.parametrize("published", ["llama3", "smollm2"])
def test_published_vocabularies_can_be_extended(real, texts, published, tmp_path):
    """Some of Llama 3's tokens are made by no merge; SmolLM2's has no token for 21 of the bytes."""
    path = real(lambda: PUBLISHED["llama3"].path) if published == "llama3" else real(data.smollm2_gguf)
    base = Tokenizer.from_file(path)
    text = texts["multilingual"][:300_000]
    size = base.vocab_size + 200
    tok = Tokenizer.train_from_iterator([text], size, base=base, progress=False)
    assert tok.vocab_size == size
    assert list(tok.mergeable_ranks.items())[: len(base.mergeable_ranks)] == list(base.mergeable_ranks.items())
    new = dict(list(tok.mergeable_ranks.items())[len(base.mergeable_ranks) :])
    assert list(new.values()) == list(range(base.vocab_size, size))
    assert tok.count(text) < 0.97 * base.count(text)
    assert tok.decode(tok.encode_ordinary(text)) == text
    # Text without any new token keeps its ids.
    words = texts["prose"].split()[:5000]
    plain = " ".join(word for word in words if not any(token.strip() in word.encode() for token in new))
    assert len(plain) > 5000
    assert tok.encode_ordinary(plain) == base.encode_ordinary(plain)
    tok.save(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for sample in (text, texts["code"][:300_000]):
        assert theirs.encode(sample, add_special_tokens=False).ids == tok.encode_ordinary(sample)
