"""The workload: a character-level language model of a book, trained through the recurrent step of rnn_ops.

One module a stage: ``text`` → ``data`` → ``model`` → ``training`` → ``sampling``. ``opening`` begins or resumes a ``run``;
``checkpoint``, ``record`` and ``plot`` keep the results; ``options`` and ``streams`` are for the command line. It follows "Recurrent Neural
Networks for Language Modeling" of *Deep Learning - The Straight Dope* (chapter 5), called the tutorial here.
"""
