"""Read, write, choose and name chat templates: in a tokenizer's folder, its configuration, or a GGUF file's metadata.

A tokenizer has one template, a `str`, or several by name, a `dict`; transformers names the one for tools ``tool_use``.

Source: ``transformers.tokenization_utils_base`` 5.23 (``from_pretrained``, ``get_chat_template``,
``save_chat_templates``) and ``GGUFWriter.add_chat_template`` of gguf 0.19.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from bpe_llama._arguments import check_surrogates, instance, string
from bpe_llama._arguments import path as checked_path
from bpe_llama._core import shown
from bpe_llama._files import read_json, read_text, write_text

ChatTemplate: TypeAlias = "str | dict[str, str]"

CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
NAMED_FOLDER = "additional_chat_templates"
LEGACY_FILE = "chat_template.json"  # of transformers' processors
TEMPLATE_FILES = (TEMPLATE_FILE, LEGACY_FILE, f"{NAMED_FOLDER}/*.jinja")
"""Patterns of all files of chat templates in a tokenizer's folder."""
_GGUF = "tokenizer.chat_template"
_LONGEST_NAME = 255 - len(".jinja")  # bytes


def read_chat_templates(folder: Path, config: Mapping[str, Any]) -> ChatTemplate | None:
    """Return the chat template of a tokenizer's folder, or its named templates, or None.

    Template files override the configuration, even if none of them is the default template.

    Args:
        folder: May hold ``chat_template.jinja``, ``additional_chat_templates/NAME.jinja`` or ``chat_template.json``.
        config: The content of its ``tokenizer_config.json``.

    Raises:
        ValueError: If a template is no text or not UTF-8; the message names the file and the key.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> read_chat_templates(folder, {"chat_template": "from the config"})
        'from the config'
        >>> _ = (folder / "chat_template.jinja").write_text("from the file")
        >>> read_chat_templates(folder, {"chat_template": "from the config"})
        'from the file'
    """
    files = {"default": folder / TEMPLATE_FILE} if (folder / TEMPLATE_FILE).is_file() else {}
    files |= {file.name.removesuffix(".jinja"): file for file in sorted((folder / NAMED_FOLDER).glob("*.jinja"))}
    if list(files) == ["default"]:
        return read_text(files["default"])
    if files:
        return {name: read_text(file) for name, file in files.items()}
    given = config.get("chat_template")
    if given is not None:
        return _checked_templates(given, folder / CONFIG_FILE)
    legacy = folder / LEGACY_FILE
    if legacy.is_file():
        value = read_json(legacy)
        if not isinstance(value, dict) or not isinstance(value.get("chat_template"), str):
            raise ValueError(f"{legacy}: expected an object whose 'chat_template' is a text")
        return str(value["chat_template"])
    return None


def _checked_templates(value: Any, path: Path) -> ChatTemplate:
    """Return the templates of a configuration: a text, a list of names and texts, or a mapping."""
    if isinstance(value, str):
        check_surrogates(f"{path}: chat_template", value)
        return value
    if isinstance(value, list):
        for place, entry in enumerate(value):
            for key in ("name", "template"):
                if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
                    raise ValueError(
                        f"{path}: chat_template[{place}] is {shown(entry)}; expected an object with a 'name' and a "
                        f"'template', both text"
                    )
        value = {entry["name"]: entry["template"] for entry in value}
    if not isinstance(value, dict):
        raise ValueError(f"{path}: chat_template is {shown(value)}; expected a text or a list of named templates")
    for name, template in value.items():
        if not isinstance(template, str):
            raise ValueError(f"{path}: chat_template[{name!r}] is {shown(template)}; expected a text")
        check_surrogates(f"{path}: chat_template", name + template)
    return value


def write_chat_templates(folder: Path, chat_template: ChatTemplate | None) -> None:
    """Write a tokenizer's chat templates into its folder, for transformers and `read_chat_templates`.

    The default goes to ``chat_template.jinja``, others to ``additional_chat_templates/NAME.jinja``. Other files of
    these names and ``chat_template.json`` are removed, since they would be read as templates of this tokenizer.

    Args:
        folder: An existing folder.
        chat_template: A text, named texts or None.

    Raises:
        TypeError, ValueError: As of `template_files`. Nothing is written then.
        OSError: If a file cannot be written.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_chat_templates(folder, {"default": "D", "tool_use": "U"})
        >>> read_chat_templates(folder, {})
        {'default': 'D', 'tool_use': 'U'}
    """
    files = template_files(folder, chat_template)
    for file, template in files.items():
        file.parent.mkdir(exist_ok=True)
        write_text(file, template)
    for pattern in TEMPLATE_FILES:
        for file in set(folder.glob(pattern)) - files.keys():
            file.unlink(missing_ok=True)


def template_files(folder: Path, chat_template: ChatTemplate | None) -> dict[Path, str]:
    """Return the files of chat templates in a folder, and their texts.

    Raises:
        TypeError: If the templates are no text, mapping or None.
        ValueError: If a name cannot be a file name, a template is no text, or one holds a lone surrogate.
    """
    given = chat_template if isinstance(chat_template, Mapping) else {"default": chat_template}
    named = {} if chat_template is None else given
    instance("chat_template", chat_template, (str, Mapping, type(None)), "a text, named texts or None")
    files: dict[Path, str] = {}
    for name, template in named.items():
        if not isinstance(name, str) or not name or Path(name).name != name or "\\" in name or "\0" in name:
            raise ValueError(f"the chat template's name {shown(name)} cannot be the name of a file")
        if not isinstance(template, str):
            raise ValueError(f"the chat template {shown(name)} is {shown(template)}; expected a text")
        check_surrogates("the name or the text of a chat template", name + template)
        if len(name.encode()) > _LONGEST_NAME:
            raise ValueError(f"the chat template's name {shown(name)} is too long for the name of a file")
        files[folder / TEMPLATE_FILE if name == "default" else folder / NAMED_FOLDER / f"{name}.jinja"] = template
    return files


