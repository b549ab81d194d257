"""launch: a run as a cluster's scheduler starts it."""

import argparse
import os
import re
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from truetune.commands.settings import load
from truetune.errors import ConfigError

if TYPE_CHECKING:
    from truetune.config.schema import Config
    from truetune.pipeline.job_script import Job


def launch(options: argparse.Namespace) -> None:
    from truetune.console.listener import ConsoleListener
    from truetune.console.output import show
    from truetune.pipeline.job_script import slurm_script, torchrun_command
    from truetune.runs.directory import public

    with closing(ConsoleListener()) as listener:
        job = _job(options, load(options, listener))
    if options.form == "slurm":
        show(slurm_script(job, made_by=public(["truetune", *options.given])).rstrip("\n"))
    else:
        show(torchrun_command(job).rstrip("\n"))


def _job(options: argparse.Namespace, config: "Config") -> "Job":
    """The job that the options ask for. ConfigError if the config asks for another number of processes."""
    from truetune.pipeline.job_script import Job

    gpus = options.gpus_per_node
    if gpus is None:
        gpus = 0 if config.model.device == "cpu" else options.ntasks_per_node or 1
    job = Job(
        name=_name(options, config),
        words=_words(options),
        output_dir=config.output_dir,
        directory=os.getcwd(),
        python=sys.executable,
        nodes=options.nodes,
        gpus_per_node=gpus,
        processes_per_node=options.ntasks_per_node or gpus or 1,
        cpus_per_task=options.cpus_per_task,
        time=options.time,
        stop_before=options.stop_before,
        options=options.sbatch,
        setup=options.setup,
    )
    if config.training.num_processes not in (None, job.processes):
        raise ConfigError(
            f"training.num_processes is {config.training.num_processes}, and {job.processes} would be started: "
            f"{job.processes_per_node} on each of {job.nodes} machines",
            hint="leave it out of the config: what is started counts",
        )
    return job


def _words(options: argparse.Namespace) -> list[str]:
    """What `truetune train` is given, but for where it writes and where it goes on."""
    flags = {"--model": options.model, "--data": options.data}
    given = [word for flag, value in flags.items() if value is not None for word in (flag, value)]
    return [*([options.config] if options.config else []), *given, *options.settings]


def _name(options: argparse.Namespace, config: "Config") -> str:
    """The job's, of characters that shells and schedulers leave alone."""
    name = config.logging.run_name or (Path(options.config).stem if options.config else "truetune")
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "truetune"
