"""Configs as people write them, by tool: what each must become."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """A source file, and everything that its import must give: all settings, all keys that are left."""

    name: str
    text: str
    settings: dict[str, Any]
    lost: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()


SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# --- Axolotl ----------------------------------------------------------------------------------------------

_AXOLOTL = {
    "data.packing": False,
    "data.test_size": 0,
    "training.num_train_epochs": 1.0,
    "training.per_device_train_batch_size": 1,
    "training.gradient_accumulation_steps": 1,
    "training.lr_scheduler_type": "cosine",
    "training.warmup_ratio": 0.03,
    "training.weight_decay": 0.0,
    "training.seed": 42,
    "evaluation.eval_strategy": "no",
    "checkpoints.save_strategy": "epoch",
    "checkpoints.save_total_limit": 4,
}
"""What Axolotl does by itself."""
_LLAMAFACTORY = {
    "adapter.method": "lora",
    "adapter.r": 8,
    "adapter.lora_alpha": 16.0,
    "adapter.target_modules": "all-linear",
    "data.max_length": 2048,
    "data.overlong": "truncate",
    "data.packing": False,
    "data.test_size": 0,
    "training.num_train_epochs": 3.0,
    "training.per_device_train_batch_size": 8,
    "training.gradient_accumulation_steps": 1,
    "training.learning_rate": 5e-5,
    "training.lr_scheduler_type": "linear",
    "training.warmup_steps": 0,
    "training.weight_decay": 0.0,
    "training.seed": 42,
    "evaluation.eval_strategy": "no",
    "checkpoints.save_strategy": "steps",
    "checkpoints.save_total_limit": None,
}
_TRL = {
    "adapter.method": "full",
    "data.train_on": "all",
    "data.max_length": 1024,
    "data.overlong": "truncate",
    "data.packing": False,
    "data.test_size": 0,
    "training.num_train_epochs": 3.0,
    "training.per_device_train_batch_size": 8,
    "training.gradient_accumulation_steps": 1,
    "training.learning_rate": 2e-5,
    "training.lr_scheduler_type": "linear",
    "training.warmup_steps": 0,
    "training.weight_decay": 0.0,
    "training.seed": 42,
    "evaluation.eval_strategy": "no",
    "checkpoints.save_strategy": "steps",
    "checkpoints.save_total_limit": None,
}
_TRL_LORA = {
    "adapter.method": "lora",
    "adapter.r": 16,
    "adapter.lora_alpha": 32.0,
    "adapter.lora_dropout": 0.05,
    "adapter.target_modules": ["q_proj", "v_proj"],
}
_UNSLOTH = {
    "model.load_in_4bit": True,
    "adapter.method": "lora",
    "adapter.r": 16,
    "adapter.lora_alpha": 16.0,
    "adapter.target_modules": SEVEN,
    "data.train_on": "all",
    "data.max_length": 2048,
    "data.overlong": "truncate",
    "data.packing": False,
    "data.test_size": 0,
    "training.num_train_epochs": 3.0,
    "training.per_device_train_batch_size": 2,
    "training.gradient_accumulation_steps": 4,
    "training.learning_rate": 2e-4,
    "training.lr_scheduler_type": "linear",
    "training.warmup_steps": 5,
    "training.weight_decay": 0.01,
    "training.seed": 3407,
    "evaluation.eval_strategy": "no",
    "checkpoints.save_strategy": "steps",
    "checkpoints.save_total_limit": None,
}
_LITGPT = {
    "data.template": "alpaca",
    "data.train_on": "all",
    "data.overlong": "truncate",
    "data.packing": False,
    "data.test_size": 0.05,
    "training.num_train_epochs": 5.0,
    "training.per_device_train_batch_size": 1,
    "training.gradient_accumulation_steps": 16,
    "training.learning_rate": 1e-3,
    "training.weight_decay": 0.01,
    "training.lr_scheduler_type": "cosine",
    "training.warmup_steps": 100,
    "training.max_grad_norm": 0.0,
    "training.seed": 1337,
    "evaluation.eval_strategy": "steps",
    "evaluation.eval_steps": 100,
    "checkpoints.save_strategy": "steps",
    "checkpoints.save_steps": 1000,
    "checkpoints.save_total_limit": None,
}
_LITGPT_LORA = {
    "adapter.method": "lora",
    "adapter.r": 8,
    "adapter.lora_alpha": 16.0,
    "adapter.lora_dropout": 0.05,
    "adapter.target_modules": ["q_proj", "v_proj"],
}
_SCRIPT = {
    **_TRL,
    "training.learning_rate": 5e-5,
}
_SCRIPT_LORA = {
    "adapter.method": "lora",
    "adapter.r": 8,
    "adapter.lora_alpha": 8.0,
    "adapter.target_modules": ["q_proj", "v_proj"],
}


def _without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


AXOLOTL = (
    Shape(
        "qlora on alpaca rows",
        """
base_model: NousResearch/Llama-3.2-1B
load_in_4bit: true
datasets:
  - path: rows/alpaca.jsonl
    type: alpaca
val_set_size: 0.05
output_dir: ./outputs/qlora
adapter: qlora
sequence_len: 2048
sample_packing: true
lora_r: 32
lora_alpha: 16
lora_target_linear: true
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 2
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 2e-4
bf16: auto
gradient_checkpointing: true
flash_attention: true
warmup_ratio: 0.1
evals_per_epoch: 4
saves_per_epoch: 1
special_tokens:
  pad_token: <|end_of_text|>
""",
        {
            **_without(_AXOLOTL, "evaluation.eval_strategy"),
            "model.name_or_path": "NousResearch/Llama-3.2-1B",
            "model.load_in_4bit": True,
            "adapter.method": "lora",
            "adapter.r": 32,
            "adapter.lora_alpha": 16,
            "adapter.target_modules": "all-linear",
            "data.path": "rows/alpaca.jsonl",
            "data.template": "alpaca",
            "data.max_length": 2048,
            "data.packing": True,
            "data.test_size": 0.05,
            "training.num_train_epochs": 2,
            "training.per_device_train_batch_size": 2,
            "training.gradient_accumulation_steps": 4,
            "training.learning_rate": 2e-4,
            "training.warmup_ratio": 0.1,
            "training.optim": "adamw_bnb_8bit",
            "training.gradient_checkpointing": True,
            "training.precision": "auto",
            "evaluation.eval_strategy": "steps",
            "evaluation.eval_steps": 0.125,
            "output_dir": "./outputs/qlora",
        },
        lost=("special_tokens.pad_token",),
        idle=("flash_attention",),
    ),
    Shape(
        "all weights on chats of a hub id",
        """
