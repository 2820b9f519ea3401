"""The base class of all models: initialization from a seed, loading, saving, attention backends.

Shapes: ``B`` batch, ``T`` length, ``N`` heads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from bpe_llama._arguments import boolean, check_keywords, instance, integer, iterator, keywords_of, torch_seed, wrong
from bpe_llama._arguments import path as checked_path
from bpe_llama._core import shown
from bpe_llama._hub.fetching import HUB_OPTIONS, HubOptions, local_path
from bpe_llama.model.config import LlamaConfig
from bpe_llama.model.device import check_memory, resolve_device, resolve_dtype
from bpe_llama.model.generation_config import GenerationConfig
from bpe_llama.model.layers.attention import Attention
from bpe_llama.model.layers.attention_backends import backend_named, recording
from bpe_llama.model.layers.moe import SumOverRanks
from bpe_llama.model.layers.norm import RMSNorm
from bpe_llama.model.layers.rope import RotaryEmbedding

if TYPE_CHECKING:
    from typing_extensions import Unpack

Model = TypeVar("Model", bound="Pretrained")


class LoaderOptions(TypedDict, total=False):
    """Further options of `bpe_llama.model.checkpoints.load`.

    Attributes:
        progress: Called after each tensor with the tensors read so far and their total.
        check: Called with the model on the meta device and its device, before memory is allocated.
        num_labels: The number of labels of a classifier instead of the config's.
    """

    progress: Callable[[int, int], None] | None
    check: Callable[[Pretrained, torch.device], None] | None
    num_labels: int | None


class PretrainedOptions(HubOptions, LoaderOptions, total=False):
    """The options of `Pretrained.from_pretrained`: those of a repository, and those of the loader."""


class Pretrained(nn.Module):
    """A model that is built from a config.

    Args:
        config: Config of the model.
        device: Device of the weights, by default torch's default device; ``meta`` allocates nothing.
        dtype: Dtype of the weights, by default torch's default dtype.
        seed: Seed of the initialization, which does not use torch's global generator.

    Raises:
        ValueError: If the weights exceed the device's free memory.
    """

    over_ranks: SumOverRanks | None = None
    """Set while several ranks train the model together, each on a part of every batch."""
    NEW_HEAD: ClassVar[tuple[str, ...]] = ()
    """Weights that a checkpoint of a causal LM lacks; loading one initializes them."""

    @torch.inference_mode(False)  # weights created in a caller's inference mode have no version and no gradient
    def __init__(
        self,
        config: LlamaConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        instance("config", config, LlamaConfig, "a LlamaConfig; from_pretrained takes a path")
        seed = torch_seed(seed)
        device = torch.get_default_device() if device is None else resolve_device(device)
        dtype = torch.get_default_dtype() if dtype is None else resolve_dtype(dtype)
        with torch.device("meta"):  # torch's own initialization would use the global generator
            self.build(config)
        self.config = config
        self.generation_config = GenerationConfig()
        self.to(dtype)
        self.tie_weights()
        if device.type != "meta":
            self.allocate(device)
            self.reset_parameters(seed)

    def build(self, config: LlamaConfig) -> None:
        """Create the modules; their weights are initialized later."""
        raise NotImplementedError

    def tie_weights(self) -> None:
        """Tie ``lm_head`` to the embedding if the config has ``tie_word_embeddings``."""

    def allocate(self, device: torch.device) -> None:
        """Allocate uninitialized weights on a device, as `nn.Module.to_empty` does, without its slow imports.

        Buffers of a checkpoint are zeros. Weights that are tied stay tied.

        Raises:
            ValueError: If the weights exceed the device's free memory.
        """
        size = sum(weight.nbytes for weight in self.parameters())
        what = f"a model with weights in {str(self.dtype).removeprefix('torch.')}"
        check_memory(size, device, what, "use a dtype of fewer bits, or a smaller model")
        allocated: dict[nn.Parameter, nn.Parameter] = {}
        for module in self.modules():
            for name, weight in module.named_parameters(recurse=False):
                if weight not in allocated:
                    empty = torch.empty(weight.shape, dtype=weight.dtype, device=device)
                    allocated[weight] = nn.Parameter(empty, weight.requires_grad)
                setattr(module, name, allocated[weight])
            for name, buffer in module.named_buffers(recurse=False):
                # `zeros_like` of a meta tensor imports sympy, which takes a second.
                setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype, device=device))
            if isinstance(module, RotaryEmbedding):
                module.inv_freq = torch.empty(0, device=device)
                module.reset_frequencies()

    @torch.no_grad()
    def reset_parameters(self, seed: int = 0, only: Collection[str] | None = None) -> None:
        """Initialize all weights, or those in ``only``: normal (``initializer_range``), biases 0, norms 1.

        The factor of a `ZeroCenteredRMSNorm` is 1 if its weights are 0.
        """
        norms = {id(norm.weight): norm.initial for norm in self.modules() if isinstance(norm, RMSNorm)}
        generator = torch.Generator().manual_seed(torch_seed(seed))
        for name, weight in self.named_parameters():
            if only is not None and name not in only:
                continue
            if name.endswith("bias"):
                weight.zero_()
            elif weight.ndim == 1 or name.split(".")[-2].endswith("norm"):
                weight.fill_(norms.get(id(weight), 1.0))
            else:
                in_place = weight.dtype == torch.float32 and weight.device.type == "cpu"
                values = weight if in_place else torch.empty(weight.shape, dtype=torch.float32, device="cpu")
                weight.copy_(values.normal_(0.0, self.config.initializer_range, generator=generator))

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Return the EOS ids of ``config`` and ``generation_config``."""
        return tuple(dict.fromkeys((*self.config.eos_token_ids, *self.generation_config.eos_token_ids)))

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the embedding and the hidden states."""
        return next(self.parameters()).dtype

    def set_attn_implementation(self, name: str) -> None:
        """Set the attention backend: ``"sdpa"`` (the default), ``"eager"``, ``"flex"`` or ``"flash"``.

        Raises:
            ValueError: If there is no such backend.
            ImportError: If it needs a package that is not installed.
        """
        backend = backend_named(name)
        for module in self.modules():
            if isinstance(module, Attention):
                module.backend = backend

    def attention_weights(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> list[Tensor]:
        """Return the attention weights of each layer, (B, N, T, T); rows sum to 1.

        Args:
            input_ids: int64 (B, T).
            attention_mask: (B, T), zero for padding; the rows of padding are meaningless.

        Raises:
            ValueError: If shapes do not fit or an id is outside the vocabulary.

        Cost: one forward pass by the ``eager`` backend; memory grows with T squared.

        Example:
            >>> from bpe_llama.model import LlamaConfig, LlamaForCausalLM
            >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            ...                      num_attention_heads=2)
            >>> first, second = LlamaForCausalLM(config).attention_weights(torch.tensor([[1, 5, 7]]))
            >>> first.shape, first[0, 0, 0].tolist()
            (torch.Size([1, 2, 3, 3]), [1.0, 0.0, 0.0])
        """
        layers = [module for module in self.modules() if isinstance(module, Attention)]
        backends, recorded = [layer.backend for layer in layers], list[Tensor]()
        try:
            for layer in layers:
                layer.backend = recording(recorded)
            self(input_ids, attention_mask)
        finally:
            for layer, backend in zip(layers, backends, strict=True):
                layer.backend = backend
        return recorded

    @torch.no_grad()
    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
        *,
        pieces: Mapping[int, Sequence[int]] | None = None,
        seed: int = 0,
    ) -> nn.Embedding:
        """Return the embedding after resizing it, and the head if there is one, to ``new_num_tokens`` rows in place.

        The rows of kept ids do not change. A new row is the mean of the old rows, or of those that ``pieces`` lists.
        Dtype and device stay, a tied head stays tied, and ``config.vocab_size`` is updated. An optimizer has to be
        created afterwards.

        Args:
            new_num_tokens: The new number of ids. A smaller one removes the last rows. None keeps the number.
            pad_to_multiple_of: Round the number up to a multiple of this.
            mean_resizing: False draws new rows at random: normal, ``initializer_range``. The means have none of the
                noise that transformers adds (standard deviation 3e-5 of the rows').
            pieces: Old ids whose mean row a new id takes, such as `training.token_pieces` returns. An id that has a row
                already, as in a padded embedding, may be listed, too; its row is replaced.
            seed: Seed of random rows.

        Raises:
            TypeError: If embedding or head is adapted or quantized.
            ValueError: If a number is below 1, an id of ``pieces`` is out of range, or a special id of the config has
                no row left. The model is unchanged.

        Source: Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models".

        Example:
            >>> from bpe_llama.model import LlamaConfig, LlamaForCausalLM
            >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
            ...                      num_attention_heads=2)
            >>> model = LlamaForCausalLM(config)
            >>> model.resize_token_embeddings(33, pieces={32: [5, 7]})
            Embedding(33, 16)
            >>> torch.allclose(model.lm_head.weight[32], model.lm_head.weight[[5, 7]].mean(0))
            True
        """
        boolean("mean_resizing", mean_resizing)
        seed = torch_seed(seed)
        if pieces is not None:
            instance("pieces", pieces, Mapping, "a mapping of ids to lists of ids")
        decoder: Any = getattr(self, "model", self)
        embedding, head = decoder.embed_tokens, getattr(self, "lm_head", None)
        if not isinstance(embedding, nn.Embedding) or not _is_head(head):
            name, found = ("lm_head", head) if isinstance(embedding, nn.Embedding) else ("embed_tokens", embedding)
            raise TypeError(
                f"{name} is a {type(found).__name__}, which cannot be resized; expected no adapter and no quantization"
            )
        if new_num_tokens is None and pad_to_multiple_of is None:
            return embedding
        before = embedding.num_embeddings
        size = before if new_num_tokens is None else new_num_tokens
        multiple = 1 if pad_to_multiple_of is None else pad_to_multiple_of
        for name, value in (("new_num_tokens", size), ("pad_to_multiple_of", multiple)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {shown(value)}; expected an integer of at least 1")
        size += -size % multiple
        pieces = {new: list(iterator(f"pieces[{new}]", old, "a list of ids")) for new, old in (pieces or {}).items()}
        if size == before and not pieces:
            return embedding
        if pieces and not mean_resizing:
            raise ValueError("mean_resizing is false, but pieces are given, which are for means; expected one of them")
        for new, old in pieces.items():
            if not 0 <= new < size or not old or not all(0 <= piece < before for piece in old):
                raise ValueError(f"pieces of id {new} are {old}; expected ids below {before}, for an id below {size}")
        config = self.config.replace(vocab_size=size)  # raises for a special id without a row
        lost = [token_id for token_id in self.generation_config.eos_token_ids if size <= token_id < before]
        if lost:
            raise ValueError(f"eos_token_id {lost[0]} of the generation config is outside the vocabulary of {size}")
        self.config = decoder.config = config
        generator = None if mean_resizing else torch.Generator().manual_seed(seed)
        weights = {id(module.weight): module.weight for module in (embedding, head) if module is not None}
        for weight in weights.values():  # one if they are tied
            # The parameter stays the same object: an optimizer created earlier fails instead of training the old rows.
            weight.grad, weight.data = None, _resized(weight, size, pieces, generator, config.initializer_range)
        embedding.num_embeddings = size
        if head is not None:
            head.out_features = size
        return embedding

    def gradient_checkpointing_enable(self, enable: bool = True, *, every: int = 1) -> None:
        """Store only the input of every ``every``-th layer for the backward pass, which recomputes the layer.

        Less memory, more time.
        """
        boolean("enable", enable)
        integer("every", every, 1)
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = every if enable else 0  # type: ignore[assignment]

    @classmethod
    def from_pretrained(
        cls: type[Model],
        path: str | Path,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str = "auto",
        **options: Unpack[PretrainedOptions],
    ) -> Model:
        """Return the model of a path or of a repository on the Hugging Face Hub, in evaluation mode.

        Args:
            path: A Hugging Face folder, a Meta or Mistral folder, or a ``.gguf`` file. Else a repository:
                ``ORG/NAME``, ``ORG/NAME@REVISION`` or ``ORG/NAME/FILE.gguf``. What exists is a path, and so is a
                `pathlib.Path`.
            dtype: ``"auto"`` is the checkpoint's.
            device: ``"auto"`` is CUDA if available, else the CPU.
            **options: For a repository ``revision``, ``token``, ``cache_dir``, ``local_files_only`` and ``subfolder``,
                as in transformers; and ``progress``, ``check`` and ``num_labels``: see `LoaderOptions`.

        Of a repository the config and the weights in one format are fetched, safetensors before others.

        Raises:
            OSError: If there is neither path nor repository, or it cannot be fetched; the message says why.
            ValueError: See `bpe_llama.model.checkpoints.load`.
        """
        from bpe_llama.model.checkpoints import load  # loaders import models
        from bpe_llama.model.checkpoints.hub_files import needed_files

        check_keywords("from_pretrained", options, {"dtype", "device", *keywords_of(PretrainedOptions)})
        hub: Any = {name: value for name, value in options.items() if name in HUB_OPTIONS}
        own: Any = {name: value for name, value in options.items() if name not in HUB_OPTIONS}
        with torch.inference_mode(False):  # as in `__init__`; a decorator would be a frame that warnings count
            return load(local_path(path, needed_files, **hub), cls, dtype=dtype, device=device, **own)

    def save_pretrained(self, folder: str | Path, portable: bool = True) -> None:
        """Write config, generation config and weights into a folder; see `checkpoints.huggingface.save`.

        Args:
            folder: Created if it does not exist.
            portable: Refuse a model that no class of transformers computes; False writes it for this package alone.

        Raises:
            ValueError: If layers were adapted or quantized, or the model is not portable.

        Example:
            >>> import tempfile
            >>> from bpe_llama.model import LlamaConfig, LlamaForCausalLM
            >>> config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
            ...                      num_attention_heads=2)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     LlamaForCausalLM(config).save_pretrained(folder)
            ...     LlamaForCausalLM.from_pretrained(folder, device="cpu").config.hidden_size
            16
        """
        from bpe_llama.model.checkpoints.huggingface import save

        save(self, checked_path("folder", folder), portable)


def _is_head(module: nn.Module | None) -> bool:
    """Return whether a module is a head without adapter and quantization, or None."""
    return module is None or (isinstance(module, nn.Linear) and type(module.weight.data) is Tensor)


def _resized(
    weight_VD: Tensor,
    size: int,
    pieces: Mapping[int, Sequence[int]],
    generator: torch.Generator | None,
    initializer_range: float,
) -> Tensor:
    """Return the matrix with ``size`` rows: new ones are means of old ones, or, with a generator, random."""
    before = len(weight_VD)
    resized = weight_VD.new_empty(size, weight_VD.shape[1])
    resized[:before] = weight_VD[:size]
    if size > before and generator is None:
        resized[before:] = weight_VD.mean(0, dtype=torch.promote_types(weight_VD.dtype, torch.float32))
    elif size > before:
        drawn = torch.empty(resized[before:].shape, dtype=torch.float32, device="cpu")
        resized[before:] = drawn.normal_(0.0, initializer_range, generator=generator)
    for new, old in pieces.items():
        resized[new] = weight_VD[list(old)].mean(0, dtype=torch.promote_types(weight_VD.dtype, torch.float32))
    return resized


def check_model(model: object, name: str = "model") -> None:
    """Raise `TypeError` for an argument that is no model, such as a folder in its place."""
    if not (isinstance(model, nn.Module) and hasattr(model, "config")):
        raise TypeError(wrong(name, model, "a LlamaForCausalLM"))


def check_ids(input_ids: Tensor, vocab_size: int) -> Tensor:
    """Return valid ids as int64, (B, T).

    The range of the ids is checked on the CPU alone: on CUDA the check would wait for the device, and torch reports it.

    Raises:
        ValueError: If ``input_ids`` is not two-dimensional or is empty, or an id is outside the vocabulary.
        TypeError: If the dtype is not an integer type.
    """
    instance("input_ids", input_ids, Tensor, "a tensor of ids, (batch, length)")
    if input_ids.ndim != 2 or input_ids.numel() == 0:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; expected (batch, length), neither of them 0")
    if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool:
        raise TypeError(f"input_ids has dtype {input_ids.dtype}; expected integers")
    input_ids = input_ids.long()
    if input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= vocab_size:
            raise ValueError(f"input id {low if low < 0 else high} is outside the vocabulary of {vocab_size}")
    return input_ids
