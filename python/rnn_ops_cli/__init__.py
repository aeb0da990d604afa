"""The command ``rnn-ops``. It may import every other package; none of them imports it."""
