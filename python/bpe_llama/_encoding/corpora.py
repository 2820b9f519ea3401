"""Encode corpora: files of text to one file of ids, or to a folder of token shards."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bpe_llama._arguments import boolean
from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._encoding.batches import template_of
from bpe_llama._files import PathLike
from bpe_llama._progress import ProgressOption

if TYPE_CHECKING:
    from bpe_llama._corpus.shards import TokenShards


class CorpusTokenizer(CoreTokenizer):
    """A compiled tokenizer that encodes files."""

    def encode_files(
        self,
        paths: PathLike | Iterable[PathLike],
        out: PathLike,
        separator: str | None = None,
        eos: bool = True,
        *,
        bos: bool | None = None,
        field: str = "text",
        on_error: str = "raise",
        allowed_special: Iterable[str] | str = (),
        num_threads: int | None = None,
        progress: ProgressOption = None,
    ) -> int:
        """Return the number of ids written to a `.npy` file: the ids of all documents, concatenated.

        `numpy.load(out, mmap_mode="r")` reads them back. With a named pattern or that of superwords, files of any size
        are encoded in bounded memory; text that nothing divides for 16 MiB is refused. With another regex or a
        SentencePiece vocabulary, whole documents and their ids are in memory: some megabytes at a time, or one longer
        document of up to 256 MiB. A line has up to 256 MiB, too.

        Args:
            paths: A file, a folder, a glob pattern, or several of these. `.gz` and `.zst` are decompressed; a line of
                `.jsonl` and a row of `.parquet` is a document; any other file is one. A UTF-8 byte-order mark at the
                start of a file is no part of its text.
            out: Where the ids go: uint16 if `vocab_size` is at most 65,536, else uint32, one dimension.
            separator: Text that ends a document within a file.
            eos: Append to each document the ids that the post-processor appends to a text, else `eos_id`, if any.
            bos: `None` prepends to each document the ids that the post-processor prepends to a text, as `tok(...)`
                does; `True` prepends `bos_id`, `False` nothing.
            field: The field or column of `.jsonl` and `.parquet` files that holds the text.
            on_error: `"raise"` an error at the first row without text, or `"skip"` such rows and warn of their number;
                see `WordCounts.from_files`.
            allowed_special: Special tokens that stand for themselves in the documents, as in rendered chats, or
                `"all"`; otherwise they are ordinary text.
            num_threads: `None` for all processors. The ids do not depend on it.
            progress: `None` shows a bar on a terminal, `False` none; a function gets `bpe_llama.training.Progress`.

        Warns:
            UserWarning: The number of skipped rows and the place of the first.

        Raises:
            FileNotFoundError: If nothing matches one of the paths.
            ValueError: If a row holds no text, a file is not of its format, or text is longer than the limits above,
                naming file and place; if `out` does not
                end in `.npy`, `on_error` is unknown, `allowed_special` names an unknown token, or `bos` is true without
                a `bos_id`. `out` then stays unchanged.

        Examples:
            >>> import tempfile, pathlib
            >>> import numpy as np
            >>> folder = pathlib.Path(tempfile.mkdtemp())
            >>> _ = (folder / "a.txt").write_text("abab")
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False)
            >>> tok.encode_files(folder / "a.txt", folder / "ids.npy", progress=False), np.load(folder / "ids.npy")
            (2, array([256, 256], dtype=uint16))
        """
        from bpe_llama._corpus.bad_rows import BadRows
        from bpe_llama._corpus.token_files import encode_files

        bad_rows = BadRows(on_error)
        begins, ends = self.ids_around_documents(bos, eos)
        count = encode_files(
            self,
            paths,
            out,
            begins=begins,
            ends=ends,
            separator=separator,
            field=field,
            bad_rows=bad_rows,
            num_threads=num_threads,
            progress=progress,
            allowed_special=allowed_special,
        )
        bad_rows.warn(stacklevel=2)
        return count

    def encode_corpus(
        self,
        paths: PathLike | Iterable[PathLike],
        out: PathLike,
        *,
        dataset: str | None = None,
        config: str | None = None,
        split: str = "train",
        separator: str | None = None,
        eos: bool = True,
        bos: bool | None = None,
        field: str = "text",
        on_error: str = "raise",
        shard_tokens: int = 100_000_000,
        allowed_special: Iterable[str] | str = (),
        num_threads: int | None = None,
        progress: ProgressOption = None,
    ) -> TokenShards:
        """Return the token shards written to a folder, which training reads: ids and the places of documents.

        If a run ends early, even killed, the same call goes on after its last shard, with the same files at the end.

        Args:
            paths: As for :meth:`encode_files`; `[]` with a `dataset`. Files in `out` are left out.
            out: The folder: new, or that of a run with the same inputs and options.
            dataset: A data set of the Hugging Face Hub, ``ORG/NAME`` or ``ORG/NAME@REVISION``, or a folder, as
                `datasets.load_dataset` takes it.
            config: The configuration of the data set.
            split: The split of the data set, such as `"train"` or `"train[:1%]"`.
            separator: See :meth:`encode_files`.
            eos: See :meth:`encode_files`.
            bos: See :meth:`encode_files`.
            field: See :meth:`encode_files`; also the column of a data set.
            on_error: See :meth:`encode_files`.
            shard_tokens: A shard ends with the document that reaches this number of ids.
            allowed_special: See :meth:`encode_files`.
            num_threads: See :meth:`encode_files`.
            progress: See :meth:`encode_files`.

        Warns:
            UserWarning: The number of rows that this call skipped, and the place of the first.
            UserWarning: If the corpus holds no text.

        Raises:
            FileNotFoundError: If nothing matches one of the paths.
            ImportError: If a data set is given and `datasets` is not installed.
            ValueError: As for :meth:`encode_files`; if both paths and a data set are given, or neither; if the folder
                was begun with other inputs or options, or another run is going on in it.

        Examples:
            >>> import tempfile, pathlib
            >>> folder = pathlib.Path(tempfile.mkdtemp())
            >>> _ = (folder / "a.txt").write_text("abab|ab")
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False)
            >>> shards = tok.encode_corpus(folder / "a.txt", folder / "shards", separator="|", progress=False)
            >>> shards.documents, shards.tokens, shards.document(0).tolist()
            (2, 3, [256, 256])
        """
        from bpe_llama._corpus.bad_rows import BadRows
        from bpe_llama._corpus.encode_corpus import CorpusEncoder

        bad_rows = BadRows(on_error)
        begins, ends = self.ids_around_documents(bos, eos)
        corpus = CorpusEncoder.of(
            self,
            paths,
            out,
            dataset=dataset,
            config=config,
            split=split,
            begins=begins,
            ends=ends,
            separator=separator,
            field=field,
            on_error=on_error,
            shard_tokens=shard_tokens,
            allowed_special=allowed_special,
        )
        shards = corpus.encode(num_threads, bad_rows, progress)
        bad_rows.warn(stacklevel=2)
        return shards

    def ids_around_documents(self, bos: bool | None, eos: bool) -> tuple[list[int], list[int]]:
        """Return the ids before and after each document; see :meth:`encode_files`."""
        from bpe_llama._corpus.token_files import begins_and_ends

        begins, ends = begins_and_ends(self)
        if bos is not None:
            items = template_of(self, pair=False, special=False, bos=bos, eos=False)
            begins = [item.special for item in items if item.special is not None]
        return begins, ends if boolean("eos", eos) else []
