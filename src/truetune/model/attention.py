"""Whether a model keeps samples apart that stand end to end in one row."""

from typing import Any


def isolates_samples(model: Any) -> bool:
    """True if a sample's logits do not change, bit for bit, when the sample before it does.

    Two samples stand end to end with restarting positions, no mask and no cache. Architectures that ignore the
    restart (linear attention, ALiBi from a mask, remote code) let the first one show through.
    """
    import torch

    vocabulary = model.get_input_embeddings().num_embeddings
    length = 6
    second = [(7 * index + 3) % vocabulary for index in range(length)]
    positions = torch.tensor([[*range(length), *range(length)]], device=model.device)

    def logits_behind(first: list[int]) -> Any:
        ids = torch.tensor([first + second], device=model.device)
        return model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, length:]

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            low = logits_behind([index % vocabulary for index in range(length)])
            high = logits_behind([(vocabulary - 1 - 5 * index) % vocabulary for index in range(length)])
    except (TypeError, ValueError):
        # The model takes no position_ids: it cannot be told where a sample starts.
        return False
    finally:
        model.train(was_training)
    return bool(torch.equal(low, high))
