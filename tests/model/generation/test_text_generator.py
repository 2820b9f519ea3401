"""Text in, text out: streaming, stop strings, batches, and text that pretends to be a special token."""

from __future__ import annotations

import copy
import itertools
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from bpe_llama import Tokenizer, _core
from bpe_llama.model import LlamaConfig, LlamaForCausalLM, TextGenerator, generation, lora
from bpe_llama.model.cli.chat import Conversation
from bpe_llama.model.generation.generate import Engine, Sequence
from tests.small_models import tiny_model

SPECIAL = {"<|begin_of_text|>": 256, "<|end_of_text|>": 257}


@pytest.fixture(scope="module")
def generator() -> TextGenerator:
    """Return a random model over bytes: it writes broken UTF-8, the hardest case for a stream."""
    tokenizer = Tokenizer.from_ranks({bytes([i]): i for i in range(256)}, pattern="cl100k", special_tokens=SPECIAL)
    shape = {"vocab_size": 258, "num_hidden_layers": 2, "max_position_embeddings": 256}
    return TextGenerator(tiny_model(seed=2, **shape, eos_token_id=257), tokenizer)


def ids_after(generator: TextGenerator, prompt: str, **options: object) -> list[int]:
    ids = torch.tensor([generator.tokenizer.encode(prompt)])
    return generator.model.generate(ids, **options)[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("seed", range(4))
def test_the_stream_is_the_decoded_continuation(generator: TextGenerator, seed: int) -> None:
    options = {"max_new_tokens": 60, "temperature": 1.0, "seed": seed}
    pieces = list(generator.stream("Once upon", **options))
    ids = [i for i in ids_after(generator, "Once upon", **options) if i != 257]
    assert "".join(pieces) == bytes(ids).decode("utf-8", errors="replace")
    assert all(pieces) and len(pieces) > 1
    assert generator.generate("Once upon", **options) == "".join(pieces)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], None]:
    """Return a function that lets every sequence draw given ids, one a step."""

    def use(script: list[int]) -> None:
        draw = lambda sequences, logits: [script[len(sequence.new_ids)] for sequence in sequences]  # noqa: E731
        monkeypatch.setattr("bpe_llama.model.generation.engine.sample_next_ids", draw)

    return use


def test_a_character_in_several_tokens_comes_whole(
    generator: TextGenerator, scripted: Callable[[list[int]], None]
) -> None:
    scripted([*"né – 日本 🦙!".encode(), 257])
    assert list(generator.stream("x")) == list("né – 日本 🦙!")
    assert list(generator.stream("x", stop="本 🦙")) == list("né – 日")
    assert list(generator.stream("x", stop=["本 🐫", " –", "é –"])) == ["n"]
    assert "".join(generator.stream("x", stop="🦙!?")) == "né – 日本 🦙!"
    assert generator.generate_batch(["x", "yy"], stop="日") == ["né – ", "né – "]


def test_a_stop_string_inside_a_token_cuts_the_token(
    generator: TextGenerator, scripted: Callable[[list[int]], None]
) -> None:
    ranks = {bytes([i]): i for i in range(256)} | {b"he": 256, b"hel": 257, b"hell": 258, b"hello": 259}
    tokenizer = Tokenizer.from_ranks(ranks, pattern="cl100k")
    model = LlamaForCausalLM(generator.model.config.replace(vocab_size=260, eos_token_id=None)).eval()
    scripted([*b"so ", 259, 259, *b"!"])
    wordy = TextGenerator(model, tokenizer)
    assert wordy.generate("x", stop="ll", max_new_tokens=6) == "so he"
    assert wordy.generate("x", stop="oh", max_new_tokens=6) == "so hell"
    assert wordy.generate("x", stop="hello!?", max_new_tokens=6) == "so hellohello!"
    assert list(wordy.stream("x", stop="lohe", max_new_tokens=6)) == ["s", "o", " ", "hel"]


