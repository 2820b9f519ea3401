"""The commands that need torch, one file each; `bpe_llama.cli` forwards to them and reports their errors."""

import typer

from bpe_llama.model.cli import chat, convert, demo, eval, finetune, generate, pretrain, serve
from bpe_llama.model.cli.options.common import with_common_options

app = typer.Typer(name="bpe-llama", no_args_is_help=True, add_completion=False, rich_markup_mode=None)

for _command in (pretrain, finetune, eval, generate, chat, serve, convert, demo):
    app.command(_command.__name__.rpartition(".")[2], epilog=_command.EXAMPLE)(with_common_options(_command.command))
