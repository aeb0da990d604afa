"""``rnn-ops launch``: a job on several machines, by MXNet's own launcher.

The launcher and all that it starts are one session of processes, led by `mxnet_launcher`, which ends it: when a role has
failed, when this process gets a signal, and when this process is killed (its stdin is a pipe from here, which then ends). This
process ends what is left of the session.
"""
import argparse
import importlib.util
import ipaddress
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

from rnn_ops_cli import mxnet_launcher
from rnn_ops_timemachine import signals
from rnn_ops_timemachine.options import FAILURE, SIGNALLED, USAGE, CommandError, importing, path, positive

# The programs that the launcher runs: bash for the roles of this machine, which has the scheduler at least.
_PROGRAMS = {"local": ("bash",), "ssh": ("bash", "ssh"), "mpi": ("bash", "mpirun")}


def add_to(commands) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser(
        "launch", help="start a job on several machines, by MXNet's own launcher", allow_abbrev=False,
        usage="%(prog)s -n N [OPTION ...] COMMAND ...",
        description="Run MXNet's own launcher (mxnet/tools/launch.py): it starts a scheduler on this machine, and servers and "
                    "workers on the hosts, each with the same COMMAND, such as: rnn-ops train --kvstore dist_sync. When one of "
                    "them fails, a line says which, and the others are ended.")
    parser.set_defaults(run=run)
    parser.add_argument("-n", "--num-workers", type=positive, required=True, metavar="N", help="workers")
    parser.add_argument("-s", "--num-servers", type=positive, metavar="M", help="servers (default as many as workers)")
    parser.add_argument("-H", "--hostfile", type=path, metavar="FILE",
                        help="the hosts, a line each, for ssh (address or address:port) and mpi; servers and then workers go "
                             "to them in turn; worker 0, which writes the run's folder, is on the last in the order of text")
    parser.add_argument("--launcher", choices=tuple(_PROGRAMS), default="ssh",
                        help="local: all on this machine; ssh (default): it must need no password, and COMMAND starts in a "
                             "folder with the path of this one; mpi: mpirun")
    parser.add_argument("--host-ip", type=_address, metavar="IP",
                        help="this machine's address, where the others find the scheduler (default: 127.0.0.1 for local, the "
                             "address in the network of the first host for ssh, that of the machine's name for mpi)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME",
                        help="an environment variable that COMMAND gets on every host, such as PATH or RNN_OPS_DATA; again for "
                             "more (local needs none)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="with its options")


def run(arguments) -> int:
    """0 where every role has ended well, 1 where one has not; a `CommandError` where the job cannot begin."""
    command = _command(arguments)
    words = ["-n", str(arguments.num_workers), "-s", str(arguments.num_servers or arguments.num_workers),
             "--launcher", arguments.launcher]
    host_ip = arguments.host_ip or ("127.0.0.1" if arguments.launcher == "local" else "")
    if arguments.launcher != "local":
        hosts = _hosts(arguments)
        words += ["-H", arguments.hostfile if arguments.launcher == "ssh" else _quoted(arguments.hostfile)]
        if arguments.launcher == "ssh":
            addresses = _checked(hosts)
            host_ip = host_ip or _address_towards(next((ip for ip in addresses if not ip.startswith("127.")), addresses[0]))
    for program in _PROGRAMS[arguments.launcher]:
        if shutil.which(program) is None:
            raise CommandError(FAILURE, f"error: --launcher {arguments.launcher}: needs the program {program}, which is not on "
                               "the PATH")
    return _supervise([sys.executable, mxnet_launcher.__file__, _script(), host_ip, *words, command])


def _address(text):
    """The type of --host-ip."""
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, needs an IPv4 address") from None


def _script():
    """The path of MXNet's launcher; MXNet is not imported."""
    with importing():
        mxnet = importlib.util.find_spec("mxnet")
        if mxnet is None:
            raise ModuleNotFoundError("No module named 'mxnet'")
        script = os.path.join(os.path.dirname(mxnet.origin), "tools", "launch.py")
        if not os.path.exists(script):
            raise ImportError(f"mxnet: got no launcher ({script}), needs MXNet's wheel from PyPI")
    return script


def _hosts(arguments):
    """The lines of the file of hosts that are not empty."""
    if arguments.hostfile is None:
        raise CommandError(USAGE, f"error: --hostfile: --launcher {arguments.launcher} needs it, a file with a host a line")
    try:
        with open(arguments.hostfile) as file:
            hosts = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(USAGE, f"error: --hostfile: cannot read {arguments.hostfile}: "
                           f"{getattr(error, 'strerror', 'not text')}") from error
    if not hosts:
        raise CommandError(USAGE, f"error: --hostfile: got no host in {arguments.hostfile}, needs one a line")
    return hosts


def _checked(hosts):
    """The addresses of hosts for ssh. A role gets its host's address from the launcher and listens there, which ps-lite cannot
    do by a name. The launcher goes to this folder on each, and does not quote its name."""
    found = [re.fullmatch(r"(\d+\.\d+\.\d+\.\d+)(:\d+)?(\s*slots=.*)?", host) for host in hosts]
    if not all(found):
        raise CommandError(USAGE, f"error: --hostfile: got {hosts[found.index(None)]!r}, needs IPv4 addresses, such as 10.0.0.5 "
                           "or 10.0.0.5:22: MXNet's roles cannot listen on a name")
    if _quoted(os.getcwd()) != os.getcwd():
        raise CommandError(USAGE, f"error: this folder: got {os.getcwd()!r}, needs a path of letters, digits and signs that a "
                           "shell leaves alone: MXNet's launcher does not quote it for ssh")
    return [match.group(1) for match in found]


def _address_towards(host):
    """This machine's address in the network of a host. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        try:
            route.connect((host, 1))
        except OSError as error:
            raise CommandError(FAILURE, f"error: --hostfile: no way to {host}: {error.strerror}") from error
        return route.getsockname()[0]


def _command(arguments):
    """The command as one word for MXNet's launcher, which gives it to a shell."""
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise CommandError(USAGE, "error: COMMAND: got none, needs the command that every role runs, such as: rnn-ops train "
                           "--kvstore dist_sync")
    for name in arguments.env:
        if name not in os.environ:
            raise CommandError(USAGE, f"error: --env: got {name}, which is not set, needs a variable of this environment")
    words = ["env", *(f"{name}={os.environ[name]}" for name in arguments.env), *command]
    for word in words:
        if "\n" in word or "'" in word:
            raise CommandError(USAGE, f"error: COMMAND: got {word!r}, needs words without ' and line feeds, which MXNet's "
                               "launcher cannot hand on")
    return " ".join(map(_quoted, words))


def _quoted(word):
    """A word for a shell. For ssh it is within single quotes already, for a shell in a shell: so backslashes quote it."""
    return re.sub(r"[^\w%+,./:=@-]", r"\\\g<0>", word) or '""'


def _supervise(words):
    """Run the launcher to its end, or end it by a signal that came."""
    with signals.held_back() as raise_interrupt:
        launcher = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
        try:
            while os.waitid(os.P_PID, launcher.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                time.sleep(0.1)
                raise_interrupt()
        except signals.Interrupted as interrupt:
            launcher.stdin.close()
            os.waitid(os.P_PID, launcher.pid, os.WEXITED | os.WNOWAIT)
            raise CommandError(SIGNALLED + interrupt.number, f"{interrupt}: the job was ended") from None
        finally:
            launcher.kill()
            mxnet_launcher.kill_session(launcher.pid)  # before the wait: until then nobody else can get the number
            launcher.wait()
    if launcher.returncode < 0:
        raise CommandError(FAILURE, f"error: MXNet's launcher was ended by {signal.Signals(-launcher.returncode).name}")
    return launcher.returncode
