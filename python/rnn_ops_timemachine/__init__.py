"""The workload: a character-level language model of a book, trained through the recurrent step of rnn_ops.

It follows "Recurrent Neural Networks for Language Modeling" of *Deep Learning - The Straight Dope* (chapter 5), called the
tutorial here. One module a stage:

text → data → parameters → learners → sampling
learners      the three ways to compute training steps: ``training`` with MXNet (the model is in ``model``), ``network`` with
              Gluon, ``cuda_training`` with the CUDA kernels alone; ``descent`` has the numbers that they share
opening, run  begin or resume a run, and carry it on
folder, files, lock, checkpoint, record, plot, prompts   a run's folder and the files in it
options, streams, hints, signals, progress               shared by the commands of rnn_ops_cli
"""
