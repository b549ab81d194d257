"""A model's sizes, read off an empty copy of it: memory and learning rate are planned from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

GATED_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
"""The children of an MLP that model/fused_blocks.py takes the place of."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A matrix that an adapter can stand on; `copies` in one parameter, as a mixture's experts are.

    `ranks` are 2 where PEFT doubles the rank, since two of the model's former matrices are one now.
    """

    name: str
    inputs: int
    outputs: int
    copies: int = 1
    ranks: int = 1

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs * self.copies


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a causal language model. `intermediate` is what an MLP makes of one token (of all experts asked).

    `norms` of the hidden size are in a layer, beside those of queries and keys if it `norms_heads`. `blocks`: gated
    (norms and MLPs as Llama's, which are fused), mixture, or other.
    """

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int
    norms: int
    norms_heads: bool
    blocks: Literal["gated", "mixture", "other"]
    caps_attention: bool
    linear: tuple[Layer, ...]

    @property
    def linear_weights(self) -> int:
        return sum(layer.weights for layer in self.linear)

    def adapter_weights(self, r: int, targets: str | Sequence[str]) -> int:
        """The weights of LoRA's factors on the layers of these last names; on all of them for a name of none."""
        named = [layer for layer in self.linear if not isinstance(targets, str) and layer.name in targets]
        return sum(r * each.ranks * each.copies * (each.inputs + each.outputs) for each in named or self.linear)


def configured_shape(config: Any, *, trust_remote_code: bool = False) -> ModelShape:
    """The shape of the model that one of transformers' configurations makes; nothing is loaded."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return shape_of(model)


def shape_of(model: Any) -> ModelShape:
    """The shape of one of transformers' models, with weights or without."""
    config = model.config.get_text_config()
    return shape_with(
        config,
        parameters=int(model.num_parameters()),
        linear=tuple(_layers(model)),
        norms=_norms(model, int(config.hidden_size)),
        norms_heads=any(name.endswith(("q_norm", "k_norm")) for name, _ in model.named_modules()),
        is_gated=any({name for name, _ in module.named_children()} == GATED_MLP for module in model.modules()),
    )


def shape_with(
    config: Any, *, parameters: int, linear: tuple[Layer, ...], norms: int, norms_heads: bool, is_gated: bool
) -> ModelShape:
    """The shape of a model with these modules, `norms` in all; `config` has its sizes as attributes."""
    hidden = int(config.hidden_size)
    heads = int(getattr(config, "num_attention_heads", None) or max(1, hidden // 64))
    return ModelShape(
        parameters=parameters,
        layers=int(config.num_hidden_layers),
        hidden=hidden,
        intermediate=_intermediate(config, hidden),
        heads=heads,
        key_value_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_size=int(getattr(config, "head_dim", None) or hidden // heads),
        vocabulary=int(config.vocab_size),
        norms=norms // int(config.num_hidden_layers),
        norms_heads=norms_heads,
        blocks=_blocks(linear, is_gated=is_gated),
        caps_attention=getattr(config, "attn_logit_softcapping", None) is not None,
        linear=linear,
    )


def _layers(model: Any) -> list[Layer]:
    """The linear layers but the output layer, and a mixture's stacked experts."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    found = []
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if isinstance(module, Linear | Conv1D) and module is not head:
            rows, columns = module.weight.shape
            found.append(Layer(name, columns, rows))
        stacked = ((each, value) for each, value in module.named_parameters(recurse=False) if value.dim() == 3)
        found += [_experts(each, *value.shape) for each, value in stacked]
    return found


def _experts(name: str, copies: int, outputs: int, inputs: int) -> Layer:
    return Layer(name, inputs, outputs, copies, ranks=2 if name == "gate_up_proj" else 1)


def _norms(model: Any, hidden: int) -> int:
    named = (module for module in model.modules() if "Norm" in type(module).__name__)
    return sum(
        1 for module in named if getattr(module, "weight", None) is not None and module.weight.numel() == hidden
    )


def _blocks(linear: Sequence[Layer], *, is_gated: bool) -> Literal["gated", "mixture", "other"]:
    if any(layer.copies > 1 for layer in linear):
        return "mixture"
    return "gated" if is_gated else "other"


def _intermediate(config: Any, hidden: int) -> int:
    names = ("moe_intermediate_size", "intermediate_size", "n_inner", "ffn_dim")
    width = next((int(value) for name in names if (value := getattr(config, name, None))), 4 * hidden)
    return width * int(getattr(config, "num_experts_per_tok", None) or 1)
