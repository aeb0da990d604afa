"""``python -m benchmarks`` in a clone, ``python -m rnn_ops_benchmarks`` where it is installed: ``rnn-ops bench`` without the
other commands. A run on a GPU starts its processes with it."""
import sys

from rnn_ops_timemachine import streams
from rnn_ops_timemachine.options import SIGNALLED, CommandError

from . import cli


def main():
    """The exit status."""
    with streams.prepared():
        try:
            return cli.main(prog=f"python -m {__package__}")
        except CommandError as error:
            streams.complain(str(error))
            return error.status
        except KeyboardInterrupt:
            streams.complain("interrupted")
            return SIGNALLED + 2
        except streams.Closed as closed:
            return closed.status


if __name__ == "__main__":
    sys.exit(main())
