"""``python -m bpe_llama``, and the command ``bpe-llama``: the command line, or how to install it."""

import os
import sys


def main() -> int:
    """Return the exit code of one command, as `bpe_llama.cli.main`; 2 if typer or rich is not installed."""
    _open_streams()
    try:
        from bpe_llama.cli import main as run
    except KeyboardInterrupt:  # these imports take as long as a short command
        print("bpe-llama: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "bpe_llama":
            raise
        print(f"bpe-llama: the command line needs {error.name}: pip install 'bpe_llama[cli]'", file=sys.stderr)
        return 2
    return run()


def _open_streams() -> None:
    """Open the null device for each standard stream that is closed, as after ``>&-``.

    Else the next file that is opened gets the number of the stream, and all that is printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


if __name__ == "__main__":
    sys.exit(main())
