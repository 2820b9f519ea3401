"""``python -m bpe_llama.cli``."""

import sys

from bpe_llama.cli import main

if __name__ == "__main__":
    sys.exit(main())
