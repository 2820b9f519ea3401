"""The page in Chromium, as people use it: tokens, comparison, merges, chat, the model; light, dark and on a phone."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bpe_llama.model.generation.engine import Engine
from tests.server.conftest import Running, serve

webdriver = pytest.importorskip("selenium.webdriver", reason="the page is driven by selenium")
pytest.importorskip("axe_core_python", reason="axe checks that the page is accessible")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER) and os.environ.get("BPE_LLAMA_REQUIRE_DATA"):
    raise RuntimeError("Chromium and its driver are needed: apt-get install chromium chromium-driver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium and its driver are not installed")

SENTENCE = "the quick brown fox jumps over 日本"
COUNT_WORK = """
const later = setTimeout.bind(window), forget = clearTimeout.bind(window), timers = new Set();
window.work = 0;
const ended = () => later(() => { window.work--; }, 0);  // after what follows from it
const count = (owner, name) => {
  const plain = owner[name];
  owner[name] = function (...given) {
    window.work++;
    const promise = plain.apply(this, given);
    promise.then(ended, ended);
    return promise;
  };
};
count(window, "fetch");
count(Response.prototype, "json");
window.setTimeout = (action, ...given) => {
  window.work++;
  const timer = later(() => { timers.delete(timer); ended(); action(); }, ...given);
  timers.add(timer);
  return timer;
};
window.clearTimeout = (timer) => {
  if (timers.delete(timer)) ended();
  forget(timer);
};
"""
"""Lets a page count its timers and requests that have not ended; an answer that streams has ended once it begins."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": COUNT_WORK})
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: Any, server: Running) -> Page:
    browser.get(server.url)
    page = Page(browser)
    page.wait("return document.body.dataset.ready")
    page.wait("return document.querySelector('#output-a strong')")
    return page


