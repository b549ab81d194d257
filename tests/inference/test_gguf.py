"""A GGUF is the model that it was made of: asked in llama.cpp, it gives the same ids and the same greedy tokens."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import CHATML, CHATML_BOS, byte_tokenizer, tiny_model
from truetune.errors import BackendError, ConfigError
from truetune.inference.gguf import GgufModel, interleaved, require_exportable, write_gguf
from truetune.inference.gguf_tokenizer import CUTS, PROBES, Vocabulary
from truetune.inference.llama_cpp import Asked, LlamaCppCheck, ask, texts_of
from truetune.inference.quantization import QUANTIZATIONS, choose_quantization, packer
from truetune.listener import LogListener
from truetune.model.fixtures import FixedPrompt, record
from truetune.model.load import read_config
from truetune.model.source import ModelSource, resolve_model
from truetune.model.tokenizer import load_tokenizer

PROMPTS = ("hi", "Tell me more about <|im_end|>!", "12 + 34 =")
SIZES = {
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
WINDOW = {"sliding_window": 16, "head_dim": 16, "query_pre_attn_scalar": 16}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("Llama", {"head_dim": 32}),
    "llama-3.1": ("Llama", {"rope_parameters": LLAMA_3}),
    "llama-linear": ("Llama", {"rope_parameters": LINEAR}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma2": ("Gemma2", WINDOW),
    "gemma3": ("Gemma3", WINDOW),
}


def random_model(kind: str, **changes: Any) -> Any:
    """A random model whose every weight counts: norms and biases are not what they are made as."""
    import torch
    import transformers

    name, own = KINDS[kind]
    torch.manual_seed(0)
    config_name = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    config = getattr(transformers, config_name)(
        **{**SIZES, "initializer_range": 0.2, **own, **changes}, bos_token_id=256, eos_token_id=257, pad_token_id=258
    )
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@dataclass(frozen=True)
class Saved:
    """A model in a folder, with its tokenizer."""

    model: Any
    tokenizer: Any
    gguf: GgufModel


def saved(folder: Path, model: Any, tokenizer: Any) -> Saved:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    source = ModelSource(str(folder), str(folder))
    config, tokenizer = read_config(source), load_tokenizer(source)
    vocabulary = Vocabulary(tokenizer, config.vocab_size)
    gguf = GgufModel(folder, config, vocabulary, "x", (260, 257), False, tokenizer.chat_template)
    return Saved(model, tokenizer, gguf)


def checked(
    made: Saved, path: Path, *, quantization: str = "f32", prompts: tuple[str, ...] = PROMPTS, bos: str = ""
) -> LlamaCppCheck:
    """What llama.cpp finds in the GGUF of `made.gguf`, held against `made.model`."""
    write_gguf(made.gguf, path, quantization=QUANTIZATIONS[quantization], listener=LogListener())
    template = [
        made.tokenizer.apply_chat_template(
            [{"role": "user", "content": each}], tokenize=False, add_generation_prompt=True
        )
        for each in prompts
    ]
    asked = [
        FixedPrompt(tuple(made.tokenizer(each, add_special_tokens=False)["input_ids"]), each) for each in template
    ]
    fixtures = record(made.model, asked, stop_token_ids=made.gguf.stop_token_ids).fixtures
    conversation = ({"role": "user", "content": prompts[0]},)
    return ask(
        path,
        Asked(
            fixtures,
            texts_of(made.tokenizer, fixtures),
            ((conversation, template[0], len(asked[0].prompt_ids)),),
            made.gguf.stop_token_ids,
            bos,
        ),
        is_tie=lambda *_: False,
        listener=LogListener(),
    )


def quantised(name: str, tensor: str, shape: tuple[int, ...], *, layers: int = 8, is_tied: bool = True) -> str:
    return QUANTIZATIONS[name].stored(tensor, shape, layers=layers, is_tied=is_tied)


@pytest.mark.parametrize("kind", KINDS)
def test_in_llama_cpp_every_architecture_answers_as_it_does_here(kind: str, tmp_path: Path) -> None:
    made = saved(tmp_path / "model", random_model(kind), byte_tokenizer(chat_template=CHATML))
    found = checked(made, tmp_path / "x.gguf", prompts=(*PROMPTS, "a longer prompt, " * 8))
    assert (found.prompts, found.equal, found.token_ids_equal) == (4, 4, 4), found.first_difference
    assert (found.other_ids, found.other_text, found.other_prompts) == (None, None, None)
    # llama.cpp looks Gemma's GELU up in a table of f16.
    assert found.max_abs_logit_difference is not None
    assert found.max_abs_logit_difference < (5e-3 if kind.startswith("gemma") else 1e-4)


@pytest.mark.parametrize("quantization", ["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"])
def test_every_quantization_is_loaded_and_near_the_model(quantization: str, tmp_path: Path) -> None:
    model = random_model("llama", hidden_size=256, intermediate_size=256, initializer_range=0.1)
    made = saved(tmp_path / "model", model, byte_tokenizer(chat_template=CHATML))
    found = checked(made, tmp_path / "x.gguf", quantization=quantization)
    assert found.token_ids_equal == 3
    assert found.tokens_equal_rate > (0.9 if quantization in ("f16", "bf16", "q8_0") else 0.3)


def test_another_model_in_the_file_is_told_with_the_token_and_its_lead(tmp_path: Path) -> None:
    made = saved(tmp_path / "model", random_model("llama"), byte_tokenizer(chat_template=CHATML))
    other = replace(made, model=random_model("llama", rms_norm_eps=0.5))
    found = checked(other, tmp_path / "x.gguf")
    assert not found.is_same
    assert found.first_difference
    assert "in llama.cpp and" in found.first_difference


def test_an_answer_that_does_not_end_in_llama_cpp_is_told(tmp_path: Path) -> None:
    made = saved(tmp_path / "model", random_model("llama"), byte_tokenizer(chat_template=CHATML))
    asked = made.tokenizer.apply_chat_template([{"role": "user", "content": PROMPTS[0]}], add_generation_prompt=True)
    prompt = FixedPrompt(tuple(asked["input_ids"]), "")
    (first,) = record(made.model, [prompt], stop_token_ids=(), has_drafts=False).fixtures
    stop = first.answer_ids[0]
    stopping = replace(made, gguf=replace(made.gguf, stop_token_ids=(257, stop)))
    fixture = replace(first, answer_ids=(stop,), margins=first.margins[:1], text="x")
    for gguf, is_equal in ((stopping.gguf, 1), (made.gguf, 0)):
        write_gguf(gguf, tmp_path / "x.gguf", quantization=QUANTIZATIONS["f32"], listener=LogListener())
        question = Asked((fixture,), (("x", (120,)),), (), stop_token_ids=(stop,))
        found = ask(tmp_path / "x.gguf", question, is_tie=lambda *_: True, listener=LogListener())
        assert (found.equal, found.ties) == (is_equal, 0)
    assert f"does not stop at token {stop}" in str(found.first_difference)


def test_a_server_that_prompts_otherwise_is_told(tmp_path: Path) -> None:
    made = saved(tmp_path / "model", random_model("llama"), byte_tokenizer(chat_template=CHATML))
    told = replace(
        made, gguf=replace(made.gguf, chat_template=CHATML.replace("user", "human").replace("}}\n", "}} "))
    )
    found = checked(told, tmp_path / "x.gguf")
    assert found.equal == 3
    assert found.other_prompts


def test_a_server_puts_one_bos_before_a_chat(tmp_path: Path) -> None:
    made = saved(tmp_path / "model", random_model("llama"), byte_tokenizer(chat_template=CHATML_BOS, adds_bos=True))
    made = replace(made, gguf=replace(made.gguf, adds_bos=True))
    found = checked(made, tmp_path / "x.gguf", bos="<s>")
    assert (found.equal, found.other_prompts) == (3, None)


def test_a_file_that_is_none_is_our_error_with_llama_cpps_reason(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"no model at all")
    with pytest.raises(BackendError, match=r"llama\.cpp could not use the file"):
        ask(tmp_path / "x.gguf", Asked((), (), (), ()), is_tie=lambda *_: False, listener=LogListener())


# --- tokenizers -------------------------------------------------------------------------------------------


def trained_tokenizer(name: str) -> Any:
    """A byte-level BPE with merges, that cuts a text as llama.cpp does under this name."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    cut = next(each for each in CUTS if each.name == name)
    tokenizer = Tokenizer(models.BPE(ignore_merges=cut.ignores_merges))
    pieces = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in cut.patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*PROBES] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=CHATML
    )


