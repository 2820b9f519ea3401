"""What the package takes of rich, which the extra ``cli`` installs."""

try:
    from rich.cells import cell_len
    from rich.console import Console, Group
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError as error:
    message = "progress bars, tables and colours need rich: pip install 'bpe_llama[cli]'"
    raise ModuleNotFoundError(message, name="rich") from error

__all__ = ["Console", "Group", "Table", "Text", "cell_len"]
