"""What each command's --help shows at its end, and the manual's reference with it: lines that can be typed.

A test holds that each of them is a command line, with settings that exist.
"""

from collections.abc import Mapping, Sequence

EXAMPLES: Mapping[str, Sequence[str]] = {
    "demo": (
        "truetune demo",
        "truetune demo max_steps=20 --output-dir runs/look",
    ),
    "train": (
        "truetune train --model demo --data rows.jsonl",
        "truetune train run.yaml learning_rate=1e-4 --output-dir runs/lower",
        "truetune train --resume runs/support",
        "truetune train run.yaml --dry-run",
    ),
    "plan": (
        "truetune plan run.yaml",
        "truetune plan --model demo --data rows.jsonl --probe",
        'truetune plan run.yaml --device "RTX 4090" --fit',
        "truetune plan run.yaml --device h100:8 --price-per-hour 20",
    ),
    "find-lr": (
        "truetune find-lr run.yaml",
        "truetune find-lr --model demo --data rows.jsonl --steps 40",
    ),
    "verify": (
        "truetune verify runs/support",
        "truetune verify runs/support --resume-proof",
    ),
    "runs": (
        "truetune runs",
        "truetune runs --sort eval_loss --where r=16 --limit 5",
        "truetune runs experiments --status failed,dead --json",
    ),
    "compare": (
        "truetune compare runs/a runs/b",
        "truetune compare runs/a runs/b runs/c --json",
    ),
    "sweep": (
        "truetune sweep run.yaml learning_rate=1e-4,2e-4 r=8,16 --dry-run",
        "truetune sweep run.yaml learning_rate=1e-4,2e-4 r=8,16 --output-dir runs/rates",
    ),
    "launch": (
        "truetune launch run.yaml --print slurm --gpus-per-node 8 --time 24:00:00 --sbatch partition=gpu",
        "truetune launch run.yaml --print torchrun --nodes 2 --gpus-per-node 8",
    ),
    "generate": (
        'truetune generate runs/support --prompt "How do I reset my password?"',
        'truetune generate runs/support@100 --prompt "Hello" --compare-base',
        "truetune generate runs/support --input prompts.jsonl --output answers.jsonl",
    ),
    "chat": (
        "truetune chat runs/support",
        "truetune chat runs/support --compare-base --temperature 0.7",
    ),
    "eval": (
        "truetune eval runs/support",
        "truetune eval runs/support --data test.jsonl --fail-under exact_match=0.8",
        "truetune eval runs/support --lm-eval arc_easy --limit 100",
    ),
    "report": (
        "truetune report runs/support",
        "truetune report --serve",
        "truetune report runs/a runs/b --serve --port 8770",
    ),
    "merge": (
        "truetune merge runs/support -o support-merged",
        "truetune merge runs/support@100 -o support-100 --dtype bfloat16",
    ),
    "export": (
        "truetune export runs/support --to ollama -o support-ollama",
        "truetune export runs/support --to gguf --quantize q4_k_m -o support.gguf",
        "truetune export runs/support --to hub -o USER/NAME --merged",
    ),
    "serve": (
        "truetune serve runs/support",
        "truetune serve runs/support --server llama.cpp --quantize q8_0 --port 8000",
        "truetune serve runs/support --print",
    ),
    "check": (
        "truetune check rows.jsonl",
        "truetune check rows.jsonl --model demo --fail-on warning --html findings.html",
        "truetune check rows.jsonl --fix mended.jsonl --set company=Acme",
        "truetune check --explain TT205",
    ),
    "prepare": (
        "truetune prepare rows.jsonl --model demo",
        "truetune prepare run.yaml max_length=1024 --json",
    ),
    "inspect": (
        "truetune inspect rows.jsonl --model demo",
        "truetune inspect run.yaml --rows 1 --json",
    ),
    "init": (
        "truetune init rows.jsonl --model demo -o run.yaml",
        "truetune init rows.jsonl --model demo method=full deploy=gguf",
    ),
    "import": (
        "truetune import axolotl.yml -o run.yaml",
        "truetune import train.py --from script --json",
    ),
    "schema": (
        "truetune schema",
        "truetune schema -o run.schema.json",
    ),
    "models": (
        "truetune models",
        "truetune models demo",
        "truetune models Qwen/Qwen3-8B --json",
    ),
    "doctor": (
        "truetune doctor",
        "truetune doctor --json",
    ),
    "completion": (
        "truetune completion bash -o ~/.local/share/bash-completion/completions/truetune",
        "truetune completion zsh -o ~/.zfunc/_truetune",
        "truetune completion fish -o ~/.config/fish/completions/truetune.fish",
    ),
}
"""By the command's name, in the order of `truetune --help`."""


def told(command: str) -> str:
    """A command's examples as --help ends with them."""
    return "\n".join(["Examples:", *(f"  {line}" for line in EXAMPLES[command])])
