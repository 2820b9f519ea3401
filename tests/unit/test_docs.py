"""The documents: every block of a guide runs, page by page, in an empty folder; paths and links lead somewhere."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from bpe_llama import Tokenizer
from tests.block_runner import BlockRunner
from tests.small_models import tiny_model

ROOT = Path(__file__).parents[2]
GUIDES = [ROOT / "docs" / "index.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "bench" / "NOTES.md",
    ROOT / "bench" / "results" / "cuda.md",
]
FOLDERS = [ROOT / name for name in (".cargo", ".ci", "bench", "docs", "model", "python", "rust", "tests")]
_BLOCK = re.compile(
    r"^(?P<skip><!-- not run: [^\n]+ -->\n)?```(?P<kind>sh|python)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE
)


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache in the layout of the Hugging Face Hub's that has the guides' repository."""
    cache = tmp_path_factory.mktemp("hub")
    repo = cache / "models--HuggingFaceTB--SmolLM2-135M-Instruct"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    tokenizer = Tokenizer.from_ranks({bytes([byte]): byte for byte in range(256)})
    tiny_model(vocab_size=256).save_pretrained(repo / "snapshots" / ("0" * 40))
    tokenizer.save(repo / "snapshots" / ("0" * 40))
    return cache


@pytest.mark.skipif(sys.platform == "win32", reason="the guide's commands are for a POSIX shell")
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path, runner: BlockRunner, hub_cache: Path) -> None:
    blocks = [block for block in _BLOCK.finditer(page.read_text("utf-8")) if not block["skip"]]
    for block in blocks:
        done = runner.run(block["kind"], block["body"], tmp_path, HF_HUB_CACHE=str(hub_cache))
        assert done.returncode == 0, f"{page.name}:\n{block['body']}\n{done.stdout}{done.stderr}"
    assert blocks, f"{page.name} holds nothing that runs"


def _prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def _anchors(page: Path) -> set[str]:
    """Return the fragment that GitHub gives each heading."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_paths_in_backticks_exist(page: Path) -> None:
    names = set(re.findall(r"`([\w.][\w./-]*)`", _prose(page)))
    paths = {name for name in names if "/" in name and ROOT / name.split("/")[0] in FOLDERS}
    sources = {path.as_posix() for folder in FOLDERS for path in folder.rglob("*") if path.suffix in (".py", ".rs")}
    missing = {name for name in paths if "TARGET" not in name and not (ROOT / name).exists()}
    for name in names - paths:  # a source file by the end of its path
        if name.endswith((".py", ".rs")) and not any(path.endswith(f"/{name}") for path in sources):
            missing.add(name)
    assert not missing, f"{page.name} names files that do not exist: {sorted(missing)}"


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page: Path) -> None:
    for path, _, anchor in (link.partition("#") for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", _prose(page))):
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {path}, which does not exist"
        assert not anchor or anchor in _anchors(target), f"{page.name} links to #{anchor}, which {target.name} lacks"


@pytest.mark.parametrize(
    ("page", "phrase", "source", "constant"),
    [
        ("ARCHITECTURE.md", "keys of 1,024 pieces", "rust/bpe/src/encode/scratch.rs", "BATCH: usize = 1024;"),
        ("ARCHITECTURE.md", "`cache_bytes` (60 MiB)", "rust/bpe/src/cache/mod.rs", "DEFAULT_LIMIT: usize = 60 << 20;"),
        ("ARCHITECTURE.md", "64 slots whose locks", "rust/simd/src/scratch.rs", "{ 64 }"),
        ("ARCHITECTURE.md", "64 bytes at a time", "rust/bpe/src/pretokenize/bitmask/backend.rs", "BLOCK: usize = 64;"),
        ("ARCHITECTURE.md", "8 KiB ahead", "rust/kernels/src/matmul/prefetch_distance.rs", "bytes: 8192,"),
        ("ARCHITECTURE.md", "sixteen lanes", "rust/simd/src/f32x16/vector.rs", "LANES: usize = 16;"),
        ("ARCHITECTURE.md", "spin for 0.1 ms", "rust/kernels/src/thread_pool.rs", "Duration::from_micros(100) }"),
        (
            "docs/guide/pretrain.md",
            "2^23 logits",
            "model/layers/loss/linear_cross_entropy.py",
            "CHUNK_LOGITS = 1 << 23",
        ),
        ("docs/guide/tokenizer.md", "60 MiB", "rust/bpe/src/cache/mod.rs", "DEFAULT_LIMIT: usize = 60 << 20;"),
        ("SECURITY.md", "2,000,000 steps", "python/bpe_llama/chat/limits.py", "steps: int = 2_000_000"),
        ("SECURITY.md", "4,000,000 characters", "python/bpe_llama/chat/limits.py", "text: int = 4_000_000"),
        ("SECURITY.md", "60 MB and 60 seconds", "python/bpe_llama/chat/limits.py", "memory: int = 60_000_000"),
        ("SECURITY.md", "over 1,000,000 steps", "python/bpe_llama/_gguf/token_types.py", "_MOST_STEPS = 1_000_000"),
        ("SECURITY.md", "more than 1 GiB", "python/bpe_llama/_files/read_write.py", "LARGEST_TEXT = 1 << 30"),
        ("SECURITY.md", "at most 8 MiB", "model/server/config.py", "body_bytes: int = 8 << 20"),
        ("SECURITY.md", "4,096 messages", "model/server/config.py", "messages: int = 4096"),
        ("SECURITY.md", "30 seconds for its head", "model/server/config.py", "header_seconds: float = 30.0"),
        (
            "SECURITY.md",
            "1,000,000 backtracking steps",
            "rust/bpe/src/pretokenize/regex/fancy.rs",
            "BACKTRACK_LIMIT: usize = 1_000_000;",
        ),
        (
            "SECURITY.md",
            "in Oniguruma after 10,000,000,",
            "rust/bpe/src/pretokenize/regex/oniguruma.rs",
            "BACKTRACK_LIMIT: u32 = 10_000_000;",
        ),
        (
            "SECURITY.md",
            "or 50,000,000 of one search",
            "rust/bpe/src/pretokenize/regex/oniguruma.rs",
            "SEARCH_LIMIT: usize = 50_000_000;",
        ),
        (
            "SECURITY.md",
            "so do 8 seconds",
            "rust/bpe/src/pretokenize/regex/patience.rs",
            "LONGEST: Duration = Duration::from_secs(8);",
        ),
    ],
)
def test_documents_quote_the_constants_of_the_code(page: str, phrase: str, source: str, constant: str) -> None:
    text = " ".join((ROOT / page).read_text("utf-8").split())
    assert phrase in text, f"{page} no longer says {phrase!r}: take the row out, or give it the new words"
    assert constant in (ROOT / source).read_text("utf-8"), f"{page} says {phrase!r}, but {source} has another value"
