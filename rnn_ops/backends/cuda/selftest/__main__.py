"""``python -m rnn_ops.backends.cuda.selftest``: launch a few kernels of each family, for compute-sanitizer to watch."""
import argparse
import os
import sys

from rnn_ops.backends import cuda
from rnn_ops.backends.cuda.selftest import checks

PATIENCE = 100  # seconds for one launch, which the tool slows down


def main(argv=None) -> int:
    """0; 1 if a result is wrong; 2 without a GPU."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__)
    parser.add_argument("--without", action="append", default=[], choices=checks.EVERY, metavar="FAMILY",
                        help="leave out a family of kernels")
    without = parser.parse_args(argv).without
    reason = cuda.why_not()
    if reason:
        print(reason, file=sys.stderr)
        return 2
    from rnn_ops.backends.cuda.cupy_gpu import Gpu
    gpu = Gpu()
    with gpu.current():
        return int(not passes(gpu, [family for family in checks.EVERY if family not in without]))


def passes(gpu, among) -> bool:
    """Run `checks.TINY`, every array an allocation of its own and without guard cells, so that a tool sees where arrays end."""
    gpu.no_pool()
    gpu.patience = PATIENCE
    failed = [result for result in checks.run(gpu, checks.plan(gpu.device, **checks.TINY, guard=0, among=among))
              if not result.passed]
    for result in failed:
        print(f"FAILED  {result}", flush=True)
    return not failed


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # an error while libraries are unloaded is none of the kernels'