base_model: Qwen/Qwen2.5-0.5B
model_type: AutoModelForCausalLM
chat_template: chatml
datasets:
  - path: org/chats
    type: chat_template
    split: train[:10%]
    name: en
    field_messages: conversations
    message_property_mappings: {role: from, content: value}
    roles_to_train: [assistant]
    train_on_eos: turn
sequence_len: 4096
pad_to_sequence_len: true
micro_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 0.00001
warmup_steps: 10
save_strategy: steps
save_steps: 200
wandb_project: chats
wandb_name: first
wandb_entity: team
wandb_watch:
deepspeed: deepspeed_configs/zero2.json
""",
        {
            **_without(_AXOLOTL, "training.warmup_ratio"),
            "model.name_or_path": "Qwen/Qwen2.5-0.5B",
            "adapter.method": "full",
            "data.path": [{"path": "org/chats", "subset": "en"}],
            "data.template": "model",
            "data.train_on": "assistant",
            "data.max_length": 4096,
            "training.gradient_accumulation_steps": 8,
            "training.learning_rate": 1e-5,
            "training.warmup_steps": 10,
            "checkpoints.save_strategy": "steps",
            "checkpoints.save_steps": 200,
            "logging.project": "chats",
            "logging.run_name": "first",
            "logging.report_to": "wandb",
            "training.deepspeed": "deepspeed_configs/zero2.json",
        },
        lost=("datasets[0].split", "wandb_entity"),
        idle=(
            "model_type",
            "datasets[0].type",
            "datasets[0].field_messages",
            "datasets[0].message_property_mappings.role",
            "datasets[0].message_property_mappings.content",
            "datasets[0].train_on_eos",
            "pad_to_sequence_len",
            "wandb_watch",
        ),
    ),
    Shape(
        "a prompt of one's own over two files",
        """
base_model: ./base
adapter: lora
datasets:
  - path: a.jsonl
    ds_type: json
    type:
      system_prompt: ""
      field_instruction: ask
      field_output: output
      format: "Q: {instruction}\\nA: "
      no_input_format: "Q: {instruction}\\nA: "
lora_r: 8
lora_alpha: 16
lora_target_modules: [q_proj, k_proj]
sequence_len: 1024
train_on_inputs: true
fp16: true
bf16: false
micro_batch_size: 4
batch_size: 16
num_epochs: 3
learning_rate: 0.0001
early_stopping_patience: 3
group_by_length: false
logging_steps: 5
""",
        {
            **_AXOLOTL,
            "model.name_or_path": "./base",
            "adapter.method": "lora",
            "adapter.r": 8,
            "adapter.lora_alpha": 16,
            "adapter.target_modules": ["q_proj", "k_proj"],
            "data.path": "a.jsonl",
            "data.columns": {"ask": "instruction"},
            "data.template": "Q: {instruction}\nA: {output}",
            "data.train_on": "all",
            "data.max_length": 1024,
            "training.num_train_epochs": 3,
            "training.per_device_train_batch_size": 4,
            "training.gradient_accumulation_steps": 4,
            "training.learning_rate": 1e-4,
            "training.precision": "fp16",
            "logging.logging_steps": 5,
        },
        lost=("early_stopping_patience",),
        idle=(
            "datasets[0].ds_type",
            "datasets[0].type.system_prompt",
            "datasets[0].type.field_output",
            "datasets[0].type.no_input_format",
            "bf16",
            "group_by_length",
        ),
    ),
    Shape(
        "texts learned whole, validated from a file",
        """
base_model: demo
datasets:
  - path: books.jsonl
    type: completion
    field: body
test_datasets:
  - path: held-out.jsonl
    type: completion
sequence_len: 512
micro_batch_size: 2
learning_rate: 5.0e-5
eval_batch_size: 4
eval_steps: 50
adam_beta2: 0.95
max_grad_norm: 0.5
seed: 7
lr_scheduler: one_cycle
cosine_min_lr_ratio: 0.1
neftune_noise_alpha: 5
""",
        {
            **_without(_AXOLOTL, "data.test_size", "evaluation.eval_strategy"),
            "model.name_or_path": "demo",
            "adapter.method": "full",
            "data.path": "books.jsonl",
            "data.format": "completion",
            "data.columns": {"body": "text"},
            "data.validation_path": "held-out.jsonl",
            "data.max_length": 512,
            "training.per_device_train_batch_size": 2,
            "training.learning_rate": 5e-5,
            "training.adam_beta2": 0.95,
            "training.max_grad_norm": 0.5,
            "training.seed": 7,
            "evaluation.eval_strategy": "steps",
            "evaluation.eval_steps": 50,
            "evaluation.per_device_eval_batch_size": 4,
        },
        lost=("test_datasets[0].type", "lr_scheduler", "cosine_min_lr_ratio", "neftune_noise_alpha"),
    ),
    Shape(
        "PEFT's kinds, and a typo",
        """
base_model: org/model
base_model_config: org/model
revision_of_model: v2
trust_remote_code: true
adapter: lora
load_in_8bit: true
lora_r: 64
lora_alpha: 128
lora_target_modules: [q_proj, v_proj]
lora_modules_to_save: [embed_tokens, lm_head]
peft_use_rslora: true
loraplus_lr_ratio: 16
lora_mlp_kernel: true
datasets:
  - path: json
    data_files: [one.json]
    type: sharegpt