def choose_template(templates: ChatTemplate | None, chosen: str | None, has_tools: bool) -> str:
    """Return the template to render.

    Args:
        templates: The templates of the tokenizer.
        chosen: The name of one of them, or the text of another; None for ``tool_use`` with tools, else ``default``.
        has_tools: Whether tools are given, even an empty list.

    Raises:
        ValueError: If there is no template, or none of several is the default.
    """
    if chosen is not None and not isinstance(chosen, str):
        raise ValueError(f"chat_template is {shown(chosen)}; expected a template's text or name")
    if isinstance(templates, Mapping):
        if chosen is not None and chosen not in templates:
            return chosen
        for name in (chosen,) if chosen is not None else ("tool_use", "default") if has_tools else ("default",):
            if name in templates:
                if not isinstance(templates[name], str):
                    raise ValueError(f"tokenizer.chat_template[{name!r}] is {shown(templates[name])}; expected a text")
                return templates[name]
        raise ValueError(f"none of the chat templates {sorted(templates)} is the default; name one as chat_template")
    if chosen is not None:
        return chosen
    if templates is None:
        raise ValueError("this tokenizer has no chat template; set tokenizer.chat_template, or encode text instead")
    if not isinstance(templates, str):
        raise ValueError(f"tokenizer.chat_template is {shown(templates)}; expected a text, named texts or None")
    return templates


def with_system_role(messages: Sequence[Any], template: str) -> list[Any]:
    """Return messages with the role ``system`` in place of OpenAI's ``developer``, unless the template names that.

    Templates of other models skip the message, or write a role that the model does not know.

    Example:
        >>> with_system_role([{"role": "developer", "content": "Be brief."}], "{{ messages[0].role }}")
        [{'role': 'system', 'content': 'Be brief.'}]
    """
    if "developer" in template:
        return list(messages)
    return [
        {**each, "role": "system"} if isinstance(each, Mapping) and each.get("role") == "developer" else each
        for each in messages
    ]


def from_gguf_metadata(metadata: Mapping[str, Any]) -> ChatTemplate | None:
    """Return the chat templates in a GGUF file's metadata, or None.

    Raises:
        ValueError: If one is no text; the message names its key.
    """
    named = {}
    for key, template in metadata.items():
        if key == _GGUF or key.startswith(f"{_GGUF}."):
            if not isinstance(template, str):
                raise ValueError(f"{key} is {shown(template)}; expected a text")
            named[key[len(_GGUF) + 1 :] or "default"] = template
    return named.get("default") if set(named) <= {"default"} else named


def to_gguf_metadata(chat_template: ChatTemplate | None) -> dict[str, Any]:
    """Return the metadata of a GGUF file for chat templates.

    Examples:
        >>> to_gguf_metadata({"default": "D", "rag": "R"})
        {'tokenizer.chat_template': 'D', 'tokenizer.chat_template.rag': 'R', 'tokenizer.chat_templates': ['rag']}
    """
    if chat_template is None:
        return {}
    named = {"default": chat_template} if isinstance(chat_template, str) else chat_template
    metadata: dict[str, Any] = {
        _GGUF if name == "default" else f"{_GGUF}.{name}": template for name, template in named.items()
    }
    others = [name for name in named if name != "default"]
    return metadata | ({f"{_GGUF}s": others} if others else {})


class NamedTemplate(NamedTuple):
    """A chat template that has a name.

    Attributes:
        text: Its jinja2 source.
        special_tokens: The special tokens that it writes.
    """

    text: str
    special_tokens: tuple[str, ...]


NAMED_TEMPLATES = {
    "chatml": NamedTemplate(
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
    ),
    "llama3": NamedTemplate(
        "{{ '<|begin_of_text|>' }}"
        "{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{{ message['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
}
"""Templates by name.

Sources: ChatML, https://github.com/openai/openai-python/blob/release-v0.28.0/chatml.md; Llama 3,
https://github.com/meta-llama/llama3/blob/main/llama/tokenizer.py (``ChatFormat``).
"""


def template_tokens(template: str | None) -> tuple[str, ...]:
    """Return the special tokens that a named template writes; none for other templates.

    Examples:
        >>> template_tokens("chatml"), template_tokens("my.jinja")
        (('<|im_start|>', '<|im_end|>'), ())
    """
    return NAMED_TEMPLATES[template].special_tokens if template in NAMED_TEMPLATES else ()


def template_text(template: str) -> str:
    """Return the source of a template: of a name, of a file, or the text itself if it has a ``{``.

    Raises:
        FileNotFoundError: If it is none of these; the message suggests the nearest name.
        ValueError: If the file is not UTF-8.
    """
    if string("template", template) in NAMED_TEMPLATES:
        return NAMED_TEMPLATES[template].text
    if "{" in template:
        return template
    if checked_path("template", template).is_file():
        return read_text(Path(template))
    alike = difflib.get_close_matches(template, NAMED_TEMPLATES, n=1)
    hint = f"did you mean {alike[0]}?" if alike else f"expected {', '.join(NAMED_TEMPLATES)} or a file"
    raise FileNotFoundError(f"chat template {template}: no such name or file; {hint}")
