"""docs/llms.txt: the manual's contents for language models, in the form of llmstxt.org."""

from manual.contents import SECTIONS, pages

HEAD = """# truetune

> A command line and a Python library that fine-tune language models on your own rows (LoRA, QLoRA, full; with TRL
> or Unsloth), and tell what is wrong with the data, which tokens are learned, what a run takes, and whether the
> saved, merged, exported or served model is the one that was trained.

The order that works: `truetune check DATA`, `truetune inspect DATA --model M`, `truetune init DATA --model M -o
run.yaml`, `truetune plan run.yaml`, `truetune train run.yaml`, `truetune eval RUN`, then `truetune merge RUN -o
DIR` or `truetune export RUN --to gguf -o FILE`. What tells something takes `--json`. Exit status 0 is done, 1 means
that the data, the run or the model is not right, 2 that the command or the config is not. `--model demo` is a real
135M model that needs no network.
"""


def text() -> str:
    """Sections with a link and a few words for each page."""
    listed = {section: [page for page in pages() if page.section == section] for section in SECTIONS}
    parts = [HEAD]
    for section, found in listed.items():
        parts.append(
            "\n".join([f"## {section}\n", *(f"- [{each.title}]({each.path}): {each.about}" for each in found), ""])
        )
    return "\n".join(parts)