sequence_len: 2048
sample_packng: true
micro_batch_size: 1
gradient_accumulation_steps: 2
learning_rate: 0.0002
gradient_checkpointing: offload
plugins: [axolotl.integrations.liger.LigerPlugin]
liger_rope: true
hub_model_id: me/mine
fsdp: [full_shard]
fsdp_config: {fsdp_offload_params: true}
""",
        {
            **_AXOLOTL,
            "model.name_or_path": "org/model",
            "model.revision": "v2",
            "model.trust_remote_code": True,
            "model.load_in_8bit": True,
            "adapter.method": "lora",
            "adapter.r": 64,
            "adapter.lora_alpha": 128,
            "adapter.target_modules": ["q_proj", "v_proj"],
            "adapter.modules_to_save": ["embed_tokens", "lm_head"],
            "adapter.use_rslora": True,
            "adapter.loraplus_lr_ratio": 16,
            "data.path": "one.json",
            "data.format": "chat",
            "data.max_length": 2048,
            "training.gradient_accumulation_steps": 2,
            "training.learning_rate": 2e-4,
            "training.gradient_checkpointing": True,
        },
        lost=("sample_packng", "plugins", "hub_model_id", "fsdp", "fsdp_config.fsdp_offload_params"),
        idle=("base_model_config", "lora_mlp_kernel", "liger_rope"),
    ),
    Shape(
        "two sets with prompts that differ",
        """
base_model: org/model
adapter: lora
lora_r: 8
lora_alpha: 8
datasets:
  - {path: a.jsonl, type: alpaca}
  - {path: b.jsonl, type: oasst, shards: 10}
sequence_len: 256
micro_batch_size: 1
learning_rate: 1e-4
excess_length_strategy: truncate
use_tensorboard: true
use_mlflow: true
""",
        {
            **_AXOLOTL,
            "model.name_or_path": "org/model",
            "adapter.method": "lora",
            "adapter.r": 8,
            "adapter.lora_alpha": 8,
            "adapter.target_modules": ["q_proj", "v_proj"],
            "data.path": ["a.jsonl", "b.jsonl"],
            "data.template": "alpaca",
            "data.max_length": 256,
            "data.overlong": "truncate",
            "training.learning_rate": 1e-4,
            "logging.report_to": ["tensorboard", "mlflow"],
        },
        lost=("datasets[1].type", "datasets[1].shards"),
    ),
)

# --- LLaMA-Factory ----------------------------------------------------------------------------------------

LLAMAFACTORY = (
    Shape(
        "LoRA with a template by name",
        """
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_target: all
dataset: mine
template: llama3
cutoff_len: 1024
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
output_dir: saves/llama3
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
""",
        {
            **_without(_LLAMAFACTORY, "training.warmup_steps"),
            "model.name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct",
            "adapter.r": 16,
            "adapter.lora_alpha": 32.0,
            "data.template": "model",
            "data.max_length": 1024,
            "data.num_proc": 16,
            "training.per_device_train_batch_size": 1,
            "training.gradient_accumulation_steps": 8,
            "training.learning_rate": 1e-4,
            "training.lr_scheduler_type": "cosine",
            "training.warmup_ratio": 0.1,
            "training.precision": "bf16",
            "checkpoints.save_steps": 500,
            "logging.logging_steps": 10,
            "output_dir": "saves/llama3",
        },
        lost=("dataset", "max_samples", "overwrite_output_dir"),
        idle=("stage", "do_train", "overwrite_cache", "plot_loss", "ddp_timeout"),
    ),
    Shape(
        "QLoRA from JSON",
        """{
  "model_name_or_path": "Qwen/Qwen2.5-7B", "finetuning_type": "lora", "quantization_bit": 4,
  "quantization_method": "bitsandbytes", "double_quantization": true, "template": "qwen",
  "lora_rank": 8, "lora_alpha": 32, "lora_dropout": 0.1, "lora_target": "q_proj,v_proj",
  "cutoff_len": 2048, "val_size": 0.1, "eval_strategy": "steps", "eval_steps": 100, "fp16": true,
  "neat_packing": true, "flash_attn": "fa2", "enable_liger_kernel": true, "optim": "adamw_torch",
  "report_to": "wandb", "run_name": "q", "deepspeed": "ds.json", "seed": 1
}""",
        {
            **_LLAMAFACTORY,
            "model.name_or_path": "Qwen/Qwen2.5-7B",
            "model.load_in_4bit": True,
            "adapter.lora_alpha": 32,
            "adapter.lora_dropout": 0.1,
            "adapter.target_modules": ["q_proj", "v_proj"],
            "data.template": "model",
            "data.packing": True,
            "data.test_size": 0.1,
            "training.optim": "adamw_torch",
            "training.precision": "fp16",
            "training.seed": 1,
            "evaluation.eval_strategy": "steps",
            "evaluation.eval_steps": 100,
            "logging.report_to": "wandb",
            "logging.run_name": "q",
        },
        lost=("deepspeed",),
        idle=("quantization_method", "double_quantization", "flash_attn", "enable_liger_kernel"),
    ),
    Shape(
        "all weights",
        """
model_name_or_path: org/base
stage: sft
finetuning_type: full
template: default
dataset_dir: data
cutoff_len: 512
train_on_prompt: true
packing: true
num_train_epochs: 1
learning_rate: 1.0e-5
pure_bf16: true
disable_gradient_checkpointing: true
lr_scheduler_type: cosine_with_min_lr
max_grad_norm: 0.3
save_only_model: false
use_galore: false
galore_rank: 64
""",
        {
            **_without(_LLAMAFACTORY, "adapter.r", "adapter.lora_alpha", "adapter.target_modules"),
            "model.name_or_path": "org/base",
            "adapter.method": "full",
            "data.template": "model",
            "data.train_on": "all",
            "data.max_length": 512,
            "data.packing": True,
            "training.num_train_epochs": 1,
            "training.learning_rate": 1e-5,
            "training.max_grad_norm": 0.3,
            "training.precision": "bf16",
            "training.gradient_checkpointing": False,
        },
        lost=("lr_scheduler_type",),
        idle=("stage", "dataset_dir", "save_only_model", "use_galore", "galore_rank"),
    ),
    Shape(
        "kinds of LoRA",
        """
