"""Every argument of every public function, with values of every wrong type: the error says which argument it is.

`test_mistakes.py` holds the messages of mistakes that people make; here is everything else that an argument may be.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bpe_llama import Sampler, Tokenizer, WordCounts, chat, tiktoken
from bpe_llama._core import Linear, attend
from bpe_llama.educational import EducationalTokenizer
from tests.wrong_values import COMMON, RAISED, Long

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
RANKS = {bytes([byte]): byte for byte in range(256)}
ROW, EYE, NONE = np.zeros(8, np.float32), np.eye(2, dtype=np.float32), np.zeros((1, 0), np.float32)


WRONG: dict[str, Any] = {
    **COMMON,
    "-2**70": -(2**70),
    "empty": "",
    "surrogate": "\ud800",
    "zero": "\0",
    "type": int,
    "nested": [[["x"]]],
    "nones": [None],
    "huge ints": [2**70],
    "surrogates": ["\ud800"],
    "long": Long([object()]),
    "mapping": {"a": 2**70},
    "nan mapping": {1: float("nan")},
    "matrix": np.zeros((2, 2)),
    "object array": np.array([None]),
    "sparse": torch.eye(2).to_sparse(),
}
# An argument that a message calls by another name, or a message that says what is wrong without a name.
NAMED = {
    "name": "called",
    "special_tokens": "special token",
    "batch": "row|tokens|ids",
    "bos_id eos_id pad_id unk_id before after": "id ",
    "logits": "histor",
    "history": "histor",
    "out": "folder of the shards",
    "paths": "UTF-8|inputs",
    "eos bos": "begins|ends",
    "data": "no word counts",
    "text": "character",
    "tokens": "ids|id |text of",
    "token text_or_bytes": "token|id |codec|b'",
    "ids": "id ",
    "errors": "null character|codec",
    "return_assistant_tokens_mask": "generation",
    "softcap": "soft cap",
    "messages": "message",
    "tools": "tool",
    "documents": "document",
    "matrices": "matrix",
    "progress": "Progress",  # `int` is a function
    "texts": "a text",
    "encoding_name": "encoding",
    "model_name": "model",
    "pat_str": "pattern",
}


def calls(folder: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Return each function with arguments that are right."""
    file = folder / "corpus.txt"
    file.write_text("low lower lowest")
    special = ["<s>", "</s>"]
    tok = Tokenizer.train_from_iterator(["low lower lowest"] * 3, 262, special_tokens=special, progress=False)
    tok.save(folder / "t.json")
    tok.save(folder / "t.tiktoken")
    tok.chat_template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}"
    counts, sampler, enc = WordCounts.from_iterator(["low"], progress=False), Sampler(), tok.as_tiktoken()
    counts.save(folder / "counts")
    twin = EducationalTokenizer.from_tokenizer(tok)
    merging = dict(min_frequency=0, max_token_length=None, tie_order="ids", base=None, progress=False)
    splitting = dict(pattern="gpt2", special_tokens=["<s>"], num_threads=1)
    reading = dict(separator=None, field="text", on_error="raise")
    files = dict(paths=file, eos=False, bos=None, num_threads=1, **reading)
    specials = dict(allowed_special=(), disallowed_special=())
    around = dict(bos=False, eos=False, **specials)
    rows = dict(padding=True, truncation=True, max_length=8, pad_to_multiple_of=4, pad_id=0, return_tensors="np")
    chats = dict(messages=TALK, tools=None, documents=None)
    penalties = dict(repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0)
    filters = dict(temperature=0.8, top_k=0, top_p=0.95, min_p=0.0, typical_p=1.0, seed=0)
    ids = dict(logit_bias=None, banned_ids=None, allowed_ids=None, preset="exact")
    tensors = dict(qkv=np.ones((1, 6), np.float32), cos=NONE, sin=NONE, cache=np.zeros((2, 1, 1, 1, 4, 2), np.float32))
    tensors |= dict(positions=np.array([[0, 0]]), out=np.zeros((1, 2), np.float32))
    return {
        "Tokenizer.train": (Tokenizer.train, dict(paths=file, vocab_size=260, **(merging | splitting), **reading)),
        "Tokenizer.train_from_iterator": (
            Tokenizer.train_from_iterator,
            dict(texts=["low"], vocab_size=260, superword_from=None, **(merging | splitting)),
        ),
        "Tokenizer.train_from_counts": (
            Tokenizer.train_from_counts,
            dict(counts=counts, vocab_size=260, special_tokens=None, **merging),
        ),
        "Tokenizer.from_file": (Tokenizer.from_file, dict(path=folder / "t.json")),
        "Tokenizer.from_huggingface": (Tokenizer.from_huggingface, dict(path=folder / "t.json")),
        "Tokenizer.from_name": (Tokenizer.from_name, dict(name="none")),
        "Tokenizer.from_pretrained": (Tokenizer.from_pretrained, dict(name=folder / "t.json", subfolder=None)),
        "Tokenizer.from_tiktoken": (
            Tokenizer.from_tiktoken,
            dict(path=folder / "t.tiktoken", pattern="gpt2", special_tokens={"<x>": 300}),
        ),
        "Tokenizer.from_ranks": (Tokenizer.from_ranks, dict(ranks=RANKS, pattern="gpt2", special_tokens=None)),
        "tok.save": (tok.save, dict(path=folder / "saved.json")),
        "tok": (
            tok,
            dict(
                texts=["low", "lower"],
                text_pairs=["a", "b"],
                add_special_tokens=True,
                padding_side=None,
                truncation_side=None,
                return_token_type_ids=None,
                return_attention_mask=None,
                return_special_tokens_mask=False,
                return_offsets_mapping=False,
                bos=False,
                eos=False,
                allowed_special=(),
                num_threads=None,
                **rows,
            ),
        ),
        "tok.encode": (tok.encode, dict(text="low", **around)),
        "tok.encode_ordinary": (tok.encode_ordinary, dict(text="low")),
        "tok.encode_following": (tok.encode_following, dict(text="low", before="x")),
        "tok.encode_bytes": (tok.encode_bytes, dict(data=b"low")),
        "tok.encode_piece": (tok.encode_piece, dict(data=b"low", merged=False)),
        "tok.encode_to_numpy": (tok.encode_to_numpy, dict(text="low", **around)),
        "tok.encode_batch": (tok.encode_batch, dict(texts=["low"], num_threads=1, **around)),
        "tok.encode_batch_to_numpy": (tok.encode_batch_to_numpy, dict(texts=["low"], num_threads=1, **around)),
        "tok.encode_with_offsets": (tok.encode_with_offsets, dict(text="low", allowed_special=(), first=0)),
        "tok.encode_with_dropout": (
            tok.encode_with_dropout,
            dict(text="low", dropout=0.1, seed=0, allowed_special=()),
        ),
        "tok.encode_files": (partial(tok.encode_files, progress=False), dict(out=folder / "ids.npy", **files)),
        "tok.encode_corpus": (  # the others are those of `encode_files`
            partial(tok.encode_corpus, file, progress=False),
            dict(out=folder / "shards", dataset=None, shard_tokens=100),
        ),
        "tok.count": (tok.count, dict(text="low", allowed_special=())),
        "tok.count_prefixes": (tok.count_prefixes, dict(text="low")),
        "tok.count_intervals": (tok.count_intervals, dict(text="low")),
        "tok.truncate": (tok.truncate, dict(text="low", max_tokens=2, side="left", allowed_special=())),
        "tok.split_by_tokens": (tok.split_by_tokens, dict(text="low", max_tokens=3, overlap=0, boundary="word")),
        "tok.tokenize": (tok.tokenize, dict(text="low", allowed_special=())),
        "tok.decode": (tok.decode, dict(ids=[1], errors="replace", skip_special_tokens=False)),
        "tok.decode_bytes": (tok.decode_bytes, dict(ids=[1])),
        "tok.decode_batch": (tok.decode_batch, dict(batch=[[1]], errors="replace", skip_special_tokens=False)),
        "tok.decode_stream": (tok.decode_stream, dict(skip_special_tokens=False)),
        "tok.id_to_token": (tok.id_to_token, dict(id=1)),
        "tok.id_to_bytes": (tok.id_to_bytes, dict(id=1)),
        "tok.token_to_id": (tok.token_to_id, dict(token="l")),
        "tok.with_tokens": (tok.with_tokens, dict(tokens=["<x>"])),
        "tok.with_special_tokens": (tok.with_special_tokens, dict(tokens=["<x>"])),
        "tok.with_ends": (tok.with_ends, dict(bos_id=1, eos_id=1, pad_id=1, unk_id=1)),
        "tok.with_template": (tok.with_template, dict(before=1, after=1)),
        "tok.template": (tok.template, dict(pair=False)),
        "tok.apply_chat_template": (
            tok.apply_chat_template,
            dict(
                add_generation_prompt=None,
                tokenize=True,
                chat_template=None,
                continue_final_message=False,
                return_assistant_tokens_mask=False,
                return_dict=False,
                **chats,
            ),
        ),
        "chat.render": (chat.render, dict(template="x", continue_final_message=False, **chats)),
        "chat.encode_conversation": (
            chat.encode_conversation,
            dict(tokenizer=tok, train_on="assistant", chat_template=None, **chats),
        ),
        "chat.with_chat_template": (
            chat.with_chat_template,
            dict(tokenizer=tok, template="chatml", add_tokens=True),
        ),
        "WordCounts.from_files": (WordCounts.from_files, dict(paths=file, **splitting, **reading)),
        "WordCounts.from_iterator": (WordCounts.from_iterator, dict(texts=["low"], **splitting)),
        "WordCounts.from_bytes": (WordCounts.from_bytes, dict(data=counts.to_bytes())),
        "WordCounts.load": (WordCounts.load, dict(path=folder / "counts")),
        "counts.save": (counts.save, dict(path=folder / "more")),
        "counts.merge": (counts.merge, dict(other=counts)),
        "counts.most_common": (counts.most_common, dict(n=1)),
        "counts.pruned": (counts.pruned, dict(min_count=1)),
        "counts.split": (counts.split, dict(parts=2)),
        "Sampler": (Sampler, filters | penalties | ids),
        "sampler.sample": (sampler.sample, dict(logits=ROW, history=[1], step=1, seeds=[1], num_threads=1)),
        "sampler.sample of rows": (sampler.sample, dict(logits=ROW[None], history=[[1]], step=1, seeds=[1])),
        "sampler.sample_with_logprobs": (
            sampler.sample_with_logprobs,
            dict(logits=ROW, history=[1], top_n=1, num_threads=1),
        ),
        "sampler.probs": (sampler.probs, dict(logits=ROW, history=[1], num_threads=1)),
        "sampler.seek": (sampler.seek, dict(step=1)),
        "Linear": (Linear, dict(matrices=[EYE], norm=None, eps=1e-5, gate=None)),
        "Linear.multiply": (Linear([EYE]).multiply, dict(x=EYE, out=EYE.copy(), add=False, num_threads=1)),
        "attend": (attend, dict(layer=0, window=0, num_threads=1, softcap=0.0, interleaved=False, **tensors)),
        "enc.encode": (enc.encode, dict(text="low", allowed_special=set(), disallowed_special=())),
        "enc.encode_batch": (enc.encode_batch, dict(text=["low"], num_threads=1, disallowed_special=())),
        "enc.encode_ordinary_batch": (enc.encode_ordinary_batch, dict(text=["low"], num_threads=1)),
        "enc.encode_single_token": (enc.encode_single_token, dict(text_or_bytes="l")),
        "enc.decode": (enc.decode, dict(tokens=[1], errors="replace")),
        "enc.decode_bytes": (enc.decode_bytes, dict(tokens=[1])),
        "enc.decode_batch": (enc.decode_batch, dict(batch=[[1]], num_threads=1)),
        "enc.decode_tokens_bytes": (enc.decode_tokens_bytes, dict(tokens=[1])),
        "enc.decode_single_token_bytes": (enc.decode_single_token_bytes, dict(token=1)),
        "enc.decode_with_offsets": (enc.decode_with_offsets, dict(tokens=[1])),
        "enc": (
            partial(tiktoken.Encoding, "name", mergeable_ranks=RANKS, special_tokens={}),
            dict(pat_str="gpt2"),
        ),
        "tiktoken.get_encoding": (tiktoken.get_encoding, dict(encoding_name="none")),
        "tiktoken.encoding_name_for_model": (tiktoken.encoding_name_for_model, dict(model_name="gpt-4o")),
        "EducationalTokenizer.train": (
            EducationalTokenizer.train,
            dict(texts=["low"], vocab_size=258, pattern="gpt2", special_tokens=["<s>"], show=None),
        ),
        "EducationalTokenizer.from_tokenizer": (EducationalTokenizer.from_tokenizer, dict(tokenizer=tok)),
        "twin.encode": (twin.encode, dict(text="low", allowed_special=(), show=None)),
        "twin.encode_bytes": (twin.encode_bytes, dict(data=b"low", show=None)),
        "twin.decode_bytes": (twin.decode_bytes, dict(ids=[1])),
        "twin.split": (twin.split, dict(text="low")),
    }


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    return calls(tmp_path_factory.mktemp("arguments"))


