"""`bpe-llama serve`: an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from bpe_llama.model.adapters import lora
from bpe_llama.model.cli.loading import (
    adapter_path,
    check_quantized,
    checkpoint_path,
    group_size_of,
    load_generator,
    tokenizer_of_adapter,
)
from bpe_llama.model.cli.options.common import DeviceOption, GroupSizeOption, QuantizeOption
from bpe_llama.model.generation.text_generator import TextGenerator
from bpe_llama.tokenizer import Tokenizer

EXAMPLE = "Example: bpe-llama serve SmolLM2-135M-Instruct.Q4_1.gguf --port 8000"
_NEEDED = ("fastapi", "uvicorn", "pydantic", "prometheus_client")


def refuse_model_option(value: str | None) -> None:
    """Raise for --model, which other commands have."""
    if value is not None:
        raise typer.BadParameter(f"serve takes the model without a flag: bpe-llama serve {value}")


def command(
    model: Annotated[str, typer.Argument(help="A folder with config.json, a .gguf, or a name of the Hub.")],
    by_option: Annotated[
        str | None, typer.Option("--model", "-m", hidden=True, is_eager=True, callback=refuse_model_option)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: a free one.")] = 8000,
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", "-t", help="Default: the model's own.")] = None,
    model_name: Annotated[str | None, typer.Option(help="Name for clients.  [default: the file's name]")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="A LoRA adapter, served as a model; repeatable.")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar="BPE_LLAMA_API_KEY", help="Key that clients must send; repeatable.  [default: none]"),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="A web page that may read answers, such as http://localhost:3000."),
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Sequences that run at once.")] = 16,
    max_queue: Annotated[int, typer.Option(min=0, help="Sequences that may wait; if more would: status 429.")] = 256,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a sequence, prompt included.  [default: the context]")
    ] = None,
    prefix_cache_mb: Annotated[int, typer.Option(min=0, help="Memory of the prefix cache, in MB; 0: none.")] = 256,
    share_prefixes: Annotated[
        bool,
        typer.Option(
            "--share-prefixes",
            help="Share cached prefixes among keys: times tell what others sent.",
        ),
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds after which a request ends; 0: never.")] = 600.0,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that running requests have after Ctrl-C.")] = 30.0,
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16.")] = "auto",
    device: DeviceOption = "auto",
    quantized: QuantizeOption = None,
    group_size: GroupSizeOption = None,
) -> None:
    """Serve a model over HTTP, as OpenAI's API, until Ctrl-C. Once it accepts requests, it prints its URL."""
    check_installed()
    from bpe_llama.model.server.app import create_app
    from bpe_llama.model.server.config import ServerConfig, is_loopback
    from bpe_llama.model.server.page import page_routes
    from bpe_llama.model.server.running import run
    from bpe_llama.model.server.scheduler import Scheduler
    from bpe_llama.model.server.scheduler.memory import check_fits

    config = ServerConfig(
        host=host, api_keys=tuple(api_key or ()), cors_origins=tuple(cors or ()), timeout=timeout or None
    )
    if not 0 <= port < 1 << 16:
        raise ValueError(f"--port is {port}; expected 0 to 65535")
    adapters = read_adapters(adapter or ())
    name = model_name or default_name(model)
    if name in adapters:
        raise ValueError(f"--adapter has the name {name!r}, which is the model's; expected another")
    sizes: dict[str, Any] = {"slots": slots, "max_length": max_length, "prefix_cache_bytes": prefix_cache_mb << 20}
    check_quantized(quantized, group_size)
    group_size = group_size_of(checkpoint_path(model), quantized, group_size)
    fits = partial(check_fits, quantized=quantized, group_size=group_size, engines=1 + len(adapters), **sizes)
    base = load_generator(model, tokenizer, dtype, device, None, quantized, group_size, check=fits)
    generators = {name: base} | {each: adapted(base, path, tokenizer) for each, path in adapters.items()}
    scheduler = Scheduler(generators, max_queue=max_queue, share_prefixes=share_prefixes, **sizes)
    app = create_app(scheduler, config, routes=page_routes(scheduler), grace=grace)

    def announce(url: str) -> None:
        if not is_loopback(host) and not api_key:
            typer.echo(f"anyone who can connect to {host} can use this server; --api-key asks for a key", err=True)
        typer.echo(url)

    run(app, host, port, announce=announce)


def check_installed() -> None:
    """Raise an ImportError that names the extra if a package of the server is not installed."""
    try:
        for name in _NEEDED:
            import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(f"serve needs {error.name}: pip install 'bpe_llama[serve]'") from error


def default_name(model: str) -> str:
    """Return the name of a model from its path.

    Example:
        >>> default_name("models/SmolLM2-135M.gguf"), default_name("org/smol")
        ('SmolLM2-135M', 'smol')
    """
    name = Path(model).resolve().name
    return name.removesuffix(".gguf") or "model"


def read_adapters(texts: Sequence[str]) -> dict[str, str]:
    """Return the adapters' folders by name.

    Example:
        >>> read_adapters(["poet=adapters/poet"])
        {'poet': 'adapters/poet'}
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--adapter is {text!r}; expected NAME=PATH")
        if name in found:
            raise ValueError(f"--adapter has the name {name!r} twice")
        found[name] = path
    return found


def adapted(base: TextGenerator, adapter: str, tokenizer: str | None = None) -> TextGenerator:
    """Return a generator that applies an adapter to the weights of the base model, without a copy of them.

    The adapter is not merged, since merging would change the weights for the other models. A tokenizer beside the
    adapter goes before that of the base model, unless ``tokenizer``, of --tokenizer, names the latter.
    """
    folder = adapter_path(adapter)
    model = lora.load(lora.copy_sharing_weights(base.model), folder)
    own = tokenizer_of_adapter(folder) if tokenizer is None else None
    return TextGenerator(model.eval(), base.tokenizer if own is None else Tokenizer.from_file(own))