model_name_or_path: org/base
adapter_name_or_path: saves/first
finetuning_type: lora
template: alpaca
lora_rank: 4
lora_target: all
additional_target: embed_tokens,lm_head
use_rslora: true
use_dora: false
loraplus_lr_ratio: 16.0
mask_history: true
val_size: 200
early_stopping_steps: 3
load_best_model_at_end: true
eval_strategy: steps
eval_steps: 100
save_strategy: steps
save_steps: 200
use_unsloth: false
use_unsloth_gc: true
upcast_layernorm: true
""",
        {
            **_LLAMAFACTORY,
            "model.name_or_path": "org/base",
            "adapter.init_from": "saves/first",
            "adapter.r": 4,
            "adapter.lora_alpha": 8.0,
            "adapter.modules_to_save": "embed_tokens,lm_head",
            "adapter.use_rslora": True,
            "adapter.use_dora": False,
            "adapter.loraplus_lr_ratio": 16.0,
            "data.template": "alpaca",
            "data.train_on": "last_turn",
            "data.test_size": 200,
            "training.gradient_checkpointing": True,
            "evaluation.eval_strategy": "steps",
            "evaluation.eval_steps": 100,
            "evaluation.load_best_model_at_end": True,
            "evaluation.early_stopping_patience": 3,
            "checkpoints.save_strategy": "steps",
            "checkpoints.save_steps": 200,
        },
        lost=("upcast_layernorm",),
        idle=("use_unsloth",),
    ),
    Shape(
        "almost nothing",
        "model_name_or_path: org/base\nstage: sft\ntemplate: empty\nswanlab_api_key: abc\nhf_hub_token: hf_x\n",
        {**_LLAMAFACTORY, "model.name_or_path": "org/base"},
        lost=("template", "swanlab_api_key", "hf_hub_token"),
        idle=("stage",),
    ),
)

# --- TRL --------------------------------------------------------------------------------------------------

TRL = (
    Shape(
        "all weights on a hub id",
        """
model_name_or_path: Qwen/Qwen2-0.5B
dataset_name: trl-lib/Capybara
learning_rate: 2.0e-5
num_train_epochs: 1
packing: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
eos_token: <|im_end|>
eval_strategy: steps
eval_steps: 100
dataset_test_split: test
output_dir: Qwen2-0.5B-SFT
push_to_hub: true
""",
        {
            **_without(_TRL, "data.test_size"),
            "model.name_or_path": "Qwen/Qwen2-0.5B",
            "data.path": "trl-lib/Capybara",
            "data.packing": True,
            "training.num_train_epochs": 1,
            "training.per_device_train_batch_size": 2,
            "training.gradient_accumulation_steps": 8,
            "evaluation.eval_strategy": "steps",
            "evaluation.eval_steps": 100,
            "output_dir": "Qwen2-0.5B-SFT",
        },
        lost=("eos_token", "dataset_test_split", "push_to_hub"),
    ),
    Shape(
        "QLoRA",
        """
model_name_or_path: org/base
model_revision: main
dataset_name: org/rows
dataset_config: en
dataset_train_split: train_sft
torch_dtype: bfloat16
use_peft: true
load_in_4bit: true
use_bnb_nested_quant: true
lora_r: 32
lora_alpha: 16
lora_target_modules: [all-linear]
lora_task_type: CAUSAL_LM
attn_implementation: flash_attention_2
max_length: 2048
assistant_only_loss: true
bf16: true
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: false}
warmup_steps: 0.1
lr_scheduler_type: cosine
report_to: [tensorboard, mlflow]
""",
        {
            **_without(_TRL, "training.warmup_steps"),
            **_TRL_LORA,
            "model.name_or_path": "org/base",
            "model.revision": "main",
            "model.dtype": "bfloat16",
            "model.load_in_4bit": True,
            "adapter.r": 32,
            "adapter.lora_alpha": 16,
            "adapter.target_modules": "all-linear",
            "data.path": "org/rows",
            "data.subset": "en",
            "data.split": "train_sft",
            "data.train_on": "assistant",
            "data.max_length": 2048,
            "training.lr_scheduler_type": "cosine",
            "training.warmup_ratio": 0.1,
            "training.precision": "bf16",
            "training.gradient_checkpointing": True,
            "logging.report_to": ["tensorboard", "mlflow"],
        },
        idle=(
            "use_bnb_nested_quant",
            "lora_task_type",
            "attn_implementation",
            "gradient_checkpointing_kwargs.use_reentrant",
        ),
    ),
    Shape(
        "LoRA by TRL's defaults",
        "model_name_or_path: org/base\ndataset_name: org/rows\nuse_peft: true\nlearning_rate: 2e-4\nmax_steps: 500\n",
        {
            **_TRL,
            **_TRL_LORA,
            "model.name_or_path": "org/base",
            "data.path": "org/rows",
            "training.learning_rate": 2e-4,
            "training.max_steps": 500,
        },
    ),
    Shape(
        "several data sets",
        """
model_name_or_path: org/base
datasets:
  - {path: org/a, split: train}
  - {path: org/b, name: de, fraction: 0.5}
test_split_size: 0.02
streaming: false
completion_only_loss: false
packing_strategy: wrapped
max_length: null
dataset_num_proc: 4
dataset_text_field: body
model_init_kwargs: {dtype: auto, attn_implementation: sdpa}
optim: adamw_8bit
""",
        {
            **_TRL,
            "model.name_or_path": "org/base",
            "model.dtype": "auto",
            "data.path": [{"path": "org/a", "split": "train"}, {"path": "org/b", "subset": "de"}],
            "data.columns": {"body": "text"},
            "data.num_proc": 4,
            "data.test_size": 0.02,
            "training.optim": "adamw_8bit",
        },
        lost=("datasets[1].fraction", "packing_strategy"),
        idle=("streaming", "max_length", "model_init_kwargs.attn_implementation"),
    ),
    Shape(
        "contradictions, and LoRA's settings without LoRA",
        """
