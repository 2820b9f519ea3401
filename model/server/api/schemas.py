"""The fields of requests, checked by pydantic: types strictly, ranges, and no unknown field.

Fields of OpenAI's API that do not change the answer (`Body.without_effect`) are accepted and named in the header
``X-Ignored-Fields``. ``/openapi.json`` shows the descriptions.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field

from bpe_llama.playground.bodies import Many, Strict

Probability = Annotated[float, Field(ge=0, le=1)]
Mass = Annotated[float, Field(gt=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Count = Annotated[int, Field(ge=0, le=1 << 31)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Ids = Many[TokenId]
Item = TypeVar("Item")
Batch = Annotated[list[Item], Field(max_length=2048, fail_fast=True)]
"""Prompts or inputs."""


def _first_bad_bias(given: Any) -> Any:
    """Return the first entry alone that is no bias, so that one error is collected; everything if there is none."""
    if not isinstance(given, dict):
        return given
    good = (type(bias) in (int, float) and -100 <= bias <= 100 for bias in given.values())
    return next(({name: given[name]} for name, is_good in zip(given, good, strict=True) if not is_good), given)


Biases = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_first_bad_bias)]


class Part(Strict):
    """A part of a request."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Body(Part):
    """The body of a request."""

    without_effect: ClassVar[tuple[str, ...]] = ()
    """Fields of OpenAI's API that are accepted and do nothing."""

    model: str | None = Field(None, description="A name that /v1/models lists; by default the first.")

    def ignored_fields(self) -> list[str]:
        """Return the fields that the client gave and that have no effect."""
        return [name for name in self.without_effect if name in self.model_fields_set]


class StreamOptions(Part):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(Part):
    """A named JSON schema."""

    name: str = "schema"
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Part):
    """What an answer must parse as."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Part):
    """What an answer must match: exactly one of the four fields, as in vLLM's field of this name."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: Many[str] | None = None
    grammar: str | None = None


class Sampling(Body):
    """The options of sampling. Options beyond OpenAI's have their names in vLLM or in `GenerationOptions`."""

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Mass | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 31)] | None = Field(None, description="0 or -1: all.")
    min_p: Probability | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    penalty_scope: Literal["context", "output"] | None = Field(
        None,
        description="Tokens that penalties count. Default: output for presence and frequency penalty, else context.",
    )
    logit_bias: Biases | None = None
    stop: str | Many[str] | None = None
    min_tokens: Count | None = Field(None, description="No end and no stop string before this many new tokens.")
    ignore_eos: bool | None = Field(None, description="Do not end at an end-of-text token.")
    stop_token_ids: Ids | None = Field(None, description="Further ids that end the answer.")
    skip_special_tokens: bool | None = Field(
        None,
        description="Leave special tokens out of the text. Default: unless a grammar, stop string or call names one.",
    )
    typical_p: Mass | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=1000)] | None = None
    bad_words: Many[str] | None = None
    dry_multiplier: Annotated[float, Field(ge=0, le=1000)] | None = None
    dry_base: Annotated[float, Field(ge=1, le=1000)] | None = None
    dry_allowed_length: Annotated[int, Field(ge=0, le=1000)] | None = None
    dry_penalty_last_n: Annotated[int, Field(ge=-1, le=1 << 31)] | None = None
    dry_sequence_breakers: Many[str] | None = None
    top_n_sigma: Annotated[float, Field(ge=0, le=1000)] | None = None
    xtc_probability: Probability | None = None
    xtc_threshold: Probability | None = None
    mirostat: Literal[0, 1, 2] | None = None
    mirostat_tau: Annotated[float, Field(ge=0, le=1000)] | None = None
    mirostat_eta: Annotated[float, Field(ge=0, le=1000)] | None = None
    filter_order: Many[str] | None = None
    banned_ids: Ids | None = None
    allowed_ids: Ids | None = None
    structured_outputs: StructuredOutputs | None = None


class Streamed(Sampling):
    """A request for an answer that may be streamed."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def ignored_fields(self) -> list[str]:
        """Return the fields that the client gave and that have no effect."""
        padded = self.stream_options is not None and self.stream_options.include_obfuscation
        return super().ignored_fields() + ["stream_options.include_obfuscation"] * bool(padded)


class CompletionRequest(Streamed):
    """`/v1/completions`: continues text."""

    without_effect = ("user",)

    prompt: str | Batch[str] | Ids | Batch[Ids]
    max_tokens: Count | None = Field(None, description="16 by default, as in OpenAI's API; 0 only with echo.")
    n: Annotated[int, Field(ge=1)] | None = None
    best_of: int | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
    suffix: str | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None


class ContentPart(Part):
    """A part of a message's content: text."""

    type: str
    text: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    refusal: str | None = None
    cache_control: Any = None


