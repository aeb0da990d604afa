"""A command line that needs nvdisasm and NVRTC, and ends in one line where it has not got them."""
import argparse

from rnn_ops.backends.cuda import compiler

from . import sass


class Parser(argparse.ArgumentParser):
    """Its errors are one line; argparse's own parser prints its whole usage first."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")

    def check_tools(self, architecture=None):
        """End the process with an error if nvdisasm is missing or, with an architecture, NVRTC for it."""
        try:
            sass.nvdisasm()
            if architecture is not None:
                compiler.find(architecture)
        except RuntimeError as error:
            self.error(f"{error} (rnn_ops[test] brings both NVRTC and nvdisasm)")
