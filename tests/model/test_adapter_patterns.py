"""Regexes in the config of an adapter: read as `re` reads them, in bounded time and memory."""

from __future__ import annotations

import re
import sys
import time
from typing import Any

import pytest
import regex

from bpe_llama.model.adapters.config import AdapterConfig
from bpe_llama.model.adapters.patterns import Matcher

PATH = "model.layers.10.self_attn.q_proj"
ENDLESS = r"(?=((.|..)+)+!).*"


def config(**fields: Any) -> AdapterConfig:
    return AdapterConfig.of({"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]} | fields, "adapter_config.json")


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ENDLESS},
        {"exclude_modules": ENDLESS},
        {"modules_to_save": [ENDLESS]},
        {"layers_to_transform": [1], "layers_pattern": [ENDLESS]},
    ],
    ids=lambda fields: list(fields)[-1],
)
def test_a_match_without_end_is_stopped(fields: dict[str, Any]) -> None:
    started = time.perf_counter()
    with pytest.raises(ValueError, match=rf"{list(fields)[-1]} has the pattern .* over 1 s to match {PATH}"):
        config(**fields).targets(PATH)
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_match_of_a_scale_without_end_is_stopped(field: str) -> None:
    with pytest.raises(ValueError, match=rf"{field} has the pattern .* over 1 s to match {PATH}"):
        config(**{field: {ENDLESS: 2}}).scale(PATH)


def test_many_slow_matches_are_stopped() -> None:
    """Each takes some hundredths of a second."""
    slow = {rf"{ENDLESS}|{number}": 2 for number in range(10_000)}
    short = "a" * 18
    config(rank_pattern=dict([slow.popitem()])).rank(short)
    with pytest.raises(ValueError, match=rf"rank_pattern has the pattern .* over 1 s to match {short} and what"):
        config(rank_pattern=slow).rank(short)


def test_nested_repeats_end() -> None:
    """`re` takes years for the first."""
    assert not config(target_modules=r"(\w+\.?)+!").targets(PATH)
    assert config(target_modules=r"(\w+\.?)+").targets(PATH)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(a{5000}){3}", "the counts multiply to over 10,000"),
        ("a{4000000000}", "the counts multiply to over 10,000"),
        ("a{99999999999}", "too large"),
        ("(?:q_proj){e<=2}", "braces that are no count"),
        ("[_[:alpha:]]+", "braces that are no count, or"),
        ("(" * 5000 + ")" * 5000, "recursion"),
    ],
)
def test_patterns_that_are_refused(pattern: str, reason: str) -> None:
    for fields in ({"target_modules": pattern}, {"rank_pattern": {pattern: 2}}):
        with pytest.raises(ValueError, match=rf"adapter_config\.json: {next(iter(fields))} is .*{reason}"):
            config(**fields)


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q|k)_proj",
        r"(?i).*Q_PROJ",
        r"model\.layers\.\d{1,2}\..*",
        r"(?:.*?(?:self_attn|mlp).*?(?:q_proj|up_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:mlp)\.(?:up_proj))",
        r".*layers\.(?!1\d)\d+\..*",
        r"model(\.\w+){4}",
    ],
)
def test_patterns_match_as_in_re(pattern: str) -> None:
    for path in (PATH, "model.layers.3.mlp.up_proj", "lm_head", "model.norm", PATH.replace("10", "100")):
        for whole, find in ((True, re.fullmatch), (False, re.match)):
            found, expected = Matcher().match("target_modules", pattern, path, whole=whole), find(pattern, path)
            assert (found and (found[0], found.groups())) == (expected and (expected[0], expected.groups()))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="re warns of it")
def test_a_pattern_that_is_valid_alone_only() -> None:
    with pytest.raises(ValueError, match=r"rank_pattern has the pattern .*global flags"):
        config(rank_pattern={"(?i)Q_PROJ": 2}).rank(PATH)


def test_a_pattern_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some adapters have a rank for each module; compiling takes a hundred times as long as a match."""
    compiled: list[str] = []
    original = regex.compile
    monkeypatch.setattr(regex, "compile", lambda pattern: compiled.append(pattern) or original(pattern))
    ranks = config(rank_pattern={f"compiled_once_{number}": 2 for number in range(100)})
    for layer in range(10):
        assert ranks.rank(f"model.layers.{layer}.self_attn.compiled_once_99") == 2
    assert len(compiled) == len(set(compiled)) == 100


VALUED = ("rank_pattern", "alpha_pattern")


@pytest.mark.parametrize("name", [*VALUED, "modules_to_save", "layers_pattern"])
def test_the_number_of_patterns_is_bounded(name: str) -> None:
    many = [f"x{number}" for number in range(10_001)]
    with pytest.raises(ValueError, match=rf"{name} is .*10,001 patterns, where at most 10,000 are read"):
        config(layers_to_transform=[1], **{name: dict.fromkeys(many, 2) if name in VALUED else many})
