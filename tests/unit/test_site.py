"""The site opens from the disk: nothing is loaded from elsewhere, and its search finds a page."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="the site is driven by selenium")
pytest.importorskip("mkdocs", reason="mkdocs builds the site")
ROOT = Path(__file__).parents[2]
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER) and os.environ.get("BPE_LLAMA_REQUIRE_DATA"):
    raise RuntimeError("Chromium and its driver are needed: apt-get install chromium chromium-driver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium and its driver are not installed")


def build(folder: Path) -> Path:
    """Return the first page of a site of two pages with the theme and the scripts of ours."""
    shutil.copytree(ROOT / "docs" / "_site", folder / "docs" / "_site")
    (folder / "docs" / "index.md").write_text("# One\n\n[Two](two.md)\n", "utf-8")
    (folder / "docs" / "two.md").write_text("# Two\n\nContinuous batching of a whale.\n", "utf-8")
    plugins = "plugins: [search, offline]\nhooks: []\nnav: [index.md, two.md]\n"  # without the reference
    (folder / "mkdocs.yml").write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\n{plugins}", "utf-8")
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--quiet"], cwd=folder, check=True, timeout=300)
    return folder / "site" / "index.html"


def test_search_works_from_the_disk_without_a_network(tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    first = build(tmp_path)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    no_network = "--host-resolver-rules=MAP * 0.0.0.0"
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900", no_network):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        browser.get(first.as_uri())
        field = browser.find_element("css selector", ".md-search__input")
        field.click()
        field.send_keys("whale")
        found = WebDriverWait(browser, 60, 0.1).until(
            lambda _: browser.find_elements("css selector", ".md-search-result__link")
        )
        assert "two.html" in found[0].get_attribute("href")
        loaded = browser.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
        assert [url for url in loaded if not url.startswith("file:")] == []
        assert browser.get_log("browser") == []
    finally:
        browser.quit()
