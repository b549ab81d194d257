"""How fast prompts of a file are answered: truetune's batches beside plain `model.generate`, one prompt at a time.

    .venv/bin/python bench/generate.py [RUN] [--prompts 48] [--rounds 3] [--max-new-tokens 128] [--batch-size auto]

RUN is what `truetune generate` takes, by default the demo model without any training. Both answer the same prompts
greedily with the same weights in one process, one after the other in each round, in an order that changes. The ratio
is the one of answer tokens a second, as a median over the rounds with its range, by the clock and by CPU time (for a
machine that does other work, too); how many answers are the same to the token is told, for batches round otherwise
than single rows.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

Answers = list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="demo")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--batch-size", default="auto")
    compare(parser.parse_args())


def compare(options: argparse.Namespace) -> None:
    from truetune.inference.generate import load_trained

    model = load_trained(options.run)
    prompts = questions(options.prompts)
    ways = {"one by one": one_by_one(model, prompts, options), "truetune": in_batches(model, prompts, options)}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    cpu_rates: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Answers] = {}
    for number in range(options.rounds):
        for name in sorted(ways, reverse=bool(number % 2)):
            started, cpu_started = time.perf_counter(), time.process_time()
            found[name] = ways[name]()
            tokens = sum(map(len, found[name]))
            rates[name].append(tokens / (time.perf_counter() - started))
            cpu_rates[name].append(tokens / (time.process_time() - cpu_started))
            print(f"round {number + 1}, {name}: {rates[name][-1]:,.1f} answer tokens/s", flush=True)
    tell_answers(found)
    print(f"truetune answers at {ratio(rates)}")
    print(f"by CPU time at {ratio(cpu_rates)}")


def tell_answers(found: dict[str, Answers]) -> None:
    alone, together = found["one by one"], found["truetune"]
    lengths = [len(answer) for answer in alone]
    same = sum(left == right for left, right in zip(alone, together, strict=True))
    middle = statistics.median(lengths)
    print(f"{len(alone)} answers of {min(lengths)} to {max(lengths)} tokens, {middle:.0f} in the middle")
    print(f"{same} of {len(alone)} answers are the same")


def ratio(rates: dict[str, list[float]]) -> str:
    ratios = [right / left for left, right in zip(rates["one by one"], rates["truetune"], strict=True)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds"
    return f"{statistics.median(ratios):.2f} times the rate of one by one ({spread})"


def questions(count: int) -> list[str]:
    """Requests of many lengths, whose answers have many lengths too."""
    from truetune.data.demo import demo_rows

    asked = [row["instruction"] for row in demo_rows(seed=7).train]
    short = ("Say yes.", "Name a colour.", "What is 2 + 3?", "List three animals.", "Write two sentences about rain.")
    return [text for pair in zip(short * count, asked, strict=False) for text in pair][:count]


def one_by_one(model: Any, prompts: list[str], options: argparse.Namespace) -> Callable[[], Answers]:
    import torch

    ids = [model.prompt_ids(model.as_example(prompt)) for prompt in prompts]

    def answer(prompt: list[int]) -> list[int]:
        asked = torch.tensor([prompt], device=model.model.device)
        with torch.inference_mode():
            said = model.model.generate(
                input_ids=asked,
                attention_mask=torch.ones_like(asked),
                max_new_tokens=options.max_new_tokens,
                do_sample=False,
                eos_token_id=list(model.template.stop_token_ids),
                pad_token_id=0,
            )
        return said[0, len(prompt) :].tolist()

    return lambda: [answer(prompt) for prompt in ids]


def in_batches(model: Any, prompts: list[str], options: argparse.Namespace) -> Callable[[], Answers]:
    from truetune.inference.generate import Sampling

    size = options.batch_size if options.batch_size == "auto" else int(options.batch_size)
    sampling = Sampling(max_new_tokens=options.max_new_tokens)

    def answer() -> Answers:
        examples = [model.as_example(prompt) for prompt in prompts]
        found = model.generate_batch(examples, sampling=sampling, batch_size=size)
        return [list(each.answer_ids) for each in found]

    return answer


if __name__ == "__main__":
    main()