model_name_or_path: org/base
dataset_name: org/rows
lora_r: 64
use_peft: false
warmup_ratio: 0.05
warmup_steps: 20
load_best_model_at_end: true
eval_strategy: epoch
save_strategy: steps
save_steps: 100
metric_for_best_model: eval_loss
logging_steps: 0.1
loss_type: dft
env: {WANDB_MODE: offline}
""",
        {
            **_without(_TRL, "data.test_size"),
            "model.name_or_path": "org/base",
            "data.path": "org/rows",
            "training.warmup_steps": 20,
            "evaluation.eval_strategy": "epoch",
            "checkpoints.save_steps": 100,
        },
        lost=("warmup_ratio", "logging_steps", "loss_type", "env.WANDB_MODE", "load_best_model_at_end"),
        idle=("lora_r", "metric_for_best_model"),
    ),
)

# --- Unsloth ----------------------------------------------------------------------------------------------

UNSLOTH = (
    Shape(
        "flat, as the command line has it",
        """
model_name: unsloth/llama-3-8b-bnb-4bit
max_seq_length: 4096
dtype: null
load_in_4bit: true
dataset: org/rows
r: 32
lora_alpha: 64
lora_dropout: 0.0
bias: none
use_gradient_checkpointing: unsloth
random_state: 3407
use_rslora: false
loftq_config: null
per_device_train_batch_size: 4
warmup_steps: 10
max_steps: 400
learning_rate: 2e-4
optim: adamw_8bit
lr_scheduler_type: linear
seed: 3407
output_dir: outputs
report_to: none
save_model: true
""",
        {
            **_UNSLOTH,
            "model.name_or_path": "unsloth/llama-3-8b-bnb-4bit",
            "adapter.r": 32,
            "adapter.lora_alpha": 64,
            "adapter.lora_dropout": 0.0,
            "adapter.bias": "none",
            "adapter.use_rslora": False,
            "data.path": "org/rows",
            "data.max_length": 4096,
            "training.per_device_train_batch_size": 4,
            "training.warmup_steps": 10,
            "training.max_steps": 400,
            "training.optim": "adamw_8bit",
            "training.gradient_checkpointing": True,
            "logging.report_to": "none",
            "output_dir": "outputs",
        },
        lost=("save_model",),
        idle=("dtype", "loftq_config"),
    ),
    Shape(
        "in sections",
        """
model: unsloth/Qwen2.5-0.5B
data: {local_dataset: [rows.jsonl], format_type: alpaca}
training: {training_type: lora, max_seq_length: 1024, num_epochs: 2, batch_size: 8, random_seed: 1, max_steps: 0}
lora: {lora_r: 64, target_modules: "q_proj,v_proj", use_loftq: false}
logging: {enable_wandb: true, wandb_project: p}
""",
        {
            **_UNSLOTH,
            "model.name_or_path": "unsloth/Qwen2.5-0.5B",
            "adapter.r": 64,
            "adapter.target_modules": ["q_proj", "v_proj"],
            "data.path": "rows.jsonl",
            "data.template": "alpaca",
            "data.max_length": 1024,
            "training.num_train_epochs": 2,
            "training.per_device_train_batch_size": 8,
            "training.seed": 1,
            "logging.report_to": "wandb",
            "logging.project": "p",
        },
        idle=("max_steps", "use_loftq"),
    ),
    Shape(
        "all weights",
        "model_name: org/base\nfull_finetuning: true\nmax_seq_length: 512\ndataset: rows.json\nsave_steps: 50\n",
        {
            **_without(_UNSLOTH, "model.load_in_4bit", "adapter.r", "adapter.lora_alpha", "adapter.target_modules"),
            "model.name_or_path": "org/base",
            "adapter.method": "full",
            "data.path": "rows.json",
            "data.max_length": 512,
            "checkpoints.save_steps": 50,
        },
    ),
    Shape(
        "answers alone, and another seed for the adapter",
        """
model_name: org/base
training_type: qlora
train_on_completions: true
random_state: 1
seed: 2
finetune_vision_layers: true
eval_steps: 20
hub_path: me/mine
push_gguf: false
wandb_token: secret
""",
        {
            **_UNSLOTH,
            "model.name_or_path": "org/base",
            "data.train_on": "assistant",
            "training.seed": 2,
            "evaluation.eval_strategy": "steps",
            "evaluation.eval_steps": 20,
        },
        lost=("random_state", "hub_path", "wandb_token"),
        idle=("finetune_vision_layers", "push_gguf"),
    ),
    Shape(
        "LoftQ, and a key nobody knows",
        "model_name: org/base\nmax_seq_length: 128\nloftq_config: {loftq_bits: 4}\n"
        "gradient_checkpointing: none\nturbo: 11\n",
        {
            **_UNSLOTH,
            "model.name_or_path": "org/base",
            "data.max_length": 128,
            "training.gradient_checkpointing": False,
        },
        lost=("loftq_config.loftq_bits", "turbo"),
    ),
)

# --- LitGPT -----------------------------------------------------------------------------------------------

LITGPT = (
    Shape(
        "QLoRA from the config hub",
        """
checkpoint_dir: checkpoints/meta-llama/Llama-3.2-1B
out_dir: out/finetune/qlora
precision: bf16-true
quantize: bnb.nf4
devices: 1
num_nodes: 1
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_query: true
lora_key: false
lora_value: true
lora_projection: false
lora_mlp: true
lora_head: false
data:
  class_path: litgpt.data.JSON
  init_args:
    json_path: rows.json
    mask_prompt: true
    val_split_fraction: 0.1
    prompt_style: alpaca
    ignore_index: -100
    seed: 42
    num_workers: 4
train:
  save_interval: 200
  log_interval: 1
  global_batch_size: 8
  micro_batch_size: 2
  lr_warmup_steps: 10
  epochs: 2
  max_tokens:
  max_steps:
  max_seq_length: 512
  tie_embeddings:
  max_norm:
  min_lr: 6.0e-05
eval:
  interval: 100
  max_new_tokens: 100
  max_iters: 100
logger_name: csv
seed: 1337
optimizer:
  class_path: torch.optim.AdamW
  init_args:
    lr: 0.0002
    weight_decay: 0.0
    betas: [0.9, 0.95]
