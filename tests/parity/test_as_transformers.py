"""``tok.as_transformers()`` gives what transformers' own fast tokenizer gives, and its tools take it."""

from __future__ import annotations

import copy
import json
import pickle
import sys
import warnings
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bench import data
from bpe_llama import Tokenizer

transformers = pytest.importorskip("transformers", reason="as_transformers needs transformers")

from tests.parity.families.published import FAMILIES, WORDS, build  # noqa: E402

CHOSEN = ["bart, prefix space", "gpt2", "llama 2", "llama 3", "mistral, metaspace", "qwen 2, qwen 3", "roberta"]
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
Pair = tuple[Any, Any]


class Families(dict[str, Pair]):
    """Our tokenizer and theirs of each family, with a pad token."""

    def __repr__(self) -> str:
        return "families"


def as_ours(folder: Path) -> Any:
    return Tokenizer.from_file(folder).as_transformers()


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Families:
    both = Families()
    for name in CHOSEN:
        folder = build(FAMILIES[name], tmp_path_factory.mktemp("family"))
        both[name] = as_ours(folder), transformers.AutoTokenizer.from_pretrained(folder)
        for side in both[name]:
            side.pad_token = side.pad_token or side.eos_token
    return both


@pytest.fixture
def gpt2(tmp_path: Path) -> Pair:
    folder = tmp_path / "saved"
    Tokenizer.from_file(build(FAMILIES["gpt2"], tmp_path)).save(folder)
    both = as_ours(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for side in both:
        side.pad_token = side.eos_token
    return both


def outcome(call: Any) -> Any:
    """Return what a call gives or raises."""
    try:
        return call()
    except Exception as error:
        return type(error), str(error)


def lists(value: Any) -> Any:
    """Return lists of all arrays, and of arrays of arrays, which rows of several lengths become."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(map(lists, value)) if isinstance(value, list) else value


def plain(batch: Any) -> Any:
    """Return all that a batch tells, its lazily made encodings too, as values that compare."""
    if not isinstance(batch, transformers.BatchEncoding):
        return batch
    values = [(key, lists(value)) for key, value in batch.items()]
    told = [
        (batch.tokens(row), batch.word_ids(row), batch.sequence_ids(row), encoding.offsets, encoding.attention_mask)
        for row, encoding in enumerate(batch.encodings)
    ]
    return values, told, batch.n_sequences, batch.is_fast


TEXT = st.lists(st.sampled_from([*WORDS, " ", "  "]), max_size=9).map("".join) | st.text(max_size=9)


@st.composite
def calls(draw: st.DrawFn) -> tuple[list[Any], dict[str, Any], str]:
    """Return positional arguments and options of a call, and the truncation side."""
    count, pretokenized = draw(st.integers(0, 3)), draw(st.sampled_from([False] * 5 + [True]))
    text = st.lists(TEXT, min_size=1, max_size=3) if pretokenized else TEXT
    column = st.lists(text, min_size=count, max_size=count) if count else text
    texts = [draw(column), *([draw(column)] if draw(st.booleans()) else [])]
    options: dict[str, Any] = {"is_split_into_words": True} if pretokenized else {}
    for name, values in {
        "padding": [True, "longest", "max_length"],
        "truncation": [False, True, "only_first", "only_second", "longest_first", "do_not_truncate"],
        "max_length": [1, 2, 3, 4, 5, 8, 16],
        "pad_to_multiple_of": [1, 4],
        "padding_side": ["left", "right"],
        "add_special_tokens": [True, False],
        "return_token_type_ids": [True, False],
        "return_attention_mask": [True, False],
        "return_special_tokens_mask": [True],
        "return_offsets_mapping": [True],
        "return_length": [True],
        "return_tensors": ["np"],
        "split_special_tokens": [True],
    }.items():
        if draw(st.booleans()):
            options[name] = draw(st.sampled_from(values))
    if options.get("max_length", 0) >= 8 and draw(st.booleans()):
        options |= {"return_overflowing_tokens": True, "stride": draw(st.integers(0, 1))}
    return texts, options, draw(st.sampled_from(["left", "right"]))


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.filterwarnings("ignore:`max_length` is ignored")
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(call=calls(), skip=st.booleans())
@example(call=(["", "  the"], {"max_length": 3, "return_offsets_mapping": True}, "left"), skip=False)
@example(
    call=(["the the the  the"], {"max_length": 3, "return_offsets_mapping": True, "truncation": True}, "left"),
    skip=False,
)
def test_any_call(families: Families, name: str, call: tuple[list[Any], dict[str, Any], str], skip: bool) -> None:
    arguments, options, side = call
    found = []
    for tokenizer in families[name]:
        tokenizer.truncation_side = side
        batch = outcome(lambda tokenizer=tokenizer: tokenizer(*arguments, **options))
        found.append(plain(batch))
        if isinstance(batch, transformers.BatchEncoding):
            ids = batch["input_ids"]
            decoded = outcome(partial(tokenizer.decode, ids, skip_special_tokens=skip))
            found[-1] += (decoded, tokenizer._tokenizer.to_str())
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["cl100k", "llama3", "qwen2", "mistral"])
def test_published_vocabularies(name: str, real: Any, texts: dict[str, str], tmp_path: Path) -> None:
    Tokenizer.from_file(real(data.vocabulary, name)).save(tmp_path / "tokenizer.json")
    ours, theirs = as_ours(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(ours, transformers.PreTrainedTokenizerBase)
    assert (len(ours), ours.vocab_size, ours.special_tokens_map) == (
        *(len(theirs), theirs.vocab_size),
        theirs.special_tokens_map,
    )
    assert ours.all_special_ids == theirs.all_special_ids and ours.get_vocab() == theirs.get_vocab()
    for kind in data.KINDS:
        lines = [line for line in texts[kind][:50_000].splitlines() if line]
        found, expected = ours(lines), theirs(lines)
        assert ours._core is not None
        assert found.data == expected.data
        assert ours.batch_decode(found["input_ids"]) == theirs.batch_decode(found["input_ids"])
    line = lines[0]
    found, expected = ours(line, return_offsets_mapping=True), theirs(line, return_offsets_mapping=True)
    assert found.data == expected.data
    for method, count in (("char_to_token", len(line)), ("token_to_chars", len(found["input_ids"]))):
        given, wanted = (list(map(getattr(side, method), range(count))) for side in (found, expected))
        assert given == wanted
    ids = found["input_ids"]
    assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids) == found.tokens() == ours.tokenize(line)
    assert ours.convert_tokens_to_ids(found.tokens()) == ids == ours.encode(line)


def test_changes_reach_the_core(gpt2: Pair) -> None:
    """Tokens added and components replaced, through transformers or behind its back."""
    from tokenizers import AddedToken, pre_tokenizers, processors

    text = ["the naïve <new> 12345 <|user|>", "a<other> b"]

    def add_eos(tokenizer: Any) -> None:
        tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.eos_token_id)]
        )

    seen = set()
    for change in (
        lambda tokenizer: tokenizer.add_tokens(["<new>", AddedToken("12", single_word=True)]),
        lambda tokenizer: tokenizer.add_special_tokens({"extra_special_tokens": ["<|user|>"]}),
        lambda tokenizer: tokenizer.add_special_tokens({"pad_token": "<pad>"}),
        lambda tokenizer: setattr(tokenizer, "add_eos_token", True),
        add_eos,
        lambda tokenizer: setattr(tokenizer.backend_tokenizer, "pre_tokenizer", pre_tokenizers.ByteLevel(True)),
        lambda tokenizer: tokenizer.backend_tokenizer.add_tokens(["<other>"]),
        lambda tokenizer: setattr(tokenizer.backend_tokenizer.model, "dropout", 1.0),
    ):
        for side in gpt2:
            change(side)
        (ours, found), (_, expected) = ((side, side(text, padding=True)) for side in gpt2)
        assert found.data == expected.data
        ids = found["input_ids"]
        assert ours.batch_decode(ids, skip_special_tokens=True) == gpt2[1].batch_decode(ids, skip_special_tokens=True)
        seen.add(str(found.data))
    assert len(seen) == 8


def test_a_shallow_copy_shares_the_backend(gpt2: Pair) -> None:
    for side in gpt2:
        copied = copy.copy(side)
        side("the"), copied("the")
        copied.add_tokens(["he <"])
    text = "the <new>"
    assert gpt2[0](text).data == gpt2[1](text).data != {}
    assert gpt2[0].convert_tokens_to_ids("he <") in gpt2[0](text)["input_ids"]


def test_words_of_a_batch_after_a_change(gpt2: Pair) -> None:
    ours, theirs = gpt2
    kept = ours(["the café"], padding=True), theirs(["the café"], padding=True)
    for side in gpt2:
        side.padding_side = "left"
        side(["x"], padding="max_length", max_length=9)
    assert kept[0].word_ids() == kept[1].word_ids()
    stale = ours("the café")
    ours.add_tokens(["caf"])
    with pytest.raises(ValueError, match="changed after it made this batch"):
        stale.word_ids()


@pytest.mark.parametrize("name", CHOSEN)
def test_decode(families: Families, name: str) -> None:
    ids = families[name][1](["the naïve ▁the 日本語 , don't .", "<s>ab"])["input_ids"]
    for given_ids in (
        *(ids, ids[0], ids[0][0], [], [[]], torch.tensor([ids[0]]), torch.tensor(ids[0]).numpy()),
        *([10**6, ids[0][1]], [[10**6], ids[0]], [-1], "text", [[-1]], [0.5]),
    ):
        for options in ({}, {"skip_special_tokens": True}, {"clean_up_tokenization_spaces": True}):
            for method in ("decode", "batch_decode"):
                found, expected = (
                    outcome(partial(getattr(side, method), given_ids, **options)) for side in families[name]
                )
                assert found == expected, (given_ids, options)


@pytest.mark.parametrize("text", ["\ud800", ["ab", "\ud800"], [], [""], 5, [5], {"a": "b"}, ["ab", 5], ("ab", "c")])
def test_unusual_input(gpt2: Pair, text: Any) -> None:
    found, expected = (plain(outcome(lambda side=side: side(text))) for side in gpt2)
    assert found == expected


def test_chats(gpt2: Pair) -> None:
    talk = [{"role": "user", "content": "the café <|endoftext|>"}, {"role": "assistant", "content": "日本語"}]
    for side in gpt2:
        side.chat_template = TEMPLATE
    cut = {"truncation": True, "max_length": 5}
    for options in ({}, {"tokenize": False}, {"return_dict": True, "return_tensors": "pt"}, cut):
        found, expected = (side.apply_chat_template([talk, talk[:1]], padding=True, **options) for side in gpt2)
        assert plain(found) == plain(expected)


def test_saved_and_copied(gpt2: Pair, tmp_path: Path) -> None:
    ours, theirs = gpt2
    for side, name in ((ours, "ours"), (theirs, "theirs")):
        side.add_tokens(["<new>"])
        side.chat_template = TEMPLATE
        side(["text"], padding=True, truncation=True, max_length=7)
        side.save_pretrained(tmp_path / name)
    for file in (tmp_path / "theirs").iterdir():
        found, expected = ((tmp_path / name / file.name).read_text() for name in ("ours", "theirs"))
        if file.suffix == ".json":
            found, expected = json.loads(found), json.loads(expected)
        assert found == expected
    text = ["the <new> café", "x"]
    expected = theirs(text)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    for copied in (loaded, copy.deepcopy(ours), copy.copy(ours), pickle.loads(pickle.dumps(ours))):
        assert plain(copied(text)) == plain(expected)
    assert plain(pickle.loads(pickle.dumps(ours(text)))) != () and pickle.loads(pickle.dumps(ours(text))).word_ids(0)


def test_collators_pipelines_and_trainers(gpt2: Pair, tmp_path: Path) -> None:
    ours, theirs = gpt2
    texts = ["the naïve", "日本語 12345 the the", "don't"]
    config = transformers.GPT2Config(vocab_size=len(ours), n_embd=16, n_layer=1, n_head=2, n_positions=64)
    model = transformers.GPT2LMHeadModel(config).eval()
    batches, written = [], []
    for side in gpt2:
        collate = transformers.DataCollatorForLanguageModeling(side, mlm=False, pad_to_multiple_of=8)
        batches.append(plain(dict(collate([side(text) for text in texts]))["labels"].tolist()))
        pipeline = transformers.pipeline("text-generation", model=model, tokenizer=side, device="cpu")
        written.append(pipeline(texts[0], max_new_tokens=5, do_sample=False))
    assert batches[0] == batches[1] and written[0] == written[1]
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(tmp_path, max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True),
        data_collator=transformers.DataCollatorForLanguageModeling(ours, mlm=False),
        train_dataset=[ours(text) for text in texts],
        processing_class=ours,
    )
    with torch.enable_grad():
        trainer.train()
    trainer.save_model(tmp_path / "model")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "model")(texts).data == theirs(texts).data


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_forked_workers_of_datasets(gpt2: Pair, capfd: pytest.CaptureFixture[str]) -> None:
    datasets = pytest.importorskip("datasets", reason="needs bpe_llama[hub]")
    ours, theirs = gpt2
    texts = [f"the naïve {number} 日本語" for number in range(400)]
    before = datasets.fingerprint.Hasher.hash(ours)
    ours(texts)  # before the fork
    ours.convert_tokens_to_string(["the"])
    assert datasets.fingerprint.Hasher.hash(ours) == before  # so that `map` finds its cache
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, of fork where threads run
        mapped = datasets.Dataset.from_dict({"text": texts}).map(
            lambda rows: ours(rows["text"]), batched=True, num_proc=2, batch_size=50
        )
    assert mapped["input_ids"][:] == theirs(texts)["input_ids"]
    assert "parallelism" not in capfd.readouterr().err


def test_a_tokenizer_that_a_tokenizer_json_cannot_express(tmp_path: Path) -> None:
    sentencepiece_models = pytest.importorskip("tests.parity.tokenizer.sentencepiece_models")
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_models.train().SerializeToString())
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Tokenizer.from_file(path).as_transformers()


def test_threads_change_no_id(gpt2: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tok, texts = Tokenizer.from_file(tmp_path / "saved"), ["the naïve 日本語 "] * 20_000  # enough to start threads
    expected = gpt2[1](texts[0])["input_ids"]
    for off, count in (("true", None), ("true", 1), ("true", 2), ("false", None)):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", off)
        assert tok.as_transformers(num_threads=count)(texts)["input_ids"] == [expected] * len(texts)
    with pytest.raises(ValueError, match="num_threads"):
        tok.as_transformers(num_threads=0)


@pytest.mark.parametrize("module", [None, ModuleType("transformers")], ids=["missing", "older"])
def test_a_missing_transformers_is_named(module: ModuleType | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", module)
    monkeypatch.delitem(sys.modules, "bpe_llama._transformers", raising=False)
    tok = Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False)
    with pytest.raises(ImportError, match=r"needs transformers 5, pip install 'bpe_llama\[transformers\]'"):
        tok.as_transformers()
