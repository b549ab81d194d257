"""The configuration: every setting with its type, its default and one line on what it does."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Auto = Literal["auto"]
Strategy = Literal["no", "steps", "epoch"]
Tracker = Literal["tensorboard", "wandb", "trackio"]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]

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


def _no_for_false(value: Any) -> Any:
    return "no" if value is False else value


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _trackers(value: Any) -> Any:
    match value:
        case None | "none" | ["none"] | []:
            return ()
        case str(name):
            return (name,)
        case _:
            return _as_tuple(value)


def _spelled(spellings: dict[str, str]) -> BeforeValidator:
    """Other spellings of a value; null means auto, as in the guide's `dtype=None`."""
    return BeforeValidator(lambda value: spellings.get(str(value), value) if value is not None else "auto")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelConfig(_Section):
    """The base model."""

    name_or_path: str = Field(description="hub id, folder, .gguf file, or demo")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], _spelled(_DTYPES)] = Field(
        "auto", description="how weights are stored; auto: a frozen base as it computes, trained weights in float32"
    )
    load_in_4bit: bool = Field(False, description="store the frozen base in 4 bits (QLoRA); needs bitsandbytes")
    load_in_8bit: bool = Field(False, description="store the frozen base in 8 bits; needs bitsandbytes")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to train")


class AdapterConfig(_Section):
    """What is trained."""

    method: Literal["lora", "full"] = Field("lora", description="a LoRA adapter, or all weights")
    r: Count = Field(16, description="LoRA rank")
    lora_alpha: Positive = Field(16.0, description="LoRA scale: updates are multiplied by lora_alpha / r")
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="dropout before the adapter")
    target_modules: Annotated[str | tuple[str, ...], BeforeValidator(_as_tuple)] = Field(
        "all-linear", description="all-linear, a list of module names, or a regular expression"
    )
    bias: Literal["none", "all", "lora_only"] = Field("none", description="which biases are trained")
    init_from: str | None = Field(None, description="an adapter's folder, or a run, to go on from on new data")


class DataConfig(_Section):
    """The rows, and how they become tokens."""

    path: str | None = Field(None, description="a .json, .jsonl or .csv file")
    columns: dict[str, str] = Field({}, description="fields to rename first: {body: text}")
    format: Literal["auto", "instruction", "chat", "completion"] = Field("auto", description="auto: row by row")
    template: str = Field("auto", description="auto, model, alpaca, a .jinja file, or a text with {output}")
    train_on: Literal["assistant", "last_turn", "all"] = Field("assistant", description="what bears loss")
    max_length: Annotated[int, Field(ge=8)] = Field(2048, description="longest row, in tokens")
    overlong: Literal["drop", "cut_at_turn", "truncate", "error"] = Field(
        "drop", description="what becomes of longer rows"
    )
    invalid_rows: Literal["drop", "error"] = Field("drop", description="what becomes of rows that cannot be used")
    control_tokens: Literal["reject"] = Field("reject", description="rows whose content holds a control token")
    packing: Auto | bool = Field("auto", description="fill sequences up to max_length; auto: where 100 steps remain")
    validation_path: str | None = Field(None, description="a file of validation rows; none are split off then")
    test_size: Annotated[int, Field(ge=0)] | Share | None = Field(
        None, description="share or number of validation rows; null: 0.1, at most 1000, none under 100 rows"
    )
    strict: bool = Field(False, description="refuse the data if any row cannot be used")


class TrainingConfig(_Section):
    """How it is trained."""

    backend: Literal["auto", "trl"] = Field("auto", description="the engine")
    num_train_epochs: Positive = Field(3.0, description="passes over the rows")
    max_steps: Annotated[int, Field(ge=-1)] = Field(-1, description="optimizer steps; -1: as the epochs say")
    per_device_train_batch_size: Count = Field(2, description="rows (or packed sequences) at a time")
    gradient_accumulation_steps: Auto | Count = Field(
        "auto", description="batches a step; auto: 4, lower for few rows"
    )
    learning_rate: Auto | Positive = Field("auto", description="peak learning rate; auto: by method and model size")
    lr_scheduler_type: Literal[SCHEDULERS] = Field("linear", description="how the learning rate falls")  # type: ignore[valid-type]
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(0.03, description="share of steps with a rising rate")
    warmup_steps: Annotated[int, Field(ge=0)] | None = Field(None, description="steps with a rising rate, instead")
    weight_decay: NotNegative = Field(0.01, description="AdamW's weight decay")
    max_grad_norm: NotNegative = Field(1.0, description="gradients are clipped to this norm; 0: not clipped")
    optim: Literal[("auto", *OPTIMIZERS)] = Field("auto", description="optimizer; auto: adamw_torch_fused")  # type: ignore[valid-type]
    adam_beta1: Share = Field(0.9, description="AdamW's beta1")
    adam_beta2: Share = Field(0.999, description="AdamW's beta2")
    adam_epsilon: Positive = Field(1e-8, description="AdamW's epsilon")
    gradient_checkpointing: Auto | bool = Field("auto", description="trade compute for memory")
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], _spelled(_PRECISIONS)] = Field(
        "auto", description="how it computes; auto: bf16 where the hardware does it natively"
    )
    seed: int = Field(42, description="of adapter, order, dropout and validation split")
    num_processes: Count | None = Field(None, description="processes that torchrun started; null: whatever is there")


class EvaluationConfig(_Section):
    """When it is validated."""

    eval_strategy: Annotated[Strategy, BeforeValidator(_no_for_false)] = Field(
        "epoch", description="no, steps or epoch"
    )
    eval_steps: Count | Share = Field(100, description="steps (or share of all steps) between evaluations")
    per_device_eval_batch_size: Count | None = Field(None, description="rows at a time; null: as in training")
    load_best_model_at_end: bool = Field(False, description="end with the weights of the lowest validation loss")
    early_stopping_patience: Count | None = Field(None, description="evaluations without improvement before it stops")


class CheckpointsConfig(_Section):
    """When it is saved."""

    save_strategy: Annotated[Strategy, BeforeValidator(_no_for_false)] = Field(
        "epoch", description="no, steps or epoch"
    )
    save_steps: Count | Share = Field(500, description="steps (or share of all steps) between checkpoints")
    save_total_limit: Count | None = Field(3, description="checkpoints kept; null: all")


class LoggingConfig(_Section):
    """What is reported, and to whom."""

    logging_steps: Count = Field(10, description="steps between lines of metrics.jsonl; first and last always")
    report_to: Annotated[tuple[Tracker, ...], BeforeValidator(_trackers)] = Field(
        (), description="none, or a list of tensorboard, wandb, trackio"
    )
    run_name: str | None = Field(None, description="the run's name at the tracker")
    project: str | None = Field(None, description="the project's name at the tracker")
    logging_dir: str | None = Field(None, description="TensorBoard's folder; null: in the run's directory")


class Config(_Section):
    """A whole configuration. Build it with truetune.config.load.load_config, which explains every mistake."""

    model: ModelConfig
    adapter: AdapterConfig = AdapterConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    logging: LoggingConfig = LoggingConfig()
    output_dir: str | None = Field(None, description="the run's directory; null: runs/<data>-<n>")


SECTIONS: dict[str, type[BaseModel]] = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
"""The sections of a Config by name."""


def setting_names() -> Iterable[str]:
    """Every setting's dotted name, in the order of the schema."""
    for section, model in SECTIONS.items():
        yield from (f"{section}.{leaf}" for leaf in model.model_fields)
    yield "output_dir"
