"""``python -m benchmarks`` in a clone, ``python -m rnn_ops_benchmarks`` where it is installed: ``rnn-ops bench``, without the other
commands and what they need. A run on a GPU starts its processes with it."""
import sys

from rnn_ops_timemachine import streams
from rnn_ops_timemachine.options import CommandError

from . import cli

if __name__ == "__main__":
    with streams.prepared():
        try:
            status = cli.main(prog=f"python -m {__package__}")
        except CommandError as error:
            streams.complain(str(error))
            status = error.status
    sys.exit(status)
