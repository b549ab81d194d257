"""Two machines on one: Linux namespaces with a network, an address and a host name of their own."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

FIRST_ADDRESS = "10.213.0.1"
"""Of the first one; the second one is its neighbour."""

_MACHINES = f"""
set -eu
hostname first-machine
ip link set lo up
unshare --net --uts sh -c 'hostname second-machine && exec sleep 100000' &
second=$!
trap 'kill $second' EXIT
until [ "$(readlink /proc/$second/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link add one type veth peer name other netns $second
ip address add {FIRST_ADDRESS}/24 dev one
ip link set one up
nsenter --target $second --net sh -c '
  ip link set lo up && ip address add 10.213.0.2/24 dev other && ip link set other up'
echo $second
read -r _ || true
"""


class NotPermittedError(Exception):
    """This machine lets no such namespaces be made: why."""


@contextmanager
def two_machines() -> Iterator[tuple[int, int]]:
    """A process in each of the two, by whose number their namespaces are entered; they end with the block."""
    with _shell() as shell:
        assert shell.stdin
        assert shell.stdout
        second = shell.stdout.readline().strip()
        if not second:
            assert shell.stderr
            raise NotPermittedError(shell.stderr.read().strip())
        yield shell.pid, int(second)


@contextmanager
def _shell() -> Iterator[subprocess.Popen[str]]:
    """As root of a user namespace, which everybody may be where the system allows it."""
    pipe = subprocess.PIPE
    command = ["unshare", "--user", "--map-root-user", "--net", "--uts", "sh", "-c", _MACHINES]
    try:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    except FileNotFoundError as error:
        raise NotPermittedError("unshare (util-linux) is not installed") from error
    try:
        yield process
    finally:
        process.communicate()
