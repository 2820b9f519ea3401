"""What a user is told who makes a mistake: the argument, its value and what was expected.

Each row is what the user writes, the exception, and its message or a part of it.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpe_llama import Sampler, Tokenizer, WordCounts, chat

TALK = [{"role": "user", "content": "hi"}]

TRAINING = [
    ("Tokenizer.train(file, vocab_size=8e3)", TypeError, "vocab_size must be an int, got 8000.0"),
    ("Tokenizer.train(file, vocab_size='8000')", TypeError, "vocab_size must be an int, got '8000'"),
    ("Tokenizer.train(300, 'corpus.txt')", TypeError, "vocab_size must be an int, got 'corpus.txt'"),
    ("Tokenizer.train(file, vocab_size=True)", TypeError, "vocab_size must be an int, got True"),
    ("Tokenizer.train(file, vocab_size=100)", ValueError, "vocab_size is 100; it must be at least 256"),
    ("Tokenizer.train(file, vocab_size=2**70)", ValueError, "vocab_size must be less than 2**64, got 118059"),
    ("Tokenizer.train(file)", TypeError, "missing 1 required positional argument: 'vocab_size'"),
    ("Tokenizer.train(5, 300)", TypeError, "paths must be a path, a pattern, or a list of them, got 5"),
    ("Tokenizer.train([file, 5], 300)", TypeError, "paths[1] must be a str or another path, got 5"),
    ("Tokenizer.train([], 300)", ValueError, "no paths were given; expected a file, a folder, a pattern, or a list"),
    ("Tokenizer.train(file, 300, special_token=['<s>'])", TypeError, "'special_token'; did you mean 'special_tokens'?"),
    ("Tokenizer.train(file, 300, special_tokens='<s>')", TypeError, "special_tokens must be a list of str, which get"),
    (
        "Tokenizer.train(file, 300, special_tokens={'<s>': 0})",
        TypeError,
        "must be a list of str, which get the last ids",
    ),
    ("Tokenizer.train(file, 300, special_tokens={'<s>'})", TypeError, "must be a list of str, which get the last ids"),
    (
        "Tokenizer.train(file, 300, special_tokens=itertools.repeat('<s>'))",
        ValueError,
        "special_tokens is an iterator of more than 1,048,576 items; expected one that ends",
    ),
    ("Tokenizer.train(file, 300, special_tokens=[b'<s>'])", TypeError, "special_tokens[0] must be a str, got b'<s>'"),
    (
        "Tokenizer.train(file, 300, special_tokens=['a', 'a'])",
        ValueError,
        "special_tokens: 'a' is given twice; expected",
    ),
    ("Tokenizer.train(file, 300, pattern=5)", TypeError, "pattern must be a str, got 5"),
    ("Tokenizer.train(file, 300, pattern='gpt5')", ValueError, 'no pattern is called "gpt5": expected a regex or one'),
    ("Tokenizer.train(file, 300, min_frequency=2.5)", TypeError, "min_frequency must be an int, got 2.5"),
    ("Tokenizer.train(file, 300, min_frequency=-1)", ValueError, "min_frequency is -1; expected at least 0"),
    ("Tokenizer.train(file, 300, max_token_length='8')", TypeError, "max_token_length must be an int, got '8'"),
    ("Tokenizer.train(file, 300, tie_order='count')", ValueError, "tie_order is 'count'; expected 'ids' or 'bytes'"),
    ("Tokenizer.train(file, 300, num_threads='4')", TypeError, "num_threads must be an int, or None, got '4'"),
    ("Tokenizer.train(file, 300, num_threads=0)", ValueError, "num_threads must be at least 1, or None, got 0"),
    ("Tokenizer.train(file, 300, separator=b'|')", TypeError, "separator must be a str, got b'|'"),
    ("Tokenizer.train(file, 300, field=5)", TypeError, "field must be a str, got 5"),
    ("Tokenizer.train(file, 300, on_error='ignore')", ValueError, "on_error is 'ignore'; expected 'raise' or 'skip'"),
    (
        "Tokenizer.train(file, 300, progress='no')",
        TypeError,
        "progress must be True, False, None or a function, got 'no'",
    ),
    ("Tokenizer.train(file, 300, base='base.json')", TypeError, "base must be a Tokenizer, or None, got 'base.json'"),
    ("Tokenizer.train(file, 300, superword_from='280')", TypeError, "superword_from must be an int, got '280'"),
    (
        "Tokenizer.train_from_iterator('low', 300)",
        TypeError,
        "texts must be an iterable of str, such as a list of one, got",
    ),
    ("Tokenizer.train_from_iterator(['low', 5], 300)", TypeError, "texts[1] must be a str, got 5"),
    ("Tokenizer.train_from_iterator(5, 300)", TypeError, "texts must be an iterable of str, got 5"),
    (
        "Tokenizer.train_from_iterator({'text': ['low']}, 300)",
        TypeError,
        "an iterable of str, such as one column, got {",
    ),
    ("Tokenizer.train_from_iterator(300, ['low'])", TypeError, "vocab_size must be an int, got ['low']"),
    ("Tokenizer.train_from_counts({'low': 3}, 300)", TypeError, "counts must be WordCounts, got {'low': 3}"),
]
LOADING = [
    ("Tokenizer()", TypeError, "core is missing; expected a tokenizer, which Tokenizer.from_file, from_pretrained"),
    (
        "Tokenizer('tokenizer.json')",
        TypeError,
        "which Tokenizer.from_file, from_pretrained, from_name and train return, got",
    ),
    ("Tokenizer.from_file(5)", TypeError, "path must be a str or another path, got 5"),
    ("Tokenizer.from_file(b'tokenizer.json')", TypeError, "path must be a str or another path, got b'tokenizer.json'"),
    ("Tokenizer.from_name('gpt-99')", ValueError, "no vocabulary or model is called 'gpt-99'; did you mean"),
    ("Tokenizer.from_name(None)", TypeError, "name must be a str, got None"),
    ("Tokenizer.from_pretrained(5)", TypeError, "name must be a str or another path, got 5"),
    ("Tokenizer.from_pretrained('gpt2', cachedir='x')", TypeError, "'cachedir'; did you mean 'cache_dir'?"),
    ("Tokenizer.from_tiktoken(file, pattern=5)", TypeError, "pattern must be a str, got 5"),
    (
        "Tokenizer.from_tiktoken(file, 'cl100k', ['<s>'])",
        TypeError,
        "special_tokens must be a mapping of str to id, got",
    ),
    (
        "Tokenizer.from_tiktoken(file, 'cl100k', {'<s>': '9'})",
        TypeError,
        "the id of special token '<s>' must be an int",
    ),
    ("Tokenizer.from_ranks([b'a'])", TypeError, "ranks must be a mapping of bytes to id, got [b'a']"),
    ("Tokenizer.from_ranks({'a': 0})", TypeError, "ranks holds the token 'a'; expected bytes"),
    ("Tokenizer.from_ranks({b'a': '0'})", ValueError, "ranks gives b'a' the rank '0'; expected an id, an int"),
    ("tok.save(None)", TypeError, "path must be a str or another path, got None"),
    ("tok.save('')", FileNotFoundError, "path is '': no such file or folder"),
    ("Tokenizer.from_file('')", FileNotFoundError, "path is '': no such file or folder"),
    ("tok.save('x.bin')", ValueError, "cannot tell the format from 'x.bin': expected a folder, or a name ending in"),
]
ENCODING = [
    ("tok.encode(5)", TypeError, "text must be a str, got 5"),
    ("tok.encode(b'low')", TypeError, "text must be a str, got b'low'"),
    ("tok.encode(['low'])", TypeError, "text must be a str, got ['low']"),
    ("tok.encode(None)", TypeError, "text must be a str, got None"),
    ("tok.encode('low', allowed_special={'y' * 10_000})", ValueError, "y ... y"),
    ("tok.encode('low', add_special_tokens=True)", TypeError, "unexpected keyword argument 'add_special_tokens'"),
    ("tok.encode('low', bos='yes')", TypeError, "bos must be True or False, got 'yes'"),
    ("tok.encode('low', eos=1)", TypeError, "eos must be True or False, got 1"),
    (
        "tok.encode('low', allowed_special='<s>')",
        ValueError,
        'allowed_special must be "all" or a collection of special',
    ),
    ("tok.encode('low', allowed_special=[1])", TypeError, 'allowed_special must be "all" or a collection of special'),
    (
        "tok.encode('low', allowed_special=['<x>'])",
        ValueError,
        'allowed_special names "<x>", which is no special token',
    ),
    ("tok.encode('low', disallowed_special=None)", TypeError, 'disallowed_special must be "all" or a collection'),
    ("tok.encode_ordinary(5)", TypeError, "text must be a str, got 5"),
    ("tok.encode_bytes('low')", TypeError, "data must be bytes, got 'low'"),
    ("tok.encode_batch('low')", TypeError, "texts must be an iterable of str, such as a list of one, got 'low'"),
    ("tok.encode_batch(['low', None])", TypeError, "texts[1] must be a str, got None"),
    ("tok.encode_batch(None)", TypeError, "texts must be an iterable of str, got None"),
    (
        "tok.encode_batch({'text': ['low']})",
        TypeError,
        "texts must be an iterable of str, such as one column, got {'text': ['low']}",
    ),
    ("tok.encode_batch(['low'], 1.5)", TypeError, "num_threads must be an int, or None, got 1.5"),
    ("tok.encode_batch_to_numpy(['low'], num_threads=0)", ValueError, "num_threads must be at least 1, or None, got 0"),
    ("tok.encode_with_offsets('low', first=-1)", ValueError, "first must be at least 0, got -1"),
    ("tok.encode_with_dropout('low', '0.1')", TypeError, "dropout must be a number, got '0.1'"),
    ("tok.encode_with_dropout('low', 2)", ValueError, "dropout is 2; expected 0 to 1"),
    ("tok.encode_with_dropout('low', 0.1, seed=-1)", ValueError, "seed must be at least 0, got -1"),
    ("tok.count(['low'])", TypeError, "text must be a str, got ['low']"),
    ("tok.truncate(5, 'low')", TypeError, "text must be a str, got 5"),
    ("tok.truncate('low', '3')", TypeError, "max_tokens must be an int, got '3'"),
    ("tok.truncate('low', -1)", ValueError, "max_tokens must be at least 0, got -1"),
    ("tok.truncate('low', 3, side='middle')", ValueError, "side is 'middle'; expected 'left' or 'right'"),
    (
        "tok.split_by_tokens('low', 5, overlap=5)",
        ValueError,
        "overlap is 5; it must be at least 0 and less than max_tokens",
    ),
    ("tok.split_by_tokens(5, 5)", TypeError, "text must be a str, got 5"),
    ("tok(5)", TypeError, "texts must be a str or a sequence of str, got 5"),
    ("tok({'text': 'low'})", TypeError, "texts must be a str or a sequence of str, got {'text': 'low'}"),
    ("tok({'low'})", TypeError, "texts must be a str or a sequence of str, got {'low'}"),
    ("tok('low', padding='longer')", ValueError, "padding must be one of True, False, 'longest', 'max_length'"),
    ("tok('low', max_length='5')", TypeError, "max_length must be an int, got '5'"),
    ("tok('low', return_tensors='tf')", ValueError, "return_tensors must be one of None, 'np', 'pt', got 'tf'"),
    ("tok('low', pad_id='<s>')", TypeError, "pad_id must be an int, got '<s>'"),
    ("tok('low', bos='yes')", TypeError, "bos must be True or False, got 'yes'"),
    ("tok('low', ['er'])", TypeError, "texts is 'low' and text_pairs ['er']; expected two str or two sequences"),
    ("tok.with_special_tokens('<x>')", TypeError, "tokens must be a list of str, got '<x>'"),
    ("tok.with_special_tokens({'<x>'})", TypeError, "tokens must be a list of str, got {'<x>'}"),
    ("tok.with_tokens(frozenset(['x']))", TypeError, "tokens must be a list of str, got frozenset({'x'})"),
    ("tok.with_tokens([5])", TypeError, "tokens[0] must be a str, got 5"),
    ("tok.encode_files(5, 'ids.npy')", TypeError, "paths must be a path, a pattern, or a list of them, got 5"),
    ("tok.encode_files(file, 5)", TypeError, "out must be a str or another path, got 5"),
    ("tok.encode_files(file, 'ids.txt')", ValueError, "out must end in .npy, got 'ids.txt'"),
    ("tok.encode_files(file, 'ids.npy', eos='</s>')", TypeError, "eos must be True or False, got '</s>'"),
    ("tok.encode_corpus(file, folder, shard_tokens='9')", TypeError, "shard_tokens must be an int, got '9'"),
]
DECODING = [
    ("tok.decode('low')", TypeError, "ids must be an iterable of ints, got 'low'"),
    ("tok.decode(5)", TypeError, "ids must be an iterable of ints, got 5"),
    ("tok.decode([1.5])", TypeError, "ids holds 1.5; expected an iterable of ints"),
    ("tok.decode([[1, 2]])", TypeError, "ids holds [1, 2]; expected an iterable of ints"),
    ("tok.decode(np.array([1.5]))", TypeError, "ids holds 1.5; expected an iterable of ints"),
    ("tok.decode([1], errors='x')", ValueError, "errors must be the name of an error handler, such as 'replace' or"),
    ("tok.decode([1], True)", TypeError, "errors must be a str, got True"),
    ("tok.decode([1], skip_special_tokens='yes')", TypeError, "skip_special_tokens must be True or False, got 'yes'"),
    ("tok.decode_batch([1, 2])", TypeError, "row 0: ids must be an iterable of ints, got 1"),
    ("tok.decode_batch(5)", TypeError, "batch must be an iterable of rows of ids, got 5"),
    ("tok.decode_stream().push('a')", TypeError, "id must be an int, got 'a'"),
    ("tok.id_to_token(None)", TypeError, "id must be an int, got None"),
    ("tok.token_to_id(5)", TypeError, "token must be bytes or a str, got 5"),
    ("setattr(tok, 'cache_bytes', 1)", ValueError, "cache_bytes must be at least 1048576, got 1"),
    ("setattr(tok, 'cache_bytes', 2.5e6)", TypeError, "cache_bytes must be an int, got 2500000.0"),
]
SAMPLER = [
    ("Sampler(temperature='hot')", TypeError, "temperature must be a number, got 'hot'"),
    ("Sampler(temperature=-1)", ValueError, "temperature must be finite and at least 0, got -1"),
    ("Sampler(top_k=1.5)", TypeError, "top_k must be an int, got 1.5"),
    ("Sampler(top_p=2)", ValueError, "top_p must be in (0, 1], got 2"),
    ("Sampler(min_p=None)", TypeError, "min_p must be a number, got None"),
    ("Sampler(seed=-1)", ValueError, "seed must be in [0, 2**64), got -1"),
    ("Sampler(repetition_penalty='x')", TypeError, "repetition_penalty must be a number, got 'x'"),
    ("Sampler(logit_bias=[1])", TypeError, "logit_bias is [1]; expected a dict of id to number"),
    ("Sampler(banned_ids=['a'])", TypeError, "banned_ids holds 'a'; expected ints in [0, 2**32)"),
    ("Sampler(preset='hf')", ValueError, "preset must be 'exact', 'meta', 'transformers' or 'llama_cpp', got 'hf'"),
    ("Sampler(preset=5)", TypeError, "preset must be a str, got 5"),
    ("Sampler(temp=1)", TypeError, "unexpected keyword argument 'temp'"),
    ("Sampler().sample([0.1])", TypeError, "logits are a list; expected a NumPy array or a CPU tensor"),
    ("Sampler().sample(np.zeros(3, np.int64))", TypeError, "logits have dtype dtype('int64'); expected float32"),
    ("Sampler().sample(np.zeros((1, 2, 3), np.float32))", ValueError, "shape [1, 2, 3]; expected (V,) or (B, V)"),
    ("Sampler().sample(row, history=5)", TypeError, "history is 5; expected a sequence of ints"),
    ("Sampler().sample(row, seeds=[1, 2])", ValueError, "seeds holds 2 ints for 1 rows of logits; expected"),
    ("Sampler().sample(row, seeds=[True])", TypeError, "seeds holds True; expected ints in [0, 2**64)"),
    ("Sampler().sample(row, history=[True])", TypeError, "history holds True; expected ints of at most 64 bits"),
    (
        "Sampler().sample(row, seeds=itertools.count())",
        ValueError,
        "seeds holds more than 1 ints for 1 rows of logits; expected one per row",
    ),
    (
        "Sampler().sample(row[None], itertools.repeat([1]))",
        ValueError,
        "history holds more than 1 rows of ints for 1 rows of logits; expected",
    ),
    ("Sampler().sample(row, num_threads=0)", ValueError, "num_threads must be at least 1, or None, got 0"),
    ("Sampler().seek('x')", TypeError, "step must be an int, got 'x'"),
]
COUNTS = [
    (
        "WordCounts(5)",
        TypeError,
        "counts must be compiled counts; WordCounts.from_files, from_iterator and load return",
    ),
    ("WordCounts.from_files(5)", TypeError, "paths must be a path, a pattern, or a list of them, got 5"),
    ("WordCounts.from_files(file, separator=5)", TypeError, "separator must be a str, got 5"),
    (
        "WordCounts.from_iterator('low')",
        TypeError,
        "texts must be an iterable of str, such as a list of one, got 'low'",
    ),
    ("WordCounts.from_iterator(['low'], pattern=5)", TypeError, "pattern must be a str, got 5"),
    ("WordCounts.from_iterator(['low'], num_threads=1.5)", TypeError, "num_threads must be an int, or None, got 1.5"),
    ("WordCounts.load(5)", TypeError, "path must be a str or another path, got 5"),
    ("WordCounts.from_bytes('x')", TypeError, "data must be bytes, got 'x'"),
    ("counts.merge(5)", TypeError, "other must be WordCounts, got 5"),
    ("counts.split('2')", TypeError, "parts must be an int, got '2'"),
    ("counts.pruned(0)", ValueError, "min_count is 0; expected at least 1"),
    ("counts.most_common(-1)", ValueError, "n must be at least 0, got -1"),
    ("counts.most_common('2')", TypeError, "n must be an int, got '2'"),
]
CHAT = [
    ("tok.apply_chat_template('hi')", ValueError, "messages must be a list of mappings with a 'role', got 'hi'"),
    ("tok.apply_chat_template(TALK[0])", ValueError, "messages must be a list of mappings with a 'role', got {"),
    ("tok.apply_chat_template(None)", TypeError, "messages must be a list of mappings with a 'role', got None"),
    ("tok.apply_chat_template([])", ValueError, "messages is empty: there are no messages; expected at least one"),
    ("tok.apply_chat_template([{'content': 'hi'}])", ValueError, "message 0 is {'content': 'hi'}; expected a mapping"),
    (
        "tok.apply_chat_template([{'role': 'user', 'content': 'a\\ud800'}])",
        ValueError,
        "holds '\\ud800' at character 1",
    ),
    ("tok.apply_chat_template(TALK, tokenize='no')", TypeError, "tokenize must be True or False, got 'no'"),
    ("tok.apply_chat_template(TALK, add_generation_prompt='yes')", TypeError, "must be True, False or None, got 'yes'"),
    ("tok.apply_chat_template(TALK, add_prompt=True)", ValueError, "'add_prompt' is no option of apply_chat_template"),
    ("tok.apply_chat_template(TALK, tools=5)", ValueError, "tools is 5; expected a list of JSON schemas or functions"),
    ("tok.apply_chat_template(TALK, documents=5)", ValueError, "documents is 5; expected a list of mappings"),
    ("tok.apply_chat_template(TALK, chat_template=5)", ValueError, "chat_template is 5; expected a template's text or"),
    (
        "chat.encode_conversation(tok, TALK, train_on='user')",
        ValueError,
        "train_on is 'user'; expected assistant, last",
    ),
    *(
        (f"{call}=itertools.repeat(TALK[0]))", ValueError, "is an iterator of more than 1,048,576 items; expected")
        for call in ("chat.encode_conversation(tok, messages", "chat.render('x', TALK, tools")
    ),
    ("chat.encode_conversation('tok', TALK)", TypeError, "tokenizer must be a Tokenizer, got 'tok'"),
]
MISTAKES = [*TRAINING, *LOADING, *ENCODING, *DECODING, *SAMPLER, *COUNTS, *CHAT]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the mistakes are made with."""
    folder: Path = tmp_path_factory.mktemp("mistakes")
    (folder / "corpus.txt").write_text("low lower lowest")
    tok = Tokenizer.train_from_iterator(
        ["low lower lowest"] * 3, vocab_size=262, special_tokens=["<s>", "</s>"], progress=False
    )
    tok.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
    return {
        "tok": tok,
        "counts": WordCounts.from_iterator(["low lower"], progress=False),
        "row": np.zeros(8, np.float32),
        "itertools": itertools,
        "file": str(folder / "corpus.txt"),
        "folder": folder / "shards",
        **{"np": np, "Tokenizer": Tokenizer, "Sampler": Sampler, "WordCounts": WordCounts, "chat": chat, "TALK": TALK},
    }