@pytest.mark.parametrize("name", [each.name for each in CUTS])
def test_how_a_text_is_cut_is_known_by_what_the_tokenizer_does(name: str) -> None:
    tokenizer = trained_tokenizer(name)
    assert Vocabulary(tokenizer, len(tokenizer)).cut == name


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_llama_cpp_makes_the_same_tokens_of_texts_that_are_hard_to_cut(name: str, tmp_path: Path) -> None:
    tokenizer = trained_tokenizer(name)
    made = saved(tmp_path / "model", tiny_model(vocab_size=len(tokenizer)), tokenizer)
    found = checked(replace(made, gguf=replace(made.gguf, stop_token_ids=(1,))), tmp_path / "x.gguf")
    assert (found.token_ids_equal, found.other_text) == (3, None)


@pytest.mark.parametrize("prepends", ["always", "never"])
def test_llama_cpp_makes_the_same_tokens_by_sentencepiece_s_scores(prepends: str, tmp_path: Path) -> None:
    tokenizer = spm_tokenizer(prepends)
    made = saved(tmp_path / "model", tiny_model(vocab_size=len(tokenizer)), tokenizer)
    assert (made.gguf.vocabulary.model, made.gguf.vocabulary.adds_space) == ("llama", prepends == "always")
    found = checked(replace(made, gguf=replace(made.gguf, stop_token_ids=(2,))), tmp_path / "x.gguf")
    assert (found.token_ids_equal, found.equal, found.other_text) == (3, 3, None)


