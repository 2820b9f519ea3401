"""``python -m bpe_llama``, and the command ``bpe-llama``: the command line, or how to install it."""

import sys


def main() -> int:
    """Return the exit code of one command, as `bpe_llama.cli.main`; 2 if typer or rich is not installed."""
    try:
        from bpe_llama.cli import main as run
    except KeyboardInterrupt:  # these imports take as long as a short command
        print("bpe-llama: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "bpe_llama":
            raise
        print(f"bpe-llama: the command line needs {error.name}: pip install 'bpe-llama[cli]'", file=sys.stderr)
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
