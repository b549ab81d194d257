"""The contents of the manual: which pages there are, in which order, and in a few words what each is about."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

SECTIONS: Mapping[str, Mapping[str, str]] = {
    "Start": {
        "index.md": "from rows to a model in five steps",
        "installation.md": "environment, torch, extras, sizes, completion in the shell",
        "guide.md": "the fine-tuning guide that truetune implements, what it recommends and how that is said here",
        "examples.md": "tasks with rows, configs and scores, each trained on a CPU in minutes",
    },
    "Prepare data": {
        "data.md": "files, formats, what is learned, what is left out, validation rows, templates",
        "checking.md": "rules that find what ruins a run; choosing them, SARIF, mending, scoring, near duplicates",
    },
    "Choose settings": {
        "training.md": "settings, what auto decides, LoRA and its kinds, batches, validation, answers meanwhile",
        "settings.md": "the rule, the source and the limit behind each default",
        "models.md": "what a model needs and what is unusual about it, from its files alone",
        "engines.md": "TRL or Unsloth, what differs, a training script line by line, doctor",
    },
    "Fit in memory": {
        "memory.md": "levers on memory, in the order in which they are worth trying",
        "planning.md": "steps, memory, time, disk and cost before anything is loaded, for this or another machine",
    },
    "Watch a run": {
        "monitoring.md": "TensorBoard, W&B, Trackio and others",
        "report.md": "a run as one page, and the live page of all runs",
    },
    "Survive interruption": {
        "runs.md": "a run's files, checkpoints, resuming, stopping, verifying, lists of runs, sweeps, comparisons",
    },
    "Evaluate": {
        "evaluating.md": "loss and answers beside the base's, metrics, what was forgotten, lm-evaluation-harness",
    },
    "Deploy": {
        "inference.md": "generate, files of prompts, chat, Python, merging",
        "exporting.md": "GGUF, Ollama, vLLM, adapters, the hub, each checked against the trained model's answers",
        "serving.md": "an OpenAI-compatible endpoint by llama.cpp, transformers or vLLM",
    },
    "Scale": {
        "scaling.md": "several processes, GPUs and machines",
    },
    "From other tools": {
        "coming-from.md": "TRL, Axolotl, LLaMA-Factory, Unsloth and hosted services: names and differences",
        "import.md": "another tool's config, or a training script, as a run.yaml",
    },
    "When something is wrong": {
        "troubleshooting.md": "by symptom and by message: what it comes from and what to do",
    },
    "Reference": {
        "reference/commands.md": "every command with all that it takes",
        "reference/config.md": "every setting: what it takes, its default, other tools' names for it",
        "reference/rules.md": "every rule of check with rows that trip it, rows that do not, and the remedy",
        "reference/python.md": "functions, values and errors of the package",
        "reference/run-directory.md": "the files of a run, and what run.json and metrics.jsonl hold",
    },
    "About": {
        "architecture.md": "the way of a row, the rooms of the code, decisions",
        "assistants.md": "for coding assistants: the way that works, what to rely on, what not to do",
    },
}
"""Each section's pages, by their paths in docs/, the first of all being the one that a site opens with."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page in its section of the contents, and a few words about it."""

    section: str
    path: str
    about: str

    @property
    def text(self) -> str:
        return (DOCS / self.path).read_text(encoding="utf-8")

    @property
    def title(self) -> str:
        return self.text.partition("\n")[0].removeprefix("# ")


def pages() -> list[Page]:
    """Every page, in order."""
    return [Page(section, path, about) for section, found in SECTIONS.items() for path, about in found.items()]