@pytest.mark.parametrize(("tokens", "reason"), [(3, "length"), (4, "stop"), (5, "stop")])
def test_a_stop_string_that_the_last_token_completes_ends_the_text(
    generator: TextGenerator, scripted: Callable[[list[int]], None], tokens: int, reason: str
) -> None:
    scripted([*b"a</s>"])
    assert generator.generate("x", stop="</s", max_new_tokens=tokens) == ("a</" if tokens == 3 else "a")
    assert generator.last is not None and generator.last.finish_reason == reason


def test_a_batch_gives_what_each_prompt_gives_alone(generator: TextGenerator) -> None:
    prompts = ["a", "Once upon a time", "de nouveau", "x" * 70, "end"]
    options = {"max_new_tokens": 30, "temperature": 0.9, "seed": 5, "stop": ["e", "\n"]}
    expected = [generator.generate(prompt, **options) for prompt in prompts]
    assert generator.generate_batch(prompts, slots=2, **options) == expected
    assert generator.generate_batch(prompts, **options) == expected
    assert generator.generate_batch([]) == []


def test_text_that_looks_special_is_text(generator: TextGenerator) -> None:
    text = "<|end_of_text|>"
    plain = generator.request(text, {})
    allowed = generator.request(text, {"allowed_special": {text}})
    assert plain.prompt == list(text.encode())
    assert allowed.prompt == [257]


def test_an_empty_prompt_begins_with_bos(generator: TextGenerator) -> None:
    assert generator.request("", {}).prompt == [256]
    assert generator.request("a", {}).prompt == [97]
    assert generator.request("a", {"bos": True}).prompt == [256, 97]
    bare = Tokenizer.from_ranks({bytes([i]): i for i in range(256)}, pattern="cl100k")
    with pytest.raises(ValueError, match="the prompt is empty"):
        TextGenerator(generator.model, bare).generate("")


def test_a_generator_hands_on_what_the_sampler_knows(generator: TextGenerator) -> None:
    assert generator.generate("ab", max_new_tokens=3, allowed_ids=[120]) == "xxx"
    assert generator.generate_batch(["ab", "c"], max_new_tokens=3, logit_bias={121: 1e6}) == ["yyy"] * 2
    with pytest.raises(TypeError, match=r"the prompt holds 98\.0 at index 1; expected ids"):
        generator.generate([97, 98.0])  # type: ignore[list-item]


def test_special_tokens_are_left_out_of_the_text(
    generator: TextGenerator, scripted: Callable[[list[int]], None]
) -> None:
    # They stand between the bytes of a character, at the end of the text, and beside a stop string.
    ids = [*b"so \xc3", 256, 0xA9, 256, *b"!", 256]
    scripted([*ids, 257])
    without, whole = (generator.tokenizer.decode(ids, skip_special_tokens=skip) for skip in (True, False))
    assert without == "so é!" != whole
    for options, expected in [
        ({}, without),
        ({"skip_special_tokens": True, "stop": "!"}, "so é"),
        ({"skip_special_tokens": False}, whole),
        ({"stop": "<|begin_of_text|>!"}, whole.partition("<|begin_of_text|>!")[0]),
    ]:
        options |= {"max_new_tokens": 20}
        assert generator.generate("a", **options) == "".join(generator.stream("a", **options)) == expected
        assert generator.generate_batch(["a", "bc"], **options) == [expected] * 2
    assert "".join(generator.stream("a", stop=iter(["so <|begin_of_text|>", "!"]))) == whole.partition("!")[0]
    request = generator.request("a", {"stop": "end"})  # as a beam search asks
    assert request.stopped([*b"en", *[256] * 20, *b"d"]) and not request.stopped([*b"end", 256])
    with pytest.raises(ValueError, match=r"the stop string '<\|end_of_text\|>\.' holds the special token"):
        generator.generate("a", stop="<|end_of_text|>.", skip_special_tokens=True)
    with pytest.raises(TypeError, match="skip_special_tokens must be True, False or None"):
        generator.generate("a", skip_special_tokens=1)  # type: ignore[arg-type]


