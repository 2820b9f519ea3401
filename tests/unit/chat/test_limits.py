"""Chat templates run within limits: a costly or hostile one is one error."""

from __future__ import annotations

import time
from functools import partial

import pytest

from bpe_llama import chat
from bpe_llama.chat import renderer
from bpe_llama.chat.limits import Limits, Meter

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  What is 2 < 3 & 'naïve'?\n"}]
STEPS, LENGTH, MEMORY, DEPTH = "more than .* steps", "longer than .* characters", "more than .* bytes", "too deeply"
GROW = "{% set ns = namespace(x=START) %}{% for i in range(99999) %}{% set ns.x = NEXT %}{% endfor %}"


def grow(start: str, following: str, end: str = "") -> str:
    return GROW.replace("START", start).replace("NEXT", following) + end


@pytest.mark.parametrize(
    ("template", "limit"),
    [
        ("{{ 'a' * 10**10 }}", LENGTH),
        ("{{ [0] * 10**9 }}", LENGTH),
        (grow("'ab'", "ns.x + ns.x"), LENGTH),
        (grow("'ab'", "ns.x ~ ns.x"), LENGTH),
        (grow("[1]", "ns.x + ns.x"), LENGTH),
        (grow("'ab'", "'%s%s' % (ns.x, ns.x)"), LENGTH),
        (grow("'ab'", "'{0}{0}'.format(ns.x)"), LENGTH),
        (grow("'ab'", "[ns.x, ns.x] | join"), LENGTH),
        (grow("'ab'", "ns.x | replace('a', 'aa')"), LENGTH),
        (grow("[]", "[ns.x, ns.x]", "{{ ns.x }}"), LENGTH),
        (grow("[]", "[ns.x, ns.x]", "{{ ns.x | tojson }}"), LENGTH),
        (grow("[]", "[ns.x, ns.x]", "{{ ns.x == [ns.x] }}"), LENGTH),
        (grow("(1,)", "(ns.x, ns.x)", "{{ {ns.x: 1} }}"), LENGTH),
        (grow("(1,)", "(ns.x,)", "{{ {ns.x: 1} }}"), "500 deep"),
        (grow("[1]", "ns.x | map('upper')"), "more than 50 filters"),
        (grow("[]", "ns.x + ['a' * 1000000 ~ i]"), MEMORY),
        (grow("[]", "[ns.x, ('a ' * 9999).split()]"), MEMORY),
        (grow("'a' * 3000000", "ns.x[1:] + 'b'"), STEPS),
        ("{% macro m() %}{% for i in range(9999) %}{{ 'a' * 3000000 ~ i }}{% endfor %}{% endmacro %}{{ m() }}", MEMORY),
        ("{{ 'a'.center(10**10) }}", LENGTH),
        ("{{ 'a' | center(10**10) }}", LENGTH),
        ("{{ 'a'.ljust(10**10) }}", LENGTH),
        ("{{ ['a'] | map('center', 10**10) | list }}", LENGTH),
        ("{{ (['a'] | map(attribute='ljust') | first)(10**10) }}", LENGTH),
        ("{{ 'a' | indent(10**10, true) }}", LENGTH),
        ("{{ '{:>10000000000}'.format(1) }}", LENGTH),
        ("{{ '{:>{w}}'.format(1, w=10**10) }}", LENGTH),
        ("{{ ('{:>{w}}' | safe).format(1, w=10**10) }}", LENGTH),
        ("{{ '%10000000000d' % 1 }}", LENGTH),
        ("{{ '%*d' % (10**9, 1) }}", LENGTH),
        ("{{ '%10000000000d' | format(1) }}", LENGTH),
        ("{{ '%10000000000d' is odd }}", LENGTH),
        ("{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}", LENGTH),
        ("{{ ('a' * 1000000).join('b' * 1000000) }}", LENGTH),
        ("{{ ('\n' * 3000000).splitlines() }}", LENGTH),
        ("{{ ('a' * 3000000).split('a') }}", LENGTH),
        ("{{ ('a ' * 1000000).rsplit() }}", LENGTH),
        ("{{ (('a ' * 1000000) | title).encode().splitlines() }}", LENGTH),
        ("{{ ('a ' * 1000000) | wordcount }}", LENGTH),
        ("{{ ('a' * 1000000).translate({97: 'b' * 1000000}) }}", LENGTH),
        ("{{ 'a\t'.expandtabs(10**10) }}", LENGTH),
        ("{{ ('a' * 1000000) | wordwrap(1, wrapstring='b' * 1000000) }}", STEPS),
        ("{{ ('<a>' * 1000000) | striptags }}", STEPS),
        ("{{ [1] | batch(10**10, 0) | list }}", LENGTH),
        ("{{ [1] | slice(10**10) | list }}", LENGTH),
        ("{{ (1).to_bytes(10**10, 'big') }}", LENGTH),
        ("{{ range(10**9) }}", "Range too big"),
        ("{{ (10**1000)**1000 }}", "integer of more than"),
        ("{{ 5 | round(10**9) }}", "rounds to 1000000000 digits"),
        ("{{ lipsum(-10**9) }}", STEPS),
        ("{{ cycler(*range(9999)) }}", "more than 1,000 arguments"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", STEPS),
        ("{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}", STEPS),
        ("{% for a in range(99999) %}{{ 'b' if 0.5 in range(99999) }}{% endfor %}", STEPS),
        ("{% for a in range(99999) %}{% set b = range(99999) | sort %}{% endfor %}", STEPS),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", DEPTH),
        ("{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n }}{% endmacro %}{{ f(60) }}", STEPS),
        ("{% for x in [1] recursive %}{{ loop([x]) }}{% endfor %}", DEPTH),
        ("{% block a %}{{ self.a() }}{% endblock %}", DEPTH),
        ("{{ " + "(" * 40000 + " }}", DEPTH),
        ("{{ 1" + "+1" * 40000 + " }}", DEPTH),
        ("{% if 1 %}" * 150 + "{% endif %}" * 150, "too many levels of indentation"),
        ("{% autoescape 'a' | center(10**10) %}{% endautoescape %}", LENGTH),
        ("a" * 100_001, "at most 100,000"),
        ("{{ 'a'.encode('punycode') }}", "encoding 'punycode'"),
        ("{% include 'x' %}", "no loader"),
        ("{{ (messages | map('upper')).meter.charge(-1) }}", "has no attribute 'meter'"),
        ("{{ (messages | map('upper'))._meter.charge(-1) }}", "unsafe"),
        ("{% set n = namespace(_x=1) %}", "begins with an underscore"),
        ("{{ '{0.__class__.__mro__}'.format(1) }}", "unsafe"),
    ],
)
def test_a_costly_or_hostile_template_is_one_error(template: str, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lower = {STEPS: {"steps": 200_000}, MEMORY: {"memory": 6_000_000}}.get(limit, {})
    if limit == LENGTH and template.startswith("{% set ns"):  # grown from nothing, one iteration after the other
        lower = {"text": 400_000}
    monkeypatch.setattr(renderer, "Limits", partial(Limits, **lower))
    with pytest.raises(ValueError, match=f"^the chat template (?s:.*){limit}"):
        chat.render(template, TALK)


def test_limits_grow_with_the_conversation() -> None:
    talk = [{"role": "user", "content": "What? " * 100}, {"role": "assistant", "content": "This. " * 100}] * 5000
    text = chat.render("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}", talk)
    assert len(text) > 6_000_000 > Limits().text
    assert text.count("<|im_start|>") == len(talk)


def test_memory_that_is_no_longer_used_does_not_count() -> None:
    text = chat.render(grow("''", "'b' * 10000 ~ i", "{{ ns.x | length }}"), TALK)
    assert text == "10005"


def test_time_is_the_last_resort() -> None:
    meter = Meter(Limits(seconds=0.01))
    time.sleep(0.02)
    with pytest.raises(Exception, match=r"takes more than 0\.01 seconds"):
        for _ in range(2000):
            meter.charge()
