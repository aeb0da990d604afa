"""``python -m rnn_ops``: what the command ``rnn-ops`` does."""
import sys

from rnn_ops_cli.main import main

if __name__ == "__main__":  # and not where a process that it starts imports it
    sys.exit(main())