class FunctionCall(Part):
    """A call that the assistant wrote."""

    name: str
    arguments: str
    parsed_arguments: Any = None  # OpenAI's client adds this and `parsed` to what its `parse` and `stream` return


class ToolCall(Part):
    """A call of an earlier message."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class ChatMessage(Part):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Many[ContentPart] | None = None
    name: str | None = None
    tool_calls: Many[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    audio: None = None
    function_call: None = None
    annotations: Many[Any] | None = None
    parsed: Any = None


class FunctionDefinition(Part):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Part):
    """A tool."""

    type: Literal["function"]
    function: FunctionDefinition


class ChosenFunction(Part):
    """The name of a function."""

    name: str


class ChosenTool(Part):
    """The tool that the model must call."""

    type: Literal["function"]
    function: ChosenFunction


def _is_free(tool_choice: object) -> bool:
    """Return whether the model may write calls that no grammar holds to their schemas."""
    return tool_choice in (None, "auto")


class ChatRequest(Streamed):
    """`/v1/chat/completions`: answers a conversation."""

    without_effect = (
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "prediction"),
    )

    messages: Many[ChatMessage] = Field(min_length=1)
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    response_format: ResponseFormat | None = None
    tools: Many[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = Field(None, description="False: at most one call.")
    modalities: Many[Literal["text"]] | None = None
    reasoning_effort: str | None = Field(None, description="For templates that read it.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables that the template reads.")
    continue_final_message: bool | None = Field(None, description="The answer continues the last message.")
    add_generation_prompt: bool | None = Field(None, description="False: the prompt does not begin an answer.")
    user: str | None = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prediction: Any = None

    def ignored_fields(self) -> list[str]:
        """Return the fields that the client gave and that have no effect."""
        strict = _is_free(self.tool_choice) and any(tool.function.strict for tool in self.tools or ())
        return super().ignored_fields() + ["tools[].function.strict"] * strict


class EmbeddingRequest(Body):
    """`/v1/embeddings`: the mean of the last hidden states, scaled to length 1."""

    without_effect = ("user",)

    input: str | Batch[str] | Ids | Batch[Ids]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None


class TextFormat(Part):
    """The format of a response's text."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(Part):
    """The text of a response."""

    format: TextFormat | None = None


class Reasoning(Part):
    """How long a model reasons before it answers."""

    effort: str | None = Field(None, description="For templates that read reasoning_effort.")


class ResponseTool(FunctionDefinition):
    """A function that the model may call, in the flat form of this endpoint."""

    type: Literal["function"]


class NamedFunction(Part):
    """The function that the model must call."""

    type: Literal["function"]
    name: str


class InputItem(Part):
    """A message, a call of the assistant, or the result of a call."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | Many[InputPart] | None = None
    id: str | None = None
    status: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | Many[InputPart] | None = None


class InputPart(Part):
    """A part of an item's content: text."""

    type: str
    text: str | None = None
    refusal: str | None = None
    annotations: Many[Any] | None = None
    logprobs: Many[Any] | None = None
    image_url: Any = None
    file_id: Any = None
    file_url: Any = None
    file_data: Any = None
    filename: Any = None
    detail: Any = None


class ResponseRequest(Sampling):
    """`/v1/responses`: answers a text or a conversation that the client holds; nothing is stored."""

    without_effect = (
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "stream_options"),
    )
    refused: ClassVar[dict[str, str]] = {
        "previous_response_id": "this server stores no responses; send the whole conversation as input",
        "conversation": "this server stores no conversations; send the whole conversation as input",
        "prompt": "this server stores no prompts; send input and instructions",
        "background": "this server answers while the client waits",
    }
    """Fields that this server refuses, and why or what to send instead."""

    input: str | Many[InputItem]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    tools: Many[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    include: Many[Literal["message.output_text.logprobs"]] | None = None
    truncation: Literal["disabled"] | None = None
    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None
    background: Any = None
    user: str | None = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    stream_options: Any = None

    def ignored_fields(self) -> list[str]:
        """Return the fields that the client gave and that have no effect."""
        strict = _is_free(self.tool_choice) and any(tool.strict for tool in self.tools or ())
        return super().ignored_fields() + ["tools[].strict"] * strict


InputItem.model_rebuild()