@pytest.mark.parametrize(("mistake", "error", "message"), MISTAKES, ids=[mistake for mistake, *_ in MISTAKES])
def test_a_mistake_is_said(names: dict[str, Any], mistake: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        eval(mistake, dict(names))
    assert type(caught.value) is error


@pytest.mark.parametrize(
    "call",
    [
        "Tokenizer.train_from_iterator(table, 258)",
        "WordCounts.from_iterator(table)",
        "tok.encode_batch(table)",
        "tok.encode_batch_to_numpy(table)",
        "tok(table)",
        "tok.with_tokens(table)",
    ],
)
def test_a_table_is_no_list_of_texts(names: dict[str, Any], call: str) -> None:
    pandas = pytest.importorskip("pandas", reason="needs a table of pandas, which datasets installs")
    with pytest.raises(TypeError, match=r"must be an? .* of str.* got"):
        eval(call, names | {"table": pandas.DataFrame({"text": ["low"], "label": [1]})})
    assert eval(call, names | {"table": pandas.DataFrame({"text": ["low"]})["text"]})


def test_what_is_shown_of_a_value_is_short_and_cheap(names: dict[str, Any]) -> None:
    for value in (["low"] * 10**6, b"\0" * 10**7, np.zeros(10**6), {n: "x" * 1000 for n in range(1000)}, 10**4000):
        with pytest.raises(TypeError, match="text must be a str, got ") as caught:
            names["tok"].encode(value)
        assert len(str(caught.value)) < 600


def test_a_value_that_cannot_be_shown_hides_no_error(names: dict[str, Any]) -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(TypeError, match="text must be a str, got <Broken instance at"):
        names["tok"].encode(Broken())