""",
        {
            **_LITGPT,
            "model.name_or_path": "meta-llama/Llama-3.2-1B",
            "model.load_in_4bit": True,
            "adapter.method": "lora",
            "adapter.r": 32,
            "adapter.lora_alpha": 16,
            "adapter.lora_dropout": 0.05,
            "adapter.target_modules": ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"],
            "data.path": "rows.json",
            "data.train_on": "assistant",
            "data.max_length": 512,
            "data.test_size": 0.1,
            "training.num_train_epochs": 2,
            "training.per_device_train_batch_size": 2,
            "training.gradient_accumulation_steps": 4,
            "training.learning_rate": 2e-4,
            "training.weight_decay": 0.0,
            "training.warmup_steps": 10,
            "training.optim": "paged_adamw_32bit",
            "training.adam_beta1": 0.9,
            "training.adam_beta2": 0.95,
            "training.precision": "bf16",
            "checkpoints.save_steps": 200,
            "logging.logging_steps": 1,
            "output_dir": "out/finetune/qlora",
        },
        idle=(
            "devices",
            "num_nodes",
            "data.class_path",
            "data.init_args.ignore_index",
            "data.init_args.seed",
            "data.init_args.num_workers",
            "train.max_tokens",
            "train.max_steps",
            "train.tie_embeddings",
            "train.max_norm",
            "train.min_lr",
            "eval.max_new_tokens",
            "eval.max_iters",
            "logger_name",
        ),
    ),
    Shape(
        "all weights",
        """
checkpoint_dir: checkpoints/org/base
out_dir: out
precision: bf16-true
devices: 4
data:
  class_path: litgpt.data.Deita
  init_args: {mask_prompt: false, prompt_style: llama2, include_multiturn_conversations: true}
train: {global_batch_size: 64, micro_batch_size: 4, epochs: 1, max_norm: 1.0}
logger_name: wandb
log: {project: p, run: r, group: g}
optimizer: AdamW
""",
        {
            **_LITGPT,
            "model.name_or_path": "org/base",
            "model.dtype": "bfloat16",
            "adapter.method": "full",
            "data.template": "model",
            "training.num_train_epochs": 1,
            "training.per_device_train_batch_size": 4,
            "training.gradient_accumulation_steps": 4,
            "training.max_grad_norm": 1.0,
            "training.optim": "adamw_torch",
            "training.precision": "bf16",
            "training.num_processes": 4,
            "evaluation.eval_steps": 600,
            "logging.report_to": "wandb",
            "logging.project": "p",
            "logging.run_name": "r",
            "output_dir": "out",
        },
        lost=("data.class_path", "log.group"),
        idle=("data.init_args.include_multiturn_conversations",),
    ),
    Shape(
        "LoRA by LitGPT's defaults",
        "checkpoint_dir: ./mine\nlora_r: 8\ndata: JSON\nquantize:\n",
        {**_LITGPT, **_LITGPT_LORA, "model.name_or_path": "./mine"},
        idle=("data", "quantize"),
    ),
    Shape(
        "warm-up as a share, and older names",
        """
checkpoint_dir: checkpoints/org/base
lora_query: true
lora_key: true
train: {learning_rate: 3e-4, weight_decay: 0.02, beta1: 0.9, lr_warmup_fraction: 0.5, epochs: 2, max_time: 60}
eval: {interval: 50, initial_validation: false, evaluate_example: first}
precision: 32-true
optimizer: {class_path: bitsandbytes.optim.PagedAdamW, init_args: {eps: 1e-7}}
""",
        {
            **_without(_LITGPT, "training.warmup_steps"),
            **_LITGPT_LORA,
            "model.name_or_path": "org/base",
            "adapter.target_modules": ["q_proj", "k_proj", "v_proj"],
            "training.num_train_epochs": 2,
            "training.learning_rate": 3e-4,
            "training.weight_decay": 0.02,
            "training.adam_beta1": 0.9,
            "training.adam_epsilon": 1e-7,
            "training.warmup_ratio": 0.25,
            "training.optim": "paged_adamw_32bit",
            "training.precision": "fp32",
            "evaluation.eval_steps": 50,
        },
        lost=("train.max_time",),
        idle=("eval.initial_validation", "eval.evaluate_example"),
    ),
    Shape(
        "what cannot be, and what nobody knows",
        """
checkpoint_dir: checkpoints/org/base
out_dir: out
devices: auto
precision: fp8
access_token: hf_secret
resume: auto
train: {global_batch_size: 1, micro_batch_size: 4, quick: true}
logger_name: lightning_logs
optimizer: {class_path: galore_torch.GaLoreAdamW, init_args: {rank: 8}}
""",
        {
            **_LITGPT,
            "model.name_or_path": "org/base",
            "adapter.method": "full",
            "training.per_device_train_batch_size": 4,
            "training.gradient_accumulation_steps": 4,
            "evaluation.eval_steps": 600,
            "output_dir": "out",
        },
        lost=(
            "devices",
            "precision",
            "access_token",
            "resume",
            "train.global_batch_size",
            "train.quick",
            "logger_name",
            "optimizer.class_path",
            "optimizer.init_args.rank",
        ),
    ),
)

# --- scripts ----------------------------------------------------------------------------------------------

_ALPACA_HEAD = "Below is an instruction that describes a task"
GUIDE = """
import torch
from datasets import load_dataset
from transformers import TrainingArguments
from trl import SFTTrainer
from unsloth import FastLanguageModel

NAME, LENGTH = "unsloth/llama-3-8b-bnb-4bit", 2048
OUT = "./output"

model, tokenizer = FastLanguageModel.from_pretrained(
    model_name=NAME, max_seq_length=LENGTH, dtype=None, load_in_4bit=True
)
model = FastLanguageModel.get_peft_model(
    model, r=16, lora_alpha=16, lora_dropout=0, bias="none", use_gradient_checkpointing="unsloth",
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj"] + ["gate_proj", "up_proj", "down_proj"],
)
dataset = load_dataset("json", data_files="data.json", split="train")

def format_example(example):
    return {"text": f"### Instruction:\\n{example['instruction']}\\n\\n### Response:\\n{example['output']}"}

