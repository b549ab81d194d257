"""A greedy answer is what the model itself prefers at each place, however it was drafted."""

from typing import Any

import pytest
import torch

from conftest import tiny_model
from tiny_runs import ISOLATING, LEAKING, LORA, architecture
from truetune.model.adapter import add_adapter
from truetune.model.fixtures import FixedPrompt, record
from truetune.model.greedy import answer_logits, drafts, greedy_answer

PROMPTS = [list(range(1, 9)), list(range(40, 43)), list(range(100, 131))]
LIMITS: dict[str, Any] = {"stop_token_ids": (), "max_new_tokens": 8}


@pytest.mark.parametrize("name", [*ISOLATING, *LEAKING])
def test_drafts_of_a_batch_change_no_answer(name: str) -> None:
    model = architecture(name)
    alone = [greedy_answer(model, prompt, **LIMITS) for prompt in PROMPTS]
    for prompt, draft, expected in zip(PROMPTS, drafts(model, PROMPTS, **LIMITS), alone, strict=True):
        found = greedy_answer(model, prompt, draft=draft, **LIMITS)
        count = len(found.answer_ids)
        assert count > 0
        assert found.answer_ids == expected.answer_ids[:count]
        assert found.margins == pytest.approx(expected.margins[:count], abs=1e-4)


def test_a_draft_that_is_right_is_kept_whole_by_one_pass() -> None:
    model = tiny_model().eval()
    expected = greedy_answer(model, PROMPTS[0], **LIMITS)
    assert greedy_answer(model, PROMPTS[0], draft=expected.answer_ids, **LIMITS).answer_ids == expected.answer_ids
    assert len(expected.answer_ids) == 8


def test_an_answer_ends_where_its_draft_goes_wrong_with_the_models_own_token() -> None:
    model = tiny_model().eval()
    expected = greedy_answer(model, PROMPTS[0], **LIMITS).answer_ids
    wrong = [*expected[:3], (expected[3] + 1) % 261, *expected[4:]]
    assert greedy_answer(model, PROMPTS[0], draft=wrong, **LIMITS).answer_ids == expected[:4]


def test_an_answer_ends_with_the_first_stop_token_drafted_or_not() -> None:
    model = tiny_model().eval()
    answer = greedy_answer(model, PROMPTS[0], **LIMITS).answer_ids
    end = answer.index(answer[4])
    limits = {**LIMITS, "stop_token_ids": (answer[4],)}
    assert greedy_answer(model, PROMPTS[0], **limits).answer_ids == answer[: end + 1]
    assert drafts(model, PROMPTS[:1], **limits) == [answer[: end + 1]]


def test_a_bases_own_settings_of_generation_shape_no_draft_and_stay_as_they_are() -> None:
    model = tiny_model().eval()
    expected = drafts(model, PROMPTS, **LIMITS)
    settings = {"repetition_penalty": 3.0, "suppress_tokens": [expected[0][1]], "eos_token_id": [expected[0][0]]}
    model.generation_config.update(**settings)
    assert drafts(model, PROMPTS, **LIMITS) == expected
    assert model.generation_config.suppress_tokens == [expected[0][1]]


def test_an_adapter_is_in_force_while_an_answer_is_drafted() -> None:
    model = add_adapter(tiny_model(), LORA, seed=1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_()
    expected = [greedy_answer(model, prompt, **LIMITS).answer_ids for prompt in PROMPTS]
    assert drafts(model, PROMPTS, **LIMITS) == expected
    assert drafts(tiny_model(), PROMPTS, **LIMITS) != expected


def test_the_logits_are_those_of_the_answers_places_and_of_the_one_behind() -> None:
    model = tiny_model().eval()
    with torch.no_grad():
        whole = model(torch.tensor([[1, 2, 3, 4, 5]])).logits[0]
    assert torch.allclose(answer_logits(model, [1, 2, 3], [4, 5]), whole[2:], atol=1e-6)


def test_a_model_whose_logits_are_no_numbers_has_no_answers() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        record(model, [FixedPrompt((1, 2), "ab")], stop_token_ids=())


def test_without_drafts_the_record_is_the_same() -> None:
    model = tiny_model()
    prompts = [FixedPrompt(tuple(each), "prompt") for each in PROMPTS]
    drafted, plain = (record(model, prompts, stop_token_ids=(), has_drafts=each) for each in (True, False))
    assert [each.answer_ids for each in drafted.fixtures] == [each.answer_ids for each in plain.fixtures]
    assert drafted.dtype == plain.dtype == "float32"
