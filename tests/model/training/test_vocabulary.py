"""The tokens that a grown tokenizer adds, as tokens of the one before."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece

from bpe_llama import Tokenizer
from bpe_llama.model.training import token_pieces
from tests.model.training.helpers import fresh_for_text
from tests.parity.tokenizer.sentencepiece_models import train

TEXT = "what is up, and why is it so, naïve 日本 ab"


@pytest.fixture(scope="module")
def grown(tokenizer: Tokenizer) -> Tokenizer:
    return Tokenizer.train_from_iterator([TEXT * 9], 280, base=tokenizer, special_tokens=["<|tool|>"], progress=False)


def test_merged_and_added_tokens_are_made_of_their_text(tokenizer: Tokenizer, grown: Tokenizer) -> None:
    pieces = token_pieces(tokenizer, grown)
    assert list(pieces) == list(range(270, 280))
    for token_id, made_of in pieces.items():
        assert tokenizer.decode_bytes(made_of) == grown.id_to_bytes(token_id)
        assert len(made_of) > 1 and max(made_of) < 270
    assert any(not grown.id_to_bytes(token_id).isascii() for token_id in pieces)  # parts of characters, too
    added = tokenizer.with_tokens(["what is"]).with_special_tokens(["<|user|>", "<|you|>"])  # the first has an id
    assert token_pieces(tokenizer, added) == {
        270: tokenizer.encode("what is"),
        271: [tokenizer.token_to_id(letter) for letter in "<|you|>"],
    }
    assert token_pieces(tokenizer, tokenizer) == {}


def test_ids_that_a_model_has_no_row_for_count_as_new(tokenizer: Tokenizer, grown: Tokenizer) -> None:
    special = {265: "<|system|>", 269: "<|endoftext|>"}
    assert all(tokenizer.special_tokens[text] == token_id for token_id, text in special.items())
    pieces = token_pieces(tokenizer, grown, num_embeddings=266)
    assert list(pieces) == list(range(266, 280)) and max(max(made_of) for made_of in pieces.values()) < 266
    model = fresh_for_text(vocab_size=266)
    assert model.resize_token_embeddings(grown.vocab_size, pieces=pieces).num_embeddings == 280
    assert token_pieces(tokenizer, grown, num_embeddings=512).keys() == set(range(270, 280))  # a padded embedding


def test_a_tokenizer_that_does_not_extend_the_other_is_refused(tokenizer: Tokenizer, grown: Tokenizer) -> None:
    foreign = Tokenizer.train_from_iterator(["wholly other words here"] * 3, vocab_size=270, progress=False)
    with pytest.raises(ValueError, match=r"id 25\d is '.*' in the old tokenizer and '.*' in the new one; expected one"):
        token_pieces(tokenizer, foreign)
    with pytest.raises(ValueError, match=r"id 270 is '.*' in the old tokenizer and no token in the new one"):
        token_pieces(grown, tokenizer)


def test_sentencepiece_puts_no_space_before_a_piece(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train(byte_fallback=True).SerializeToString())
    old = Tokenizer.from_file(tmp_path / "tokenizer.model")
    new = old.with_tokens(["quickest", " quickest", "ﷺ"])
    processor = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    last = old.vocab_size
    pieces = {
        token_id: [processor.id_to_piece(piece) for piece in made_of]
        for token_id, made_of in token_pieces(old, new).items()
    }
    assert "".join(pieces[last]) == "quickest" and "".join(pieces[last + 1]) == "▁quickest"
    assert len(pieces) == 3
