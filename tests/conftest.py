"""Real tokenizers and tiny real models, built here: no network, no download."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Workers share the cores: with more threads than cores tiny trainings took a quarter longer.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    _THREADS = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _THREADS)))
# With more, inductor starts processes that load torch each, and compiles no faster on cores that are at work.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import gc
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import warm

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_BOS = "{{ bos_token }}" + CHATML
STRICT = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
THINKING = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.index0 < ns.last %}{{ m['content'].split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}<tool_call>{{ call['function'] | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(
    *,
    chat_template: str | None = None,
    adds_bos: bool = False,
    merges: tuple[tuple[str, str], ...] = (),
    **special: Any,
) -> Any:
    """A byte-level BPE: id = byte value, then <s>=256 </s>=257 <pad>=258 <|im_start|>=259 <|im_end|>=260."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    characters = bytes_to_unicode()
    vocabulary = {characters[byte]: byte for byte in range(256)}
    spelled = [tuple("".join(characters[b] for b in part.encode()) for part in pair) for pair in merges]
    for left, right in spelled:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=spelled))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    if adds_bos:
        bos = ("<s>", tokenizer.token_to_id("<s>"))
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **special}
    built = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{k: v for k, v in tokens.items() if v})
    built.chat_template = chat_template
    return built


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that may take longest are first: at the end no worker waits for the other one's last file."""
    limits: dict[Path, float] = {}
    for item in items:
        limit = item.get_closest_marker("timeout")
        limits[item.path] = max(limits.get(item.path, 0.0), float(limit.args[0]) if limit else 0.0)
    items.sort(key=lambda item: -limits[item.path])


@pytest.fixture(scope="session", autouse=True)
def interrupts_are_heard() -> None:
    """A shell has what it starts in the background ignore SIGINT, and nohup SIGHUP; so would what tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def warm_environment() -> None:
    """Warm commands start from the environment of the first test, before libraries and tests change it."""
    warm.environment()


@pytest.fixture(scope="module", autouse=True)
def frozen() -> None:
    """What is loaded by now is never garbage, and Trainer collects at each training: walking all of torch took longer
    than the steps of a tiny one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def given_environment() -> Iterator[None]:
    """What tests and libraries leave in the environment goes with their file: commands would start cold behind it."""
    given = dict(os.environ)
    yield
    for name in os.environ.keys() - given.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update(given)


@pytest.fixture(scope="session")
def tk() -> Callable[..., Any]:
    """The byte tokenizer's maker."""
    return byte_tokenizer


def tiny_model(*, vocab_size: int = 261, seed: int = 0, **changes: Any) -> Any:
    """A random Llama of a few thousand parameters, in fp32 on the CPU."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings = {**sizes, "num_key_value_heads": 2, "max_position_embeddings": 4096, "eos_token_id": 257, **changes}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, bos_token_id=256, pad_token_id=258, **settings))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a tiny Llama and the byte tokenizer with a ChatML template."""
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    byte_tokenizer(chat_template=CHATML).save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def arithmetic_rows(count: int) -> list[dict[str, Any]]:
    """Short instruction rows, all different."""
    return [{"instruction": f"Add {n} and {n + 1}", "output": str(2 * n + 1)} for n in range(count)]


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 24 arithmetic rows."""
    return write_jsonl(tmp_path_factory.mktemp("data") / "train.jsonl", arithmetic_rows(24))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished LoRA run with checkpoints, which has learnt its twelve rows. Nothing in it may be changed."""
    from tiny_runs import base_in, trained

    folder = tmp_path_factory.mktemp("tiny")
    return trained(base_in(folder / "base"), folder / "run", save_strategy="epoch", max_length=256)
