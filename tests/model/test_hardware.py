"""What the machine can do is asked; what it cannot is refused with what it can."""

import json
import os
from typing import Any

import pytest
import torch

from truetune.errors import BackendError
from truetune.model import hardware
from truetune.model.hardware import (
    DTYPES,
    describe,
    emulated,
    has_native_bf16,
    resolve_device,
    resolve_precision,
    use_one_gpu,
)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_g20_fp16_without_a_gpu_is_refused_and_auto_is_offered() -> None:
    for device in ("cpu", "mps"):
        with pytest.raises(BackendError) as caught:
            resolve_precision("fp16", device)
        assert all(word in str(caught.value) for word in ("fp16", "GPU", device, "auto"))


@pytest.mark.parametrize(("is_native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_g20_auto_on_a_cpu_is_bf16_where_that_is_native_else_fp32_and_never_fp16(
    monkeypatch: pytest.MonkeyPatch, is_native: bool, expected: str
) -> None:
    monkeypatch.setattr(hardware, "has_native_bf16", lambda _: is_native)
    assert resolve_precision("auto", "cpu") == expected
    assert resolve_precision("auto", "mps") == expected


@pytest.mark.parametrize(("is_native", "expected"), [(True, "bf16"), (False, "fp16")])
def test_g20_auto_on_a_gpu_is_bf16_where_that_is_native_else_fp16(
    monkeypatch: pytest.MonkeyPatch, is_native: bool, expected: str
) -> None:
    monkeypatch.setattr(hardware, "has_native_bf16", lambda _: is_native)
    assert resolve_precision("auto", "cuda") == expected


def test_bf16_on_a_gpu_without_it_is_refused_and_on_a_cpu_it_is_the_users_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "has_native_bf16", lambda _: False)
    with pytest.raises(BackendError, match="bf16 is not supported by this GPU"):
        resolve_precision("bf16", "cuda")
    assert resolve_precision("bf16", "cpu") == "bf16"


def test_g20_bf16_that_a_cpu_emulates_is_said_to_be_slow_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "has_native_bf16", lambda _: False)
    said = emulated("bf16", "cpu")
    assert said
    assert all(word in said for word in ("bf16", "3 times", "90 times", "auto chooses fp32"))
    assert emulated("fp32", "cpu") is emulated("bf16", "mps") is None
    monkeypatch.setattr(hardware, "has_native_bf16", lambda _: True)
    assert emulated("bf16", "cpu") is None


def test_native_bf16_is_what_the_cpu_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for capabilities, expected in (
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx2": True}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert has_native_bf16("cpu") is expected
        assert has_native_bf16("mps") is False


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused_with_the_list_of_those_that_are(no_gpu: None, device: Any) -> None:
    with pytest.raises(BackendError, match=f"{device} is not available here") as caught:
        resolve_device(device)
    assert caught.value.hint == "available: cpu; or use auto"


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_the_fastest_device_there_is(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device("auto") == expected
    assert resolve_device("cpu") == "cpu"


def test_g28_of_several_gpus_one_is_used_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")
    said = use_one_gpu()
    assert said
    assert "4 GPUs are visible and one is used" in said
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"


def test_g28_one_gpu_or_a_launcher_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert use_one_gpu() is None
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert use_one_gpu() is None
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_every_precision_is_a_dtype_of_torch_and_the_machine_fits_into_json() -> None:
    assert {getattr(torch, name) for name in DTYPES.values()} == {torch.float32, torch.bfloat16, torch.float16}
    machine = json.loads(json.dumps(describe()))
    assert machine["cpus"] >= 1
    assert {"machine", "system", "threads", "gpus", "native_bf16"} <= set(machine)