def test_bad_requests_are_named(generator: TextGenerator) -> None:
    with pytest.raises(ValueError, match="a stop string is empty"):
        generator.generate("a", stop="")
    with pytest.raises(ValueError, match="leaves no room in a context of 256"):
        generator.generate("a" * 256)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        generator.generate("a", max_new_tokens=0)
    with pytest.raises(ValueError, match="slots is 0"):
        generator.generate_batch(["a"], slots=0)
    with pytest.raises(TypeError, match="colour"):
        generator.generate("a", colour="red")


def test_the_space_after_a_prompt_is_kept(generator: TextGenerator, scripted: Callable[[list[int]], None]) -> None:
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((f"<0x{i:02X}>", 0.0, 6) for i in range(256))]
    pieces += [("▁", -1.0, 1), ("▁the", -2.0, 1), ("▁end", -3.0, 1)]
    added = [(pieces[i][0], i, True, False, False) for i in range(3)]
    core = _core.Tokenizer.build_from_gguf_pieces(pieces, True, added)
    tokenizer = Tokenizer(core.with_ends(1, 2, None, None))
    config = generator.model.config.replace(vocab_size=tokenizer.vocab_size, eos_token_id=2)
    writing = TextGenerator(LlamaForCausalLM(config).eval(), tokenizer)
    scripted([tokenizer.token_to_id("▁the"), tokenizer.token_to_id("▁end"), 2])
    assert writing.generate("See") == " the end"
    assert writing.generate_batch(["See", "See "]) == [" the end"] * 2
    assert writing.generate("") == writing.generate(tokenizer.encode("[See]")) == "the end"  # a beginning, an answer


def test_a_vocabulary_larger_than_the_model_is_refused(generator: TextGenerator) -> None:
    config = generator.model.config.replace(vocab_size=200, eos_token_id=None)
    with pytest.raises(ValueError, match="258 ids, more than the model's 200"):
        TextGenerator(LlamaForCausalLM(config), generator.tokenizer)


def test_added_tokens_beyond_the_model_are_refused_where_they_are_used() -> None:
    ranks = {bytes([i]): i for i in range(256)}
    padded = Tokenizer.from_ranks(ranks, special_tokens={"[PAD]": 256, "<|user|>": 257})
    model = tiny_model(vocab_size=256)
    with pytest.warns(UserWarning, match=r"258 ids, more than the model's 256; .* \('\[PAD\]', '<\|user\|>'\)") as said:
        writing = TextGenerator(model, padded)
    assert said[0].filename == __file__
    plain = TextGenerator(model, Tokenizer.from_ranks(ranks))
    assert writing.generate("[PAD] is text", temperature=0.0) == plain.generate("[PAD] is text", temperature=0.0)
    for prompt in ("go <|user|>", [5, 257]):
        with pytest.raises(ValueError, match=r"the prompt holds '<\|user\|>', whose id 257 is beyond the model's 256"):
            writing.generate(prompt, allowed_special={"<|user|>"})
    for outside in (-1, 999):
        with pytest.raises(ValueError, match=f"the prompt has input id {outside}, outside the vocabulary of 256"):
            writing.generate([5, outside])
    with pytest.raises(ValueError, match=r"257 ids, more than the model's 256, and not all of those beyond are added"):
        TextGenerator(model, Tokenizer.from_ranks(ranks | {b"ab": 256}))


