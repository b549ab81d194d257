"""The random models of bench/plan.py, with a tokenizer of bytes: folders as save_pretrained writes them.

python plan_models.py FOLDER NAME … [--large]
"""

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from gpu_check import byte_tokenizer

_COMMON: dict[str, Any] = {
    "max_position_embeddings": 8192,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}


def _sizes(vocabulary: int, hidden: int, inner: int, layers: int, heads: int, **others: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(heads // 4, 1),
        **_COMMON,
        **others,
    }


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("Llama", _sizes(300, 32, 64, 2, 4)),
    "deep": ("Llama", _sizes(32_000, 384, 1_024, 32, 6)),
    "wide": ("Llama", _sizes(32_000, 2_048, 5_632, 4, 16)),
    "words": ("Llama", _sizes(128_256, 768, 2_048, 6, 12, tie_word_embeddings=True)),
    "qwen": ("Qwen3", _sizes(50_000, 1_024, 3_072, 8, 16, head_dim=64, tie_word_embeddings=True)),
    "gpt2": ("GPT2", {"vocab_size": 50_257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 4_096}),
}
LARGE: dict[str, tuple[str, dict[str, Any]]] = {
    **MODELS,
    "deep": ("Llama", _sizes(32_000, 1_024, 2_816, 48, 16)),
    "wide": ("Llama", _sizes(32_000, 4_096, 11_008, 8, 32)),
    "words": ("Llama", _sizes(128_256, 2_048, 8_192, 16, 32, tie_word_embeddings=True)),
    "qwen": ("Qwen3", _sizes(151_936, 2_560, 9_728, 18, 32, head_dim=128, tie_word_embeddings=True)),
}


def write_model(folder: Path, kind: str, sizes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)


if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    models = LARGE if "--large" in names else MODELS
    for name in names:
        if name != "--large":
            write_model(Path(folder) / name, *models[name])