def spm_tokenizer(prepends: str) -> Any:
    """A BPE that falls back on bytes, as transformers makes of a tokenizer.model; tokens of several merges each."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # Of `ell` the first merge leaves e, ll: whoever merges from the left makes el, l.
    merges = [("▁", "a"), ("l", "l"), ("▁", "T"), ("o", "r"), ("m", "or"), ("mor", "e"), ("e", "l")]
    letters = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *map(chr, range(33, 127))]
    words = ["<unk>", "<s>", "</s>", *letters, *dict.fromkeys(left + right for left, right in merges)]
    vocabulary = {token: index for index, token in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepends, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in words[:3]])
    template = "{{ bos_token }}{% for m in messages %}[INST]{{ m['content'] }}[/INST]{% endfor %}"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=template
    )


def test_a_cut_that_has_no_name_is_refused_with_the_way_out() -> None:
    from tokenizers import pre_tokenizers

    tokenizer = trained_tokenizer("gpt-2")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("e", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(BackendError, match="cuts a text") as caught:
        _ = Vocabulary(tokenizer, len(tokenizer)).cut
    assert "convert_hf_to_gguf" in str(caught.value.hint)


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")))
    with pytest.raises(BackendError, match=r"this tokenizer \(WordLevel\)"):
        _ = Vocabulary(words, 2).model


def test_embeddings_without_a_token_are_named_and_tokens_without_an_embedding_refused() -> None:
    tokenizer = byte_tokenizer()
    padded = Vocabulary(tokenizer, 263)
    assert padded.tokens[259:] == ["<|im_start|>", "<|im_end|>", "[PAD261]", "[PAD262]"]
    assert padded.kinds[259:] == [3, 3, 5, 5]
    with pytest.raises(BackendError, match="token 260, and the model 260 embeddings"):
        _ = Vocabulary(tokenizer, 260).tokens


# --- what is refused, and how tensors are stored ----------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "what"),
    [
        ("llama", {"hidden_act": "gelu"}, "gelu"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, "sliding window"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope"),
        ("gemma2", {"query_pre_attn_scalar": 224}, "query_pre_attn_scalar is 224"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    kind: str, changes: dict[str, Any], what: str, tmp_path: Path
) -> None:
    made = saved(tmp_path / "model", random_model(kind, **changes), byte_tokenizer(chat_template=CHATML))
    with pytest.raises(BackendError, match=what):
        require_exportable(made.gguf)


def test_an_architecture_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    from transformers import GPT2Config

    config = GPT2Config(architectures=["GPT2LMHeadModel"])
    model = GgufModel(tmp_path, config, Vocabulary(byte_tokenizer(), 261), "x", (), False, None)
    with pytest.raises(BackendError, match="no GGUF of GPT2LMHeadModel") as caught:
        require_exportable(model)
    assert "--llama-cpp" in str(caught.value.hint)


def test_numbers_too_large_for_f16_are_refused_by_the_tensors_name(tmp_path: Path) -> None:
    import torch

    model = random_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = 1e5
    made = saved(tmp_path / "model", model, byte_tokenizer(chat_template=CHATML))
    with pytest.raises(BackendError, match=r"layers\.1\.mlp\.up_proj.*too large for f16"):
        checked(made, tmp_path / "x.gguf", quantization="f16")


def test_rows_of_a_head_are_put_side_by_side() -> None:
    rows = np.arange(8)[:, None]
    assert interleaved(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_k_quants_are_mixed_as_llama_cpp_mixes_them() -> None:
    assert quantised("q4_k_m", "token_embd.weight", (512, 256)) == "Q6_K"
    assert quantised("q4_k_m", "token_embd.weight", (512, 256), is_tied=False) == "Q4_K"
    assert quantised("q4_k_m", "output.weight", (512, 256), is_tied=False) == "Q6_K"
    values = [quantised("q4_k_m", f"blk.{layer}.attn_v.weight", (256, 256)) for layer in range(8)]
    assert values == ["Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q6_K"]
    assert quantised("q4_k_m", "blk.0.attn_q.weight", (256, 256)) == "Q4_K"
    assert quantised("q4_k_m", "blk.0.attn_norm.weight", (256,)) == "F32"


def test_rows_that_no_block_fits_are_stored_otherwise() -> None:
    assert quantised("q4_k_m", "blk.1.attn_q.weight", (576, 576)) == "Q5_0"
    assert quantised("q6_k", "blk.1.attn_q.weight", (576, 576)) == "Q8_0"
    assert quantised("q8_0", "blk.1.attn_q.weight", (48, 48)) == "F16"


@pytest.mark.parametrize("stored", ["Q4_K", "Q5_K", "Q6_K", "IQ4_NL"])
def test_llama_cpps_quantiser_is_reached_and_read_back(stored: str) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    values = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
    packed = packer(QUANTIZATIONS["q4_k_m"])(values, stored)
    off = dequantize(packed, GGMLQuantizationType[stored]) - values
    assert float(np.abs(off).max()) < (0.1 if stored == "Q6_K" else 0.5)


def test_a_quantization_is_chosen_by_name_or_as_the_model_is_stored() -> None:
    assert choose_quantization("auto", dtype="bfloat16").name == "bf16"
    assert choose_quantization("Q8_0", dtype="float32").name == "q8_0"
    with pytest.raises(ConfigError, match="no such quantization: q9") as caught:
        choose_quantization("q9", dtype="float32")
    assert "q4_k_m" in str(caught.value.hint)


# --- the real model ---------------------------------------------------------------------------------------


@pytest.mark.real
def test_smollm2_answers_in_llama_cpp_as_here(tmp_path: Path) -> None:
    from truetune.model.load import ModelOptions, load_model

    source = resolve_model("demo")
    folder, tokenizer = Path(source.path), load_tokenizer(source)
    config = read_config(source)
    gguf = GgufModel(
        folder, config, Vocabulary(tokenizer, config.vocab_size), "x", (2,), False, tokenizer.chat_template
    )
    made = Saved(load_model(source, ModelOptions("float32", "cpu")), tokenizer, gguf)
    prompts = ("What is the capital of France?", "Write a haiku about rain.", "List three fruits.")
    found = checked(made, tmp_path / "x.gguf", prompts=prompts)
    assert (found.equal, found.token_ids_equal, found.other_text, found.other_prompts) == (3, 3, None, None)
    assert json.dumps(found.as_json())
