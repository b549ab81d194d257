"""The kinds of values that settings take, and the other ways to spell them that are read as the same."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

Auto = Literal["auto"]
Tracker = Literal[
    "tensorboard", "wandb", "trackio", "azure_ml", "clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "flyte",
    "kubeflow", "mlflow", "neptune", "swanlab",
]  # fmt: skip
"""As transformers names them (5.24); a test holds the list against its own."""

Metric = Literal[
    "exact_match", "normalized_match", "number_match", "json", "json_f1", "rouge_l", "bleu", "tool_calls"
]
"""Of inference/metrics.py what needs no argument of its own; json brings json_f1 along."""

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]

TemplateText = Annotated[
    str,
    Field(
        pattern=r"\.jinja$|\{output\}",
        description="a path that ends in .jinja or a text with {instruction} and {output}",
    ),
]

# Those that need no arguments of their own.
SCHEDULERS = (
    "linear", "cosine", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt",
)  # fmt: skip
OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit",
    "lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit", "adafactor", "sgd", "adagrad", "rmsprop",
)  # fmt: skip

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_PRECISIONS = {full: short for short, full in _DTYPES.items()}
_TORCH_DTYPES = {f"torch.{full}": full for full in _DTYPES.values()}


def _spelled(*names: str, spellings: dict[str, str]) -> BeforeValidator:
    """Other spellings of these names; null means auto, as in the guide's `dtype=None`."""
    return BeforeValidator(
        lambda value: spellings.get(str(value), value) if value is not None else "auto",
        json_schema_input_type=Literal[(*names, *spellings, None)],
    )


Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    _spelled("auto", *_DTYPES.values(), spellings=_DTYPES | _TORCH_DTYPES),
]
Precision = Annotated[Literal["auto", "fp32", "bf16", "fp16"], _spelled("auto", *_DTYPES, spellings=_PRECISIONS)]


def _no_for_false(value: Any) -> Any:
    return "no" if value is False else value


Strategy = Annotated[
    Literal["no", "steps", "epoch"],
    BeforeValidator(_no_for_false, json_schema_input_type=Literal["no", "steps", "epoch", False]),
]


def _count_of_none(value: Any) -> Any:
    """Axolotl's 0.0 is no rows, not a share."""
    return 0 if isinstance(value, float) and value == 0 else value


TestSize = Annotated[Whole | Share | None, BeforeValidator(_count_of_none)]


def as_tuple(value: Any) -> Any:
    """A list as a tuple, which is what settings hold."""
    return tuple(value) if isinstance(value, list) else value


def _listed(value: Any) -> Any:
    """One name, or a list of them."""
    return (value,) if isinstance(value, str) else as_tuple(value)


Modules = Annotated[Text | Annotated[tuple[Text, ...], Field(min_length=1)], BeforeValidator(as_tuple)]


def _names(value: Any) -> Any:
    """One name, or a list of them, or none."""
    match value:
        case None:
            return ()
        case str(names):
            return tuple(name.strip() for name in names.split(","))
        case _:
            return as_tuple(value)


_NAMES_TEXT = Annotated[str, Field(pattern=r"^\s*[^\s,][^,]*(,\s*[^\s,][^,]*)*$")]
Names = Annotated[
    tuple[Text, ...],
    BeforeValidator(_names, json_schema_input_type=tuple[Text, ...] | _NAMES_TEXT | None),
]


Start = Literal["default", "gaussian", "orthogonal", "olora", "pissa"]
PissaSteps = Annotated[
    str, Field(pattern=r"^pissa_niter_\d+$", description="pissa_niter_N (N steps instead of a whole SVD)")
]


def _init_lora_weights(value: Any) -> Any:
    """PEFT's true is its default start."""
    return "default" if value is True or value is None else value


InitLoraWeights = Annotated[
    Start | PissaSteps,
    BeforeValidator(_init_lora_weights, json_schema_input_type=Start | PissaSteps | Literal[True] | None),
]


def _trackers(value: Any) -> Any:
    match value:
        case None | "none" | ["none"] | []:
            return ()
        case str(name):
            return (name,)
        case _:
            return as_tuple(value)


_NONE = Annotated[tuple[Literal["none"], ...], Field(min_length=1, max_length=1)]
Trackers = Annotated[
    tuple[Tracker, ...],
    BeforeValidator(_trackers, json_schema_input_type=tuple[Tracker, ...] | _NONE | Tracker | Literal["none"] | None),
]

_Metrics = Annotated[tuple[Auto | Metric, ...], Field(min_length=1)]
Metrics = Annotated[_Metrics, BeforeValidator(_listed, json_schema_input_type=_Metrics | Auto | Metric)]

Figure = Literal[
    "eval_loss", "eval_exact_match", "eval_normalized_match", "eval_number_match", "eval_json", "eval_json_f1",
    "eval_rouge_l", "eval_bleu", "eval_tool_calls",
]  # fmt: skip
_UNPREFIXED = {figure.removeprefix("eval_"): figure for figure in get_args(Figure)}


def _prefixed(value: Any) -> Any:
    """As it is logged; transformers takes it without the prefix, too."""
    return _UNPREFIXED.get(value, value) if isinstance(value, str) else value


BestBy = Annotated[
    Figure, BeforeValidator(_prefixed, json_schema_input_type=Literal[(*_UNPREFIXED, *_UNPREFIXED.values())])
]