def complaint(error: BaseException, argument: str, *, of_tiktoken: bool) -> str | None:
    """Return what is wrong with an error, or None: its type is none of `RAISED`, or it does not name the argument."""
    if not isinstance(error, RAISED) and not (of_tiktoken and isinstance(error, OverflowError)):  # as tiktoken's own
        return f"raised {error!r:.200}"
    if len(str(error)) > 5000 and not (isinstance(error, OSError) or of_tiktoken):
        return f"repeated the value in {len(str(error)):,} characters"
    if isinstance(error, OSError):  # it names the file
        return None
    other = next((words for names, words in NAMED.items() if argument in names.split()), argument)
    return None if re.search(f"{argument}|{other}", str(error)) else f"did not name it: {error!r:.200}"


def test_every_public_method_is_in_the_table(right: dict[str, tuple[Callable[..., Any], dict[str, Any]]]) -> None:
    others = {"encode_dataset", "as_tiktoken", "as_transformers", "from_gguf", "ids_around_documents"}
    for kind, name in ((Tokenizer, "tok"), (WordCounts, "counts"), (Sampler, "sampler")):
        for method in vars(kind).keys() | set().union(*(vars(base) for base in kind.__mro__[1:-1])):
            function = getattr(kind, method)
            if method.startswith(("_", "build_from_", "to_", "save_", "check_")) or not callable(function):
                continue
            parameters = set(inspect.signature(function).parameters) - {"self"}
            if parameters and method not in others | {"extended", "with_added_tokens"}:
                assert {f"{name}.{method}", f"{kind.__name__}.{method}"} & right.keys(), method


@pytest.mark.filterwarnings("ignore")
def test_a_value_of_any_wrong_type_is_answered_by_name(
    right: dict[str, tuple[Callable[..., Any], dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    complaints = []
    for name, (function, arguments) in right.items():
        for argument in arguments:
            for kind, value in WRONG.items():
                try:
                    function(**(arguments | {argument: value}))
                except BaseException as error:  # a panic of Rust's is no Exception
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    if why := complaint(error, argument, of_tiktoken=name.startswith("enc")):
                        complaints.append(f"{name}({argument}={kind}) {why}")
    assert not complaints, "\n".join(complaints)