class Page:
    """What a person does on the page."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def run(self, script: str, *arguments: object) -> Any:
        return self.browser.execute_script(script, *arguments)

    def wait(self, script: str, *arguments: object) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, 120, 0.05).until(lambda _: self.run(script, *arguments))

    def find(self, selector: str) -> Any:
        """Return an element once the page is at rest: what is still to come could draw it anew."""
        self.wait("return window.work === 0")
        return self.browser.find_element("css selector", selector)

    def click(self, selector: str) -> None:
        self.find(selector).click()

    def type(self, selector: str, text: str) -> None:
        field = self.find(selector)
        field.clear()
        field.send_keys(text)

    def choose(self, selector: str, value: str) -> None:
        self.run(
            "const s = document.querySelector(arguments[0]); s.value = arguments[1];"
            "s.dispatchEvent(new Event('input')); s.dispatchEvent(new Event('change'))",
            selector,
            value,
        )

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)"
        found: list[str] = self.run(script, selector)
        return found

    def logged(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_tokens_of_a_text_are_shown_and_compared(page: Page, server: Running) -> None:
    tok = server.generator.tokenizer
    page.type("#text", SENTENCE)
    count = len(tok.encode(SENTENCE))
    page.wait("return document.querySelector('#output-a strong').textContent === arguments[0]", str(count))
    pieces = [piece.decode("utf-8", "backslashreplace") for piece in tok.tokenize(SENTENCE)]
    assert page.texts("#output-a .token") == pieces
    page.choose("#tokenizer-b", "other")
    page.wait("return document.querySelectorAll('#output-b .token').length === arguments[0]", count)
    assert "as many as the other" in page.find("#output-a .count").text
    page.find("#output-a .token").click()
    page.run("document.querySelector('#output-a .token').focus()")
    assert (
        f"id {tok.encode(SENTENCE)[0]}," in page.find("#detail").text and "characters 0–" in page.find("#detail").text
    )
    page.browser.switch_to.active_element.send_keys("\ue014")  # the right arrow
    assert page.find("#detail").text.startswith(f"token 1: id {tok.encode(SENTENCE)[1]}, ")
    page.click("#table")
    page.wait("return document.querySelectorAll('#output-a tbody tr').length === arguments[0]", count)
    page.type("#text", "<|end|>")
    page.wait("return document.querySelectorAll('#output-a tbody tr').length > 1")
    page.click("#special")
    page.wait("return document.querySelectorAll('#output-a tbody tr').length === 1")


def test_merges_are_played_and_a_conversation_is_encoded(page: Page, server: Running) -> None:
    tok = server.generator.tokenizer
    page.type("#text", "quick")
    page.click("#merges summary")
    page.wait("return document.querySelectorAll('#pieces button').length === 1")
    assert page.texts("#merge-steps > div:last-child span") == list("quick")
    while "disabled" not in page.find("#merge-place").text:
        before = page.find("#merge-place").text
        page.click("#step")
        if page.find("#merge-place").text == before:
            break
    assert page.texts("#merge-steps > div:last-child span") == [piece.decode() for piece in tok.tokenize("quick")]
    page.click("#conversation summary")
    page.type("#messages textarea", "the fox <|end|>")
    page.click("#show-chat")
    ids = tok.apply_chat_template([{"role": "user", "content": "the fox <|end|>"}], add_generation_prompt=True)
    page.wait("return document.querySelector('#chat-output strong')?.textContent === arguments[0]", str(len(ids)))
    assert page.texts("#chat-output .special").count("<|end|>") == 1


def test_a_dropped_tokenizer_is_compared_and_a_bad_one_refused(page: Page, tmp_path: Any) -> None:
    from bpe_llama import Tokenizer

    Tokenizer.train_from_iterator([SENTENCE], 260, progress=False).save(tmp_path / "mine.json")
    page.find("#file").send_keys(str(tmp_path / "mine.json"))
    page.wait("return document.querySelector('#tokenizer-b').value.startsWith('mine.json (')")
    page.wait("return document.querySelectorAll('#output-b .token').length > 0")
    (tmp_path / "bad.json").write_text("{}")
    page.find("#file").send_keys(str(tmp_path / "bad.json"))
    page.wait("return document.querySelector('#problem').textContent.startsWith('bad.json: ')")
    assert [message for message in page.logged() if "400" not in message] == []


def answers(page: Page) -> list[str]:
    return page.texts("#log article div")


def test_a_chat_streams_stops_and_regenerates(page: Page, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    page.click("#tab-chat")
    page.run("document.querySelector('#chat details').open = true")
    page.choose("#max_tokens", "32")
    page.type("#message", "the quick fox")
    page.click("#send")
    page.wait("return document.querySelector('#chat-status').textContent.includes('new tokens')")
    prompt = server.generator.tokenizer.apply_chat_template(
        [{"role": "user", "content": "the quick fox"}], add_generation_prompt=True
    )
    options: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 32}
    expected = [server.generator.generate(prompt, seed=seed, **options) for seed in (0, 1)]
    assert expected[0] != expected[1]
    assert answers(page) == ["the quick fox", expected[0]]
    page.run("document.querySelector('#log .word').focus()")
    assert " %; most likely: " in page.find("#chat-detail").text
    page.click("#regenerate")
    page.wait("return !document.querySelector('#regenerate').disabled && document.querySelector('#seed').value === '1'")
    assert answers(page) == ["the quick fox", expected[1]]

    page.click("#clear")
    step = Engine.step

    def slow(engine: Engine) -> Any:
        time.sleep(0.1)
        return step(engine)

    monkeypatch.setattr(Engine, "step", slow)
    page.choose("#max_tokens", "512")
    page.choose("#temperature", "2")
    page.choose("#seed", "2")  # an answer of over 400 tokens
    page.type("#message", "a lazy dog")
    page.click("#send")
    page.wait("return document.querySelectorAll('#log .word').length > 0")
    page.click("#stop")
    page.wait("return document.querySelector('#chat-status').textContent === 'stopped'")
    page.wait("return fetch('health').then((answer) => answer.ok)")
    assert page.logged() == []


def test_the_model_and_its_attention_are_shown(page: Page, server: Running) -> None:
    model = server.generator.model
    page.click("#tab-model")
    rows = len([*model.parameters(), *model.buffers()])
    page.wait("return document.querySelectorAll('#layers tbody tr').length === arguments[0]", rows)
    assert f"{sum(p.numel() for p in model.parameters()):,}" in page.texts("#model-figures dd")
    page.type("#sentence", SENTENCE)
    page.type("#layer", "1")
    page.click("#attend")
    page.wait("return document.querySelector('#map').getAttribute('aria-label').includes('layer 1, head 0')")
    assert " attends most to " in page.find("#map-detail").text
    page.type("#layer", "7")
    page.click("#attend")
    page.wait("return document.querySelector('#problem').textContent.includes('expected 0 to 1')")


def test_a_server_with_a_key_asks_for_it(browser: Any, server: Running) -> None:
    from bpe_llama.model.server.config import ServerConfig

    for keyed in serve({"small": server.generator}, ServerConfig(api_keys=("secret",))):
        browser.get(keyed.url)
        page = Page(browser)
        for key, problem in (("wrong", "the API key is missing"), ("secret", "the API key is wrong")):
            page.wait("return document.querySelector('#problem').textContent.includes(arguments[0])", problem)
            page.type("#key", key + "\n")
        page.wait("return document.querySelectorAll('#output-a .token').length > 0")
        assert page.texts("#problem") == [""] and page.find("#tab-chat").is_displayed()
        page.logged()


@pytest.mark.parametrize("setting", ["light", "dark", "phone"])
def test_the_page_is_accessible_and_fits(page: Page, setting: str) -> None:
    from axe_core_python.selenium import Axe

    browser = page.browser
    scheme = "dark" if setting == "dark" else "light"
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    width = 390 if setting == "phone" else 1100
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": setting == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.wait("return document.documentElement.dataset.theme === arguments[0]", scheme)
        for tab in ("tokens", "chat", "model"):
            page.click(f"#tab-{tab}")
            page.run("for (const each of document.querySelectorAll('details')) each.open = true")
            assert page.run("return document.documentElement.scrollWidth") <= width
            found = Axe().run(browser)["violations"]
            assert found == [], [(each["id"], each["nodes"][0]["html"]) for each in found]
            if folder := os.environ.get("BPE_LLAMA_SCREENSHOTS"):
                browser.save_screenshot(f"{folder}/{setting}-{tab}.png")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
