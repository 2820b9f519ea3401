"""The encoding half of `bpe_llama.Tokenizer`: special tokens by role, batches, chats, and more tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from bpe_llama._arguments import boolean, integer, iterator, reusable, string, strings, wrong
from bpe_llama._core import Tokenizer as CoreTokenizer
from bpe_llama._core import shown
from bpe_llama._encoding.batches import Batches, Span, columns_of, template_of
from bpe_llama._encoding.counting import CountingTokenizer
from bpe_llama._ends import END_ROLES, ends_of
from bpe_llama._loading.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Self

    from bpe_llama._loading.folder import TokenizerAttributes


DatasetT = TypeVar("DatasetT")


class EncodingTokenizer(CountingTokenizer):
    """A compiled tokenizer with the defaults and special tokens that its files name.

    Attributes:
        chat_template: The chat template, several by name, or ``None``.
    """

    chat_template: str | dict[str, str] | None

    def __init__(
        self,
        core: CoreTokenizer,
        *,
        chat_template: str | dict[str, str] | None = None,
        roles: Mapping[str, str] | None = None,
        extra: Iterable[str] = (),
        settings: Settings | None = None,
    ) -> None:
        """Wrap a compiled tokenizer; users call the class methods instead."""
        super().__init__()
        self.chat_template = dict(chat_template) if isinstance(chat_template, Mapping) else chat_template
        self._roles = dict(roles or {})
        self._extra = list(extra)
        self._settings = settings or Settings()

    @property
    def _attributes(self) -> TokenizerAttributes:
        """The attributes that the compiled tokenizer does not hold."""
        from bpe_llama._loading.folder import TokenizerAttributes

        return TokenizerAttributes(self.chat_template, self._roles, self._extra, self._settings)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Special tokens by role, as in transformers: ``{"eos_token": "</s>", ...}``."""
        ends = zip(END_ROLES, ends_of(self), strict=True)
        return {role: self.id_to_token(token_id) for role, token_id in ends if token_id is not None} | self._roles

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids that end generation: ``eos_id`` and other ids that the tokenizer's file names."""
        eos = () if self.eos_id is None else (self.eos_id,)
        return frozenset((*eos, *self._settings.end_ids))

    @property
    def cls_id(self) -> int | None:
        """The id of the classification token."""
        return self._role_id("cls_token")

    @property
    def sep_id(self) -> int | None:
        """The id of the separator token."""
        return self._role_id("sep_token")

    @property
    def mask_id(self) -> int | None:
        """The id of the mask token."""
        return self._role_id("mask_token")

    def _role_id(self, role: str) -> int | None:
        name = self._roles.get(role)
        return None if name is None else self.token_to_id(name)

    def __call__(
        self,
        texts: str | Sequence[str],
        text_pairs: str | Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        return_tensors: str | None = None,
        padding_side: str | None = None,
        truncation_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        pad_id: int | None = None,
        bos: bool = False,
        eos: bool = False,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        allowed_special: Iterable[str] | str = (),
        num_threads: int | None = None,
    ) -> dict[str, Any]:
        """Return ``input_ids`` and ``attention_mask`` of one text or a batch, as transformers' tokenizers do.

        The special tokens of the post-processor are included. Unlike in transformers, the text of a special token is
        encoded as ordinary text unless ``allowed_special`` names it.

        Args:
            texts: One text, or a sequence of ``B`` texts.
            text_pairs: The second text of each pair. For a single text, ``""`` means none.
            add_special_tokens: Whether to add the post-processor's special tokens.
            padding: ``True`` or ``"longest"`` pads to the longest row, ``"max_length"`` to ``max_length``.
            truncation: Truncate each row to ``max_length`` ids, special tokens included: ``True`` or
                ``"longest_first"`` shortens the longer text of a pair first, ``"only_first"`` and ``"only_second"``
                that text alone. By default rows are truncated if ``max_length`` is given without ``padding``.
            max_length: The maximum length of a row; by default ``model_max_length`` of the tokenizer's files. If they
                name none, ``truncation=True`` truncates nothing, with a warning.
            return_tensors: ``"np"`` or ``"pt"`` for int64 arrays of shape (B, T); ``None`` for lists.
            padding_side: ``"right"``, or ``"left"`` for generation; by default that of the tokenizer's files.
            truncation_side: The side that loses ids; by default likewise.
            pad_to_multiple_of: Pad to a multiple of this length. With truncation, ``max_length`` must be one, too.
            pad_id: The padding id, where the mask is 0; by default the tokenizer's ``pad_id``, else ``eos_id``, else 0.
            bos: Begin with ``bos_id``, once.
            eos: End with ``eos_id``, once.
            return_token_type_ids: Also return ``token_type_ids``: 0 for the first text, 1 for the second, as a rule.
                By default, ``model_input_names`` of the tokenizer's files or its class decides.
            return_attention_mask: Also return ``attention_mask``; by default likewise.
            return_special_tokens_mask: Also return ``special_tokens_mask``: 1 for added special tokens and padding.
            return_offsets_mapping: Also return ``offset_mapping``: the range of characters of each token.
            allowed_special: Special tokens to recognise in the texts, or ``"all"``.
            num_threads: ``None`` for all processors. The result does not depend on it; offsets are found on one.

        Raises:
            TypeError: If a length or ``pad_id`` is no int, or only one of ``texts`` and ``text_pairs`` is a str.
            ValueError: If tensors are requested without padding for rows of several lengths, or an option is unknown
                or out of range.

        Examples:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False)
            >>> tok(["ab", "abab"], padding=True, pad_id=0)
            {'input_ids': [[256, 0], [256, 256]], 'attention_mask': [[1, 0], [1, 1]]}
        """
        is_single = isinstance(texts, str)
        if is_single and text_pairs == "":
            text_pairs = None  # as in transformers
        if text_pairs is not None and is_single != isinstance(text_pairs, str):
            raise TypeError(
                f"texts is {shown(texts)} and text_pairs {shown(text_pairs)}; expected two str or two sequences"
            )
        expected = "a str or a sequence of str"
        firsts = [texts] if isinstance(texts, str) else list(iterator("texts", texts, expected, in_order=True))
        seconds: list[str] | None = None
        if isinstance(text_pairs, str):
            seconds = [text_pairs]
        elif text_pairs is not None:
            seconds = list(iterator("text_pairs", text_pairs, expected, in_order=True))
        if seconds is not None:
            for row, text in enumerate(seconds):
                string(f"text_pairs[{row}]", text)
            if len(seconds) != len(firsts):
                raise ValueError(f"{len(firsts)} texts have {len(seconds)} text_pairs; expected as many")
        if pad_id is not None and not 0 <= integer("pad_id", pad_id) < 2**32:
            raise ValueError(wrong("pad_id", pad_id, "an id from 0 to 2**32 - 1"))
        allowed_special = reusable("allowed_special", allowed_special)
        settings = self._settings
        if truncation is None:
            truncation = max_length is not None and padding is False
        batch = Batches(
            padding,
            truncation,
            max_length,
            return_tensors,
            settings.padding_side if padding_side is None else padding_side,
            settings.truncation_side if truncation_side is None else truncation_side,
            pad_to_multiple_of,
        ).limited(settings.model_max_length)
        template = template_of(self, pair=seconds is not None, special=add_special_tokens, bos=bos, eos=eos)
        keys = columns_of(
            settings.model_input_names,
            return_token_type_ids=return_token_type_ids,
            return_attention_mask=return_attention_mask,
            return_special_tokens_mask=return_special_tokens_mask,
            return_offsets_mapping=return_offsets_mapping,
        )
        columns: list[list[list[int]]] = []
        spans: list[Any] = []
        for column in (firsts, seconds):
            if column is None:
                continue
            if return_offsets_mapping:
                found = [self.encode_with_offsets(text, allowed_special=allowed_special) for text in column]
                columns.append([ids for ids, _ in found])
                spans.append([offsets for _, offsets in found])
            else:
                columns.append(self.encode_batch(column, num_threads, allowed_special=allowed_special))
        fill = next((token_id for token_id in (pad_id, self.pad_id, self.eos_id) if token_id is not None), 0)

        def span_of_first(which: int, row: int, token: int) -> Span:
            text = (firsts, seconds or [])[which][row]
            return self.encode_with_offsets(text, allowed_special=allowed_special, first=token)[1][token]

        rows = batch.rows(columns[0], columns[1] if len(columns) > 1 else None, template, spans, keys, span_of_first)
        return batch.of(rows, fill, keys, is_single=is_single)

    def encode_dataset(
        self,
        dataset: DatasetT,
        column: str = "text",
        *,
        add_special_tokens: bool = True,
        bos: bool = False,
        eos: bool = False,
        max_length: int | None = None,
        truncation_side: str | None = None,
        allowed_special: Iterable[str] | str = (),
        batch_size: int = 1000,
        num_threads: int | None = None,
    ) -> DatasetT:
        """Return a data set of Hugging Face's `datasets` with ``input_ids`` and ``length`` in place of its texts.

        As with `datasets.Dataset.map`, the result is written to files and found again by the same call; an
        `IterableDataset` is encoded while it is read. Other columns, such as labels, stay. Ids pass from our threads to
        Arrow's tables without Python lists.

        Args:
            dataset: A `Dataset`, an `IterableDataset`, or a dictionary with splits of either.
            column: The column of texts.
            add_special_tokens: See :meth:`__call__`, as for ``bos``, ``eos`` and ``allowed_special``.
            bos: Begin with ``bos_id``, once.
            eos: End with ``eos_id``, once.
            max_length: Truncate each row to this number of ids, special tokens included.
            truncation_side: The side that loses ids; by default that of the tokenizer's files.
            allowed_special: Special tokens to recognise in the texts, or ``"all"``.
            batch_size: Texts that are in memory and encoded at once.
            num_threads: ``None`` for all processors. The result does not depend on it.

        Returns:
            ``dataset``'s type, without ``column``, with ``input_ids``, a list of int32, and ``length``, int32.

        Raises:
            ImportError: If `datasets` is not installed.
            TypeError: If ``dataset`` is no data set of that library.
            ValueError: If there is no such column, it holds no text, a column has a name of the result, or an option is
                out of range. For an `IterableDataset`, the first three may be found while it is read.

        Examples:
            >>> import datasets
            >>> from bpe_llama import Tokenizer
            >>> datasets.disable_progress_bars()
            >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False)
            >>> texts = datasets.Dataset.from_dict({"text": ["ab", "abab"], "label": [0, 1]})
            >>> tok.encode_dataset(texts)[1]
            {'label': 1, 'input_ids': [256, 256], 'length': 2}
        """
        from bpe_llama._encoding.hf_datasets import EncodeColumn, encode_dataset

        side = self._settings.truncation_side if truncation_side is None else truncation_side
        if integer("batch_size", batch_size) < 1:
            raise ValueError(wrong("batch_size", batch_size, "at least 1"))
        allowed_special = reusable("allowed_special", allowed_special)
        self.encode_batch([], num_threads, allowed_special=allowed_special)  # refuses what is no option
        encode = EncodeColumn(
            self,
            column,
            tuple(template_of(self, pair=False, special=add_special_tokens, bos=bos, eos=eos)),
            Batches(False, max_length is not None, max_length, None, "right", side),
            allowed_special if isinstance(allowed_special, str) else tuple(allowed_special),
            num_threads,
        )
        return cast("DatasetT", encode_dataset(dataset, encode, batch_size))

    def apply_chat_template(
        self,
        messages: Sequence[Any],
        add_generation_prompt: bool | None = None,
        *,
        tokenize: bool = True,
        tools: Iterable[Mapping[str, Any] | Callable[..., Any]] | None = None,
        documents: Iterable[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        continue_final_message: bool | str = False,
        return_assistant_tokens_mask: bool = False,
        return_dict: bool = False,
        **variables: Any,
    ) -> Any:
        """Return the ids of a conversation in the format of the model's chat template.

        The text is that of transformers' `apply_chat_template`. The text of a special token inside a message is encoded
        as ordinary text. Rendering is sandboxed, and bounded in time and memory.

        Args:
            messages: Mappings with a `role` ("system", "user", "assistant") and a `content`: a text, None, or a list of
                parts. For a list of such lists, the result is a list, too; `as_transformers` pads and truncates.
            add_generation_prompt: Append the header of the assistant's answer; None means True unless
                `continue_final_message` is given.
            tokenize: `False` returns the text instead, a `str`.
            tools: Functions that the model may call: JSON schemas, or Python functions with type hints and a docstring
                in Google's style, which are converted to JSON schemas.
            documents: Documents for the model, each a mapping, usually with `title` and `text`.
            chat_template: The text of another template, or the name of one of `tokenizer.chat_template`. By default
                "tool_use" if there is one and tools are given, else "default".
            continue_final_message: End the text at the end of the last message, so that the model continues it; a str
                names another field of the message than `content`.
            return_assistant_tokens_mask: Return a dict with `input_ids`, `attention_mask` and `assistant_masks`, which
                is 1 for each token that a `{% generation %}` block of the template wrote.
            return_dict: Return a dict with `input_ids` and `attention_mask`.
            **variables: Read by the template, such as `enable_thinking`.

        Raises:
            ValueError: If there is no template, it fails, exceeds a limit or rejects the messages; if options exclude
                each other; or if a keyword is neither an option nor a variable of the template.

        Examples:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False)
            >>> tok.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"
            >>> talk = [{"role": "user", "content": "Hi"}]
            >>> tok.apply_chat_template(talk, tokenize=False)
            'user: Hi;'
            >>> tok.apply_chat_template(talk, tokenize=False, continue_final_message=True)
            'user: Hi'
        """
        from bpe_llama import chat

        options: dict[str, Any] = {
            "add_generation_prompt": add_generation_prompt,
            "tools": tools,
            "documents": documents,
            "chat_template": chat_template,
            "continue_final_message": continue_final_message,
            **variables,
        }
        is_masked = boolean("return_assistant_tokens_mask", return_assistant_tokens_mask)
        is_dict = boolean("return_dict", return_dict)
        if _begins_with_a_list(messages) and not _begins_with_a_list(messages[0]):
            options |= {name: reusable(name, options[name]) for name in ("tools", "documents")}
            options |= {"tokenize": tokenize, "return_assistant_tokens_mask": is_masked, "return_dict": is_dict}
            rows = [self.apply_chat_template(row, **options) for row in messages]
            return {key: [row[key] for row in rows] for key in rows[0]} if is_masked or is_dict else rows
        if not boolean("tokenize", tokenize):
            if is_masked or is_dict:
                raise ValueError("return_assistant_tokens_mask and return_dict need tokenize=True")
            return chat.render_for(self, messages, **options)
        if is_masked:
            ids, is_answer = chat.encode_marked_chat(self, messages, **options)
            return {
                "input_ids": ids,
                "attention_mask": [1] * len(ids),
                "assistant_masks": list(map(int, is_answer)),
            }
        ids = chat.encode_chat(self, messages, **options)
        return {"input_ids": ids, "attention_mask": [1] * len(ids)} if is_dict else ids

    # -- extending -----------------------------------------------------------------------------------------------------

    def with_special_tokens(self, tokens: Sequence[str]) -> Self:
        """Return this tokenizer with more special tokens, which `encode` finds only with ``allowed_special``.

        Their ids follow the last id, in this order; a token that exists keeps its id and becomes special.

        Raises:
            ValueError: If a token is empty.

        Examples:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False)
            >>> grown = tok.with_special_tokens(["<|user|>"])
            >>> grown.encode("<|user|>ab", allowed_special="all"), len(tok), len(grown)
            ([257, 256], 257, 258)
        """
        tokens = strings("tokens", tokens, in_order=True)
        grown = self._grown(tokens, special=True)
        named = set(self.special_tokens_map.values())
        grown._extra = list(dict.fromkeys((*self._extra, *(token for token in tokens if token not in named))))
        return grown

    def with_tokens(self, tokens: Sequence[str]) -> Self:
        """Return this tokenizer with more tokens, which are found in any text before it is split into pre-tokens.

        Their ids follow the last id, in this order; a token that exists keeps its id, and a special one stays special.
        As in ``tokenizers``, a normalizer runs before they are searched.

        Raises:
            ValueError: If a token is empty.

        Examples:
            >>> from bpe_llama import Tokenizer
            >>> tok = Tokenizer.train_from_iterator(["abab"], vocab_size=257, progress=False)
            >>> tok.with_tokens(["bab"]).encode("abab")
            [64, 257]
        """
        return self._grown(strings("tokens", tokens, in_order=True), special=False)

    def _grown(self, tokens: list[str], *, special: bool) -> Self:
        # Only the pipeline of a tokenizer.json normalizes text before it searches added tokens.
        normalized = not special and self.normalizes_added_tokens
        known = () if special else self.special_tokens
        new = [(token, special, False, False, False, normalized) for token in tokens if token not in known]
        return type(self)(self.with_added_tokens(new), **vars(self._attributes))


def _begins_with_a_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], (list, tuple))
