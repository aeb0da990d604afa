"""What several processes cost and bring: ``python -m rnn_ops_benchmarks.scaling FILE --measure all``.

jobs.py         jobs of worker processes that wait for turns; worker.py: one such process
parts.py        what is measured: training steps and their parts, the KVStore alone, steps in one process, steps over a network
network.py      a simulated network: two namespaces, and a relay between them that limits bandwidth and adds latency
model.py        the time of a training step by arithmetic
report.py       all of it as tables
"""