dataset = dataset.map(format_example)
dataset = dataset.train_test_split(test_size=0.1)
arguments = TrainingArguments(
    output_dir=OUT, num_train_epochs=3, per_device_train_batch_size=2, gradient_accumulation_steps=4,
    learning_rate=2e-4, warmup_ratio=0.03, weight_decay=0.01, logging_steps=10, optim="adamw_8bit",
    evaluation_strategy="epoch", save_strategy="epoch",
    fp16=not torch.cuda.is_bf16_supported(), bf16=torch.cuda.is_bf16_supported(),
)
trainer = SFTTrainer(
    model=model, args=arguments, train_dataset=dataset["train"], eval_dataset=dataset["test"],
    tokenizer=tokenizer, dataset_text_field="text", max_seq_length=LENGTH, packing=True,
)
trainer.train()
model.save_pretrained(f"{OUT}/lora-adapters")
tokenizer.save_pretrained(f"{OUT}/lora-adapters")
"""
"""The guide's full training script, in other words: the same calls and keywords."""

_MADE_BEFORE = ("SFTTrainer.model", "SFTTrainer.args", "SFTTrainer.train_dataset")

SCRIPTS = (
    Shape(
        "the guide's",
        GUIDE,
        {
            **_without(_SCRIPT, "training.warmup_steps"),
            "model.name_or_path": "unsloth/llama-3-8b-bnb-4bit",
            "model.load_in_4bit": True,
            "adapter.method": "lora",
            "adapter.r": 16,
            "adapter.lora_alpha": 16,
            "adapter.lora_dropout": 0,
            "adapter.target_modules": SEVEN,
            "adapter.bias": "none",
            "data.path": "data.json",
            "data.template": "### Instruction:\n{instruction}\n\n### Response:\n{output}",
            "data.max_length": 2048,
            "data.packing": True,
            "data.test_size": 0.1,
            "training.num_train_epochs": 3,
            "training.per_device_train_batch_size": 2,
            "training.gradient_accumulation_steps": 4,
            "training.learning_rate": 2e-4,
            "training.warmup_ratio": 0.03,
            "training.weight_decay": 0.01,
            "training.optim": "adamw_8bit",
            "training.gradient_checkpointing": True,
            "training.precision": "auto",
            "evaluation.eval_strategy": "epoch",
            "checkpoints.save_strategy": "epoch",
            "logging.logging_steps": 10,
            "output_dir": "./output",
        },
        idle=(
            "FastLanguageModel.from_pretrained.dtype",
            "FastLanguageModel.get_peft_model.model",
            *_MADE_BEFORE,
            "SFTTrainer.eval_dataset",
            "SFTTrainer.tokenizer",
            "SFTTrainer.dataset_text_field",
            "save_pretrained.save_directory",
            "save_pretrained[2].save_directory",
        ),
    ),
    Shape(
        "Unsloth's notebook: batched formatting, answers alone",
        '''
from unsloth import FastLanguageModel, is_bfloat16_supported
from unsloth.chat_templates import train_on_responses_only
from trl import SFTConfig, SFTTrainer
from datasets import load_dataset

model, tokenizer = FastLanguageModel.from_pretrained("unsloth/base", max_seq_length=1024, token="hf_secret")
model = FastLanguageModel.get_peft_model(model, random_state=3407, loftq_config=None)
prompt = """Ask: {}
Given: {}
Answer: {}"""
EOS = tokenizer.eos_token

def formatting(examples):
    questions = examples["instruction"]
    inputs = examples["input"]
    outputs = examples["output"]
    texts = []
    for question, given, output in zip(questions, inputs, outputs):
        texts.append(prompt.format(question, given, output) + EOS)
    return {"text": texts}

dataset = load_dataset("org/rows", split="train[:500]").map(formatting, batched=True)
trainer = SFTTrainer(
    model=model, train_dataset=dataset,
    args=SFTConfig(max_steps=60, warmup_steps=5, seed=1, bf16=is_bfloat16_supported(), report_to="none"),
)
trainer = train_on_responses_only(trainer, instruction_part="Ask:", response_part="Answer:")
trainer.train(resume_from_checkpoint=True)
if False:
    model.save_pretrained_gguf("out", tokenizer)
''',
        {
            **_SCRIPT,
            "model.name_or_path": "unsloth/base",
            "adapter.method": "lora",
            "adapter.r": 16,
            "adapter.lora_alpha": 16.0,
            "adapter.target_modules": SEVEN,
            "data.path": "org/rows",
            "data.template": "Ask: {instruction}\nGiven: {input}\nAnswer: {output}",
            "data.train_on": "assistant",
            "data.max_length": 1024,
            "training.max_steps": 60,
            "training.learning_rate": 2e-5,
            "training.warmup_steps": 5,
            "training.precision": "auto",
            "training.seed": 1,
            "logging.report_to": "none",
        },
        lost=(
            "FastLanguageModel.from_pretrained.token",
            "FastLanguageModel.get_peft_model.random_state",
            "load_dataset.split",
            "train.resume_from_checkpoint",
        ),
        idle=(
            "FastLanguageModel.get_peft_model.model",
            "FastLanguageModel.get_peft_model.loftq_config",
            "map.batched",
            *_MADE_BEFORE,
            "train_on_responses_only.trainer",
            "train_on_responses_only.instruction_part",
            "line 31",
        ),
    ),
    Shape(
        "PEFT and TRL, with a command line and a class of constants",
        """
import argparse, os
import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, EarlyStoppingCallback
from trl import DataCollatorForCompletionOnlyLM, SFTConfig, SFTTrainer

os.environ["WANDB_PROJECT"] = "mine"
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=1e-4)
parser.add_argument("--epochs", type=int)
options = parser.parse_args()

class Base:
    name = "org/base"
    rank = 4

def main():
    dtype = torch.bfloat16
    quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(Base.name, quantization_config=quantized, device_map="auto")
    tokenizer = AutoTokenizer.from_pretrained(Base.name)
    shape = dict(r=Base.rank, lora_alpha=2 * Base.rank)
    rows = load_dataset("json", data_files={"train": "a.jsonl", "test": "b.jsonl"})

    def formatting(row):
        return "Q: " + row["ask"] + "\\nA: " + row["reply"] + tokenizer.eos_token

    trainer = SFTTrainer(
        model,
        SFTConfig(
            output_dir=f"runs/{Base.rank}", learning_rate=options.lr, num_train_epochs=options.epochs, bf16=True,
            eval_strategy="steps", eval_steps=10, save_steps=10, load_best_model_at_end=True, mystery=3,
        ),
        train_dataset=rows["train"],
        peft_config=LoraConfig(**shape, task_type="CAUSAL_LM", target_modules="all-linear"),
        formatting_func=formatting,
        data_collator=DataCollatorForCompletionOnlyLM("A:", tokenizer=tokenizer),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=3)],
    )
    trainer.train()

if __name__ == "__main__":
    main()
""",
        {
            **_without(_SCRIPT, "data.test_size"),
            **_SCRIPT_LORA,
            "model.name_or_path": "org/base",
            "model.load_in_4bit": True,
            "adapter.r": 4,
            "adapter.lora_alpha": 8,
            "adapter.target_modules": "all-linear",
            "data.path": "a.jsonl",
            "data.columns": {"ask": "instruction", "reply": "output"},
            "data.template": "Q: {instruction}\nA: {output}",
            "data.train_on": "assistant",
            "data.validation_path": "b.jsonl",
            "training.learning_rate": 1e-4,
            "training.precision": "bf16",
            "evaluation.eval_strategy": "steps",
            "evaluation.eval_steps": 10,
            "evaluation.load_best_model_at_end": True,
            "evaluation.early_stopping_patience": 3,
            "checkpoints.save_steps": 10,
            "logging.project": "mine",
            "output_dir": "runs/4",
        },
        lost=("SFTConfig.num_train_epochs", "SFTConfig.mystery"),
        idle=(
            "BitsAndBytesConfig.bnb_4bit_quant_type",
            "BitsAndBytesConfig.bnb_4bit_compute_dtype",
            "from_pretrained.quantization_config",
            "from_pretrained.device_map",
            "AutoTokenizer.from_pretrained.name",
            "LoraConfig.task_type",
            *_MADE_BEFORE,
            "SFTTrainer.peft_config",
            "SFTTrainer.data_collator",
            "SFTTrainer.callbacks",
            "DataCollatorForCompletionOnlyLM.tokenizer",
        ),
    ),
    Shape(
        "all weights, the model by name, chats by their template",
        """
from datasets import load_dataset, Dataset
from trl import SFTConfig, SFTTrainer

rows = load_dataset("org/chats", "en", split="train_sft", streaming=True)
rows = rows.map(lambda row: {"text": tokenizer.apply_chat_template(row["messages"], tokenize=False)})
rows = rows.shuffle(seed=3).select(range(100))
rows = rows.rename_column("dialog", "messages")
extra = Dataset.from_list([{"text": "x"}])
SFTTrainer(model="org/base", train_dataset=rows, args=SFTConfig(learning_rate=1e-5 / 2, warmup_steps=int(1e2)))
""",
        {
            **_SCRIPT,
            "model.name_or_path": "org/base",
            "data.path": [{"path": "org/chats", "subset": "en", "split": "train_sft"}],
            "data.template": "model",
            "data.columns": {"dialog": "messages"},
            "training.learning_rate": 5e-6,
            "training.warmup_steps": 100,
        },
        lost=("load_dataset.streaming", "select.select", "Dataset.from_list.mapping[0].text"),
        idle=("shuffle.seed", "SFTTrainer.train_dataset", "SFTTrainer.args"),
    ),
    Shape(
        "the guide's own two prompts, and values that hang on something",
        f'''
from transformers import AutoModelForCausalLM, TrainingArguments
from trl import SFTTrainer
import sys

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], torch_dtype="bfloat16")
model.gradient_checkpointing_enable()
rate = 1e-4
if len(sys.argv) > 2:
    rate = 1e-3

def prompt(example):
    if example.get("input"):
        text = f"""{_ALPACA_HEAD}, paired with an input.
{{example["instruction"]}}
{{example["input"]}}
{{example["output"]}}"""
    else:
        text = f"""{_ALPACA_HEAD}.
{{example["instruction"]}}
{{example["output"]}}"""
    return {{"text": text}}

data = data.map(prompt)
args = TrainingArguments("out", learning_rate=rate, per_device_train_batch_size=2 * 2)
SFTTrainer(model=model, train_dataset=data, args=args)
''',
        {
            **_SCRIPT,
            "model.name_or_path": "none",
            "model.dtype": "bfloat16",
            "data.template": "alpaca",
            "training.per_device_train_batch_size": 4,
            "training.gradient_checkpointing": True,
            "output_dir": "out",
        },
        lost=("from_pretrained.pretrained_model_name_or_path", "TrainingArguments.learning_rate"),
        idle=_MADE_BEFORE,
    ),
    Shape(
        "a formatting function that is more than a text",
        """
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

lora = LoraConfig(r=2, lora_alpha=4, rank_pattern={"a": 1})
model = get_peft_model(AutoModelForCausalLM.from_pretrained("org/base"), lora)

def tokenise(row):
    return tokenizer(row["text"], truncation=True)

train = train.map(tokenise, remove_columns=["text"])
args = TrainingArguments(output_dir="o", report_to="all", fsdp="full_shard")
Trainer(model=model, train_dataset=train, args=args).train()
""",
        {
            **_without(_SCRIPT, "data.max_length", "data.overlong"),
            **_SCRIPT_LORA,
            "model.name_or_path": "org/base",
            "adapter.r": 2,
            "adapter.lora_alpha": 4,
            "output_dir": "o",
        },
        lost=(
            "LoraConfig.rank_pattern.a",
            "map.function",
            "TrainingArguments.report_to",
            "TrainingArguments.fsdp",
        ),
        idle=(
            "get_peft_model.model",
            "get_peft_model.peft_config",
            "map.remove_columns",
            "Trainer.model",
            "Trainer.train_dataset",
            "Trainer.args",
        ),
    ),
)

TOOLS: dict[str, tuple[Shape, ...]] = {
    "axolotl": AXOLOTL,
    "llamafactory": LLAMAFACTORY,
    "trl": TRL,
    "unsloth": UNSLOTH,
    "litgpt": LITGPT,
    "script": SCRIPTS,
}
