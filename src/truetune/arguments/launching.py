"""What `truetune launch` takes: the run, the cluster, and the job script."""

from typing import Any

from truetune.arguments.options import Parser, add_command, add_settings, count, positive


def add_commands(commands: Any) -> None:
    """Adds it."""
    launch = add_command(commands, "launch", "a run as a cluster starts it: a job script, or each machine's command")
    _add_run(launch)
    _add_cluster(launch)
    _add_slurm(launch)


def _add_run(parser: Parser) -> None:
    add_settings(parser, takes="config", metavar="RUN.yaml | key=value")
    parser.add_argument(
        "--print",
        dest="form",
        choices=("slurm", "torchrun"),
        required=True,
        help="a script for sbatch that goes on behind its time limit; or the command for each machine",
    )


def _add_cluster(parser: Parser) -> None:
    parser.add_argument("--output-dir", help="the run's directory (default: runs/<config>-<job>, by its number)")
    parser.add_argument("--nodes", type=positive, default=1, metavar="N", help="machines (default: 1)")
    parser.add_argument(
        "--gpus-per-node", type=count, metavar="N", help="GPUs of each, a process for each (default: 1; on CPUs 0)"
    )
    parser.add_argument(
        "--ntasks-per-node", type=positive, metavar="N", help="processes on each (default: one a GPU, or one)"
    )
    parser.add_argument("--cpus-per-task", type=positive, metavar="N", help="cores of each process")


def _add_slurm(parser: Parser) -> None:
    slurm = parser.add_argument_group("with --print slurm")
    slurm.add_argument("--time", help="the time limit: 24:00:00, 2-12 (days-hours) (default: the partition's)")
    slurm.add_argument(
        "--stop-before",
        type=positive,
        default=300,
        metavar="SECONDS",
        help="when to stop and save before the limit: a step and a checkpoint must fit (default: 300)",
    )
    slurm.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another option of sbatch: partition=gpu, account=lab; may be repeated",
    )
    slurm.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="a line of shell before the training: 'module load cuda'; may be repeated",
    )