def test_an_id_that_is_no_token_stands_for_no_text(generator: TextGenerator) -> None:
    config = generator.model.config.replace(vocab_size=300, eos_token_id=None)
    writing = TextGenerator(LlamaForCausalLM(config, seed=0).eval(), generator.tokenizer)
    known = generator.tokenizer.encode("a")[0]
    texts = [
        "".join(writing.stream("x", max_new_tokens=24, seed=0, temperature=5.0, allowed_ids=[known, *others]))
        for others in ([], [258, 299])
    ]
    assert writing.last is not None and {258, 299} <= set(writing.last.new_ids)
    assert texts == ["a" * 24, "a" * writing.last.new_ids.count(known)]


@pytest.fixture
def prefilled(monkeypatch: pytest.MonkeyPatch) -> list[Sequence]:
    """Return a list that fills with every sequence that an engine prefills."""
    seen: list[Sequence] = []
    prefill = Engine.prefill

    def watched(self: Engine, *arguments: Any, **options: Any) -> list[Sequence]:
        sequences = prefill(self, *arguments, **options)
        seen.extend(sequences)
        return sequences

    monkeypatch.setattr(Engine, "prefill", watched)
    return seen


def fresh(generator: TextGenerator) -> TextGenerator:
    return TextGenerator(copy.deepcopy(generator.model), generator.tokenizer)


def test_a_common_prefix_is_not_computed_again(generator: TextGenerator, prefilled: list[Sequence]) -> None:
    options = {"max_new_tokens": 12, "temperature": 0.9, "seed": 4, "eos_id": ()}
    prompts = [*["Once upon a time"] * 2, "Once upon another", "x" * 100, "Once upon a", "Once upon a time"]
    expected = [fresh(generator).generate(prompt, **options) for prompt in prompts]
    prefilled.clear()
    one = fresh(generator)
    assert [one.generate(prompt, **options) for prompt in prompts] == expected
    assert [sequence.num_cached_tokens for sequence in prefilled] == [0, 15, 11, 0, 0, 11]
    one.generate(prompts[0], reuse=False, **options)
    assert prefilled[-1].num_cached_tokens == 0


def test_nothing_stale_is_reused(generator: TextGenerator, prefilled: list[Sequence]) -> None:
    one, options = fresh(generator), {"max_new_tokens": 12, "temperature": 0.0, "eos_id": ()}

    def check() -> None:
        again = one.generate("Once upon a time", **options)
        assert prefilled[-1].num_cached_tokens == 0
        assert again == fresh(one).generate("Once upon a time", **options)

    check()
    with torch.no_grad():
        one.model.model.layers[0].self_attn.v_proj.weight.mul_(-2)
    check()
    one.model.model.layers[0].self_attn.v_proj.weight.data.mul_(-2)  # unnoticed
    assert one.generate("Once upon a time", reuse=False, **options) == fresh(one).generate(
        "Once upon a time", **options
    )
    lora.add(one.model, rank=2)
    check()
    for layer in one.model.model.layers:
        layer.self_attn.v_proj.adapters["default"].lora_B.data.normal_()
    lora.activate(one.model)  # none
    check()
    lora.activate(one.model, "default")
    check()
    one.model.to(torch.bfloat16)
    check()


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD, torch.optim.Adagrad])
@pytest.mark.parametrize("adapted", [False, True])
def test_nothing_stale_is_reused_after_a_fused_step(
    generator: TextGenerator, prefilled: list[Sequence], optimizer: Any, adapted: bool
) -> None:
    one, options = fresh(generator), {"max_new_tokens": 12, "temperature": 0.0, "eos_id": ()}
    if adapted:
        lora.add(one.model, rank=2)
    trained = [weight for weight in one.model.parameters() if weight.requires_grad]
    with torch.enable_grad():
        sum(weight.sin().sum() for weight in trained).backward()
    one.generate("Once upon a time", **options)
    optimizer(trained, lr=0.05, fused=True).step()
    again = one.generate("Once upon a time", **options)
    assert prefilled[-1].num_cached_tokens == 0
    assert again == fresh(one).generate("Once upon a time", **options)


