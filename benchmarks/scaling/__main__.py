"""``python -m rnn_ops_benchmarks.scaling FILE``: measure what several processes cost and bring, or show it again."""
import os

from rnn_ops_timemachine import streams
from rnn_ops_timemachine.options import FAILURE, USAGE, CommandError, Parser, check_settings, path, positive, run_as_program

from ..environment import Others, describe
from ..report import write_json
from . import network, parts, report

_PARTS = {"steps": parts.measure_steps, "kvstore": parts.measure_kvstore, "computing": parts.measure_computing,
          "network": parts.measure_network}


def main(arguments=None):
    """The exit status."""
    parser = Parser(prog=f"python -m {__package__}", description=__doc__.split(": ", 1)[1], allow_abbrev=False)
    parser.add_argument("file", type=path, metavar="FILE", help="a result file; parts that are not measured stay in it")
    parser.add_argument("--measure", nargs="+", metavar="PART", choices=(*_PARTS, "all"), default=[],
                        help=f"measure these parts anew: {', '.join(_PARTS)} or all. Some three minutes")
    parser.add_argument("--rounds", type=positive, default=3, help="over all jobs (default %(default)s)")
    options = parser.parse_args(arguments)
    result = report.empty()
    if os.path.exists(options.file) or not options.measure:
        try:
            result = report.read(options.file)
        except OSError as error:
            parser.error(f"FILE: cannot read {options.file}: {error.strerror}")
        except ValueError as error:
            parser.error(f"FILE: {options.file}: {error}")
    for name in _PARTS if "all" in options.measure else options.measure:
        check_settings()
        reason = network.why_not() if name == "network" else None
        if reason:
            streams.complain(f"note: {name} is left out: {reason}")
            continue
        environment, others = describe(), Others()
        try:
            rows = _PARTS[name](options.rounds)
        except (OSError, RuntimeError, ValueError) as error:
            raise CommandError(FAILURE, f"error: {name}: {error}") from error
        result["parts"][name] = dict(report.stamp(), environment=dict(environment, others=others.share()), rounds=options.rounds,
                                     rows=rows)
        try:
            write_json(result, options.file)
        except OSError as error:
            raise CommandError(USAGE, f"error: cannot write {options.file}: {error.strerror}") from error
    print(report.markdown(result), end="")
    return 0


if __name__ == "__main__":
    run_as_program(main)
