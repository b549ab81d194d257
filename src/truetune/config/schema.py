"""The configuration: every setting with its type, its default and one line on what it does."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from truetune.config.kinds import (
    OPTIMIZERS,
    SCHEDULERS,
    Auto,
    BestBy,
    Count,
    Dtype,
    InitLoraWeights,
    Metrics,
    Modules,
    Names,
    NotNegative,
    Positive,
    Precision,
    Share,
    Strategy,
    TemplateText,
    TestSize,
    Text,
    Trackers,
    Whole,
    as_tuple,
)

NO_MODEL = "none"
"""The name of a model that is none: rows are checked without a tokenizer."""


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        model_title_generator=lambda model: model.__name__.removesuffix("Config").lower(),
        field_title_generator=lambda name, _: name,
    )


class ModelConfig(_Section):
    """The base model."""

    name_or_path: Text = Field(description="hub id, folder, .gguf file, or demo")
    revision: Text | None = Field(None, description="branch, tag or commit of a hub id")
    dtype: Dtype = Field(
        "auto", description="how weights are stored; auto: a frozen base as it computes, trained weights in float32"
    )
    load_in_4bit: bool = Field(False, description="store the frozen base in 4 bits (QLoRA); needs bitsandbytes")
    load_in_8bit: bool = Field(False, description="store the frozen base in 8 bits; needs bitsandbytes")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="where to train")


class AdapterConfig(_Section):
    """What is trained."""

    method: Literal["lora", "full"] = Field("lora", description="a LoRA adapter, or all weights")
    r: Auto | Count = Field(16, description="LoRA rank; auto: by the number of rows")
    lora_alpha: Positive = Field(16.0, description="LoRA scale: updates are multiplied by lora_alpha / r")
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="dropout before the adapter")
    target_modules: Modules = Field(
        "all-linear", description="all-linear, a list of module names, or a regular expression"
    )
    bias: Literal["none", "all", "lora_only"] = Field("none", description="which biases are trained")
    init_from: Text | None = Field(None, description="an adapter's folder, or a run, to go on from on new data")
    use_rslora: bool = Field(False, description="rsLoRA: updates are multiplied by lora_alpha / sqrt(r) instead")
    use_dora: bool = Field(
        False, description="DoRA: the length of each weight row is trained apart from its direction"
    )
    init_lora_weights: InitLoraWeights = Field(
        "default", description="where the adapter starts: default, gaussian, orthogonal, olora, pissa, …"
    )
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] | None = Field(
        None, description="LoRA+: how many times faster the update matrices B learn; null: as fast as the rest"
    )
    modules_to_save: Names = Field((), description="modules trained whole, in fp32, beside the adapter: lm_head")
    target_parameters: Names = Field((), description="a mixture's experts to adapt where target_modules is a list")


class SourceConfig(_Section):
    """One of several places that rows come from."""

    path: Text = Field(description="a file, a folder, a glob or a hub id")
    weight: Positive = Field(1.0, description="how often its rows are taken: 2 twice, 0.5 every other one")
    split: Text | None = Field(None, description="as data.split, for this place")
    revision: Text | None = Field(None, description="as data.revision, for this place")
    data_files: Text | None = Field(None, description="as data.data_files, for this place")
    subset: Text | None = Field(None, description="as data.subset, for this place")
    field: Text | None = Field(None, description="as data.field, for this place")


Sources = Annotated[
    Text | Annotated[tuple[Text | SourceConfig, ...], Field(min_length=1)],
    BeforeValidator(as_tuple),
    Field(description="a path, or a list of paths or of {path: …, weight: …}"),
]


class DataConfig(_Section):
    """The rows, and how they become tokens."""

    path: Sources | None = Field(None, description="a file, a folder, a glob, a hub id, or a list of such")
    split: Text | None = Field(None, description="split of a hub id or a folder; null: train")
    revision: Text | None = Field(None, description="branch, tag or commit of a hub id")
    data_files: Text | None = Field(None, description="file, or glob, inside a hub id or a folder")
    subset: Text | None = Field(None, description="configuration of a hub id")
    field: Text | None = Field(None, description="where the rows stand in a .json file: data.items")
    columns: dict[str, str] = Field({}, description="fields to rename first: {body: text}")
    format: Literal["auto", "instruction", "chat", "completion"] = Field("auto", description="auto: row by row")
    template: Literal["auto", "model", "alpaca"] | TemplateText = Field(
        "auto", description="auto, model, alpaca, a .jinja file, or a text with {instruction} and {output}"
    )
    train_on: Literal["assistant", "last_turn", "all"] = Field("assistant", description="what bears loss")
    response_marker: Text | None = Field(None, description="of text rows, learn what stands behind this")
    thinking: Literal["keep", "empty", "mask"] = Field(
        "keep", description="keep: as the template has it; empty: answers behind an empty thought; mask: not learned"
    )
    one_example_per_turn: bool = Field(False, description="a row of each answer, so that no thinking is left out")
    adapt_roles: bool = Field(True, description="fold the system, merge equal roles where the template refuses them")
    max_length: Annotated[int, Field(ge=8)] = Field(2048, description="longest row, in tokens")
    overlong: Literal["drop", "cut_at_turn", "truncate", "error"] = Field(
        "drop", description="what becomes of longer rows"
    )
    invalid_rows: Literal["drop", "error"] = Field("drop", description="what becomes of rows that cannot be used")
    control_tokens: Literal["reject", "as_text"] = Field(
        "reject", description="content that spells a control token: leave its row out, or read it as text"
    )
    num_proc: Auto | Count = Field("auto", description="processes that prepare rows; auto: all cores, where it pays")
    streaming: bool = Field(
        False, description="prepare rows a block at a time while it trains: for more than disk or memory holds"
    )
    shuffle_buffer_size: Count = Field(
        10_000, description="of a stream: rows of a block, prepared, packed and shuffled together"
    )
    packing: Auto | bool = Field("auto", description="fill sequences up to max_length; auto: where 100 steps remain")
    validation_path: Text | None = Field(None, description="a file of validation rows; none are split off then")
    test_size: TestSize = Field(
        None, description="share or number of validation rows; null: 0.1, at most 1000, none under 100 rows"
    )
    group_by: Text | None = Field(None, description="field whose equal rows share a side of the split")
    leakage: Literal["near", "exact"] = Field(
        "near", description="rows that share a side of the split: nearly equal ones, or only equal ones"
    )
    strict: bool = Field(False, description="refuse the data if any row cannot be used, or not as it stands")


class TrainingConfig(_Section):
    """How it is trained."""

    backend: Literal["auto", "trl", "unsloth"] = Field(
        "auto", description="the engine; auto: Unsloth where it is installed and supports GPU, model and settings"
    )
    num_train_epochs: Auto | Positive = Field(3.0, description="passes over the rows; auto: by their number")
    max_steps: Literal[-1] | Count = Field(-1, description="optimizer steps; -1: as the epochs say")
    per_device_train_batch_size: Auto | Count = Field(
        2, description="rows (or packed sequences) at a time; auto: as many as fit"
    )
    gradient_accumulation_steps: Auto | Count = Field(
        "auto", description="batches a step; auto: 4, lower for few rows"
    )
    learning_rate: Auto | Positive = Field("auto", description="peak learning rate; auto: by method and model size")
    lr_scheduler_type: Literal[SCHEDULERS] = Field("linear", description="how the learning rate falls")  # type: ignore[valid-type]
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(0.03, description="share of steps with a rising rate")
    warmup_steps: Whole | None = Field(None, description="steps with a rising rate, instead")
    weight_decay: NotNegative = Field(0.01, description="AdamW's weight decay")
    max_grad_norm: NotNegative = Field(1.0, description="gradients are clipped to this norm; 0: not clipped")
    optim: Literal[("auto", *OPTIMIZERS)] = Field("auto", description="optimizer; auto: adamw_torch_fused")  # type: ignore[valid-type]
    adam_beta1: Share = Field(0.9, description="AdamW's beta1")
    adam_beta2: Share = Field(0.999, description="AdamW's beta2")
    adam_epsilon: Positive = Field(1e-8, description="AdamW's epsilon")
    gradient_checkpointing: Auto | bool = Field(
        "auto", description="trade compute for memory; auto: where the run would not fit without"
    )
    activation_offloading: bool = Field(
        False, description="keep activations in the CPU's memory until they are needed; for a CUDA GPU"
    )
    torch_compile: Auto | bool = Field(
        "auto", description="compile the model's layers; auto: in a long full fine-tuning on a CPU"
    )
    precision: Precision = Field(
        "auto", description="how it computes; auto: bf16 where the hardware does it natively"
    )
    seed: Whole = Field(42, description="of adapter, order, dropout and validation split")
    num_processes: Count | None = Field(
        None, description="processes that train together; null: one, or those started"
    )
    strategy: Literal["auto", "ddp", "fsdp", "deepspeed"] = Field(
        "auto", description="ddp: each process holds the model; fsdp: a share of it; auto: ddp where that fits"
    )
    fsdp_cpu_offload: bool = Field(False, description="of fsdp: keep the shares in the CPU's memory")
    deepspeed: Text | dict[str, Any] | None = Field(
        None, description="DeepSpeed: zero2, zero3, a .json file or what stands in one; null: none, or what fits"
    )


class EvaluationConfig(_Section):
    """When it is validated."""

    eval_strategy: Strategy = Field("epoch", description="no, steps or epoch")
    eval_steps: Count | Share = Field(100, description="steps (or share of all steps) between evaluations")
    per_device_eval_batch_size: Count | None = Field(None, description="rows at a time; null: as in training")
    generate: Whole | None = Field(
        None, description="validation rows that are answered, and the answers scored; null or 0: none"
    )
    generate_max_new_tokens: Count = Field(256, description="tokens of such an answer, at most")
    generate_metrics: Metrics = Field(("auto",), description="what is measured of answers; auto: what fits the rows")
    metric_for_best_model: BestBy = Field("eval_loss", description="the figure by which a model is the best")
    load_best_model_at_end: bool = Field(False, description="end with the best weights that were saved")
    early_stopping_patience: Count | None = Field(None, description="evaluations without improvement before it stops")


class CheckpointsConfig(_Section):
    """When it is saved."""

    save_strategy: Strategy = Field("epoch", description="no, steps or epoch")
    save_steps: Count | Share = Field(500, description="steps (or share of all steps) between checkpoints")
    save_total_limit: Count | None = Field(3, description="checkpoints kept; null: all")


class CheckConfig(_Section):
    """Which rules `truetune check` holds the data against, by code (TT205), beginning of codes (TT2) or name."""

    select: Names = Field((), description="rules to hold; empty: all")
    ignore: Names = Field((), description="rules to leave out; a longer code wins over a shorter one of select")
    severity: dict[str, Literal["error", "warning", "note"]] = Field(
        {}, description="other severities: {TT210: error}"
    )
    fail_on: Literal["error", "warning", "note", "never"] = Field(
        "error", description="the least severity of a finding at which check exits with 1"
    )


class LoggingConfig(_Section):
    """What is reported, and to whom."""

    logging_steps: Count = Field(10, description="steps between lines of metrics.jsonl; first and last always")
    report_to: Trackers = Field((), description="none, or a list of tensorboard, wandb, trackio, mlflow …")
    report_rows: Whole = Field(
        3, description="rows, and answers to rows, that trackers are shown; 0: none leaves the run"
    )
    run_name: Text | None = Field(None, description="the run's name at the tracker; null: its directory's")
    project: Text | None = Field(None, description="the project's name at the tracker")
    logging_dir: Text | None = Field(None, description="TensorBoard's folder; null: in the run's directory")


class Config(_Section):
    """A whole configuration. Build it with truetune.config.load.load_config, which explains every mistake."""

    model: ModelConfig
    adapter: AdapterConfig = AdapterConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    logging: LoggingConfig = LoggingConfig()
    check: CheckConfig = CheckConfig()
    deploy: Literal["vllm", "gguf", "ollama"] | None = Field(
        None, description="where the adapter will be served: checked before training; null: anywhere, unchecked"
    )
    output_dir: Text | None = Field(None, description="the run's directory; null: runs/<data>-<n>")


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
    yield from (name for name in Config.model_fields if name not in SECTIONS)


def value_of(config: Config, name: str) -> Any:
    """The setting of a dotted name."""
    section, _, leaf = name.rpartition(".")
    return getattr(getattr(config, section) if section else config, leaf)


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The config with these settings, by dotted name; they count as named. Nothing is validated."""
    for name, value in values.items():
        section, _, leaf = name.rpartition(".")
        inner = getattr(config, section).model_copy(update={leaf: value}) if section else value
        config = config.model_copy(update={section or leaf: inner})
    return config


def is_named(config: Config, name: str) -> bool:
    """True if the setting of a dotted name was given, and is no default."""
    section, _, leaf = name.rpartition(".")
    return leaf in (getattr(config, section) if section else config).model_fields_set


LORA_KINDS = (
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "loraplus_lr_ratio",
    "modules_to_save",
    "target_parameters",
)
"""The settings of AdapterConfig that make another adapter than plain LoRA of it, or train it otherwise."""


def lora_kinds(adapter: AdapterConfig) -> list[str]:
    """Those of LORA_KINDS that are set."""
    return [name for name in LORA_KINDS if getattr(adapter, name) != AdapterConfig.model_fields[name].default]