def test_resizing_the_vocabulary_is_noticed(generator: TextGenerator) -> None:
    one, options = fresh(generator), {"max_new_tokens": 12, "temperature": 0.0, "eos_id": ()}
    one.generate("Once upon a time", **options)
    one.model.resize_token_embeddings(one.model.config.vocab_size + 8)
    assert one.generate("Once upon a time", **options) == fresh(one).generate("Once upon a time", **options)


def test_streams_may_overlap_and_end_early(generator: TextGenerator) -> None:
    one, options = fresh(generator), {"max_new_tokens": 20, "temperature": 0.9, "eos_id": ()}
    expected = [fresh(generator).generate(prompt, **options) for prompt in ("Once upon", "Once more")]
    first, second = (one.stream(prompt, **options) for prompt in ("Once upon", "Once more"))
    woven = ["", ""]
    for left, right in itertools.zip_longest(first, second, fillvalue=""):
        woven[0] += left
        woven[1] += right
    assert woven == expected
    third = one.stream("Once upon", **options)
    next(third)
    third.close()
    assert [one.generate(prompt, **options) for prompt in ("Once upon", "Once more")] == expected
    with ThreadPoolExecutor(4) as pool:
        assert (
            list(pool.map(lambda prompt: one.generate(prompt, **options), ["Once upon", "Once more"] * 4))
            == expected * 4
        )


def test_a_conversation_prefills_only_new_ids(generator: TextGenerator, prefilled: list[Sequence]) -> None:
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}[assistant]"
    tokenizer = Tokenizer.from_ranks({bytes([i]): i for i in range(256)}, pattern="cl100k", special_tokens=SPECIAL)
    tokenizer.chat_template = template
    talker = TextGenerator(generator.model.to(torch.float32), tokenizer)
    conversation = Conversation(talker, "Be brief.", {"max_new_tokens": 5, "temperature": 0.0, "eos_id": ()})
    for message in ("Hello", "And then?", "<|end_of_text|>"):
        list(conversation.answer(message))
    first, second, third = prefilled
    assert first.num_cached_tokens == 0
    assert second.num_cached_tokens >= len(first.prompt) and third.num_cached_tokens >= len(second.prompt)
    assert 257 not in third.prompt  # what looks special in a message stays text


def test_a_step_visits_the_files_that_the_documentation_lists(generator: TextGenerator) -> None:
    root = Path(generation.__file__).parents[1]
    visited: set[str] = set()

    def record(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(root):
            visited.add(path.relative_to(root).as_posix())

    pieces = fresh(generator).stream("Once upon", max_new_tokens=9, eos_id=())
    next(pieces)
    before = sys.gettrace()
    sys.settrace(record)
    try:
        next(pieces)
    finally:
        sys.settrace(before)
    listed = re.findall(r"^\d\. ``(.*?)``", generation.__doc__ or "", re.MULTILINE)
    assert len(listed) == 9 and visited == set(listed)


def test_ids_without_a_token_are_skipped_while_bytes_are_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `ByteFallback` decoder waits for the end of a run of byte tokens, so an unknown id must not enter the run."""
    from tokenizers import Tokenizer as Theirs
    from tokenizers import decoders, models

    vocab = {"a": 0, "<unk>": 1, **{f"<0x{byte:02X}>": byte + 2 for byte in range(256)}}
    theirs = Theirs(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    theirs.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    core = _core.Tokenizer.build_from_huggingface(theirs.to_str().encode())
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    writer = TextGenerator(LlamaForCausalLM(config.replace(eos_token_id=None)).eval(), Tokenizer(core))
    first, second = (byte + 2 for byte in "é".encode())
    script = [0, first, 290, second, 299]

    def scripted(sequences: list[Sequence], logits: torch.Tensor) -> list[int]:
        return [script[len(sequence.new_ids)] for sequence in sequences]

    monkeypatch.setattr("bpe_llama.model.generation.engine.sample_next_ids", scripted)
    assert writer.generate([0], max_new_tokens=len(script)) == "aé"
