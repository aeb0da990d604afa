"""``rnn-ops info``: print versions, devices, kernels and settings, a line each or as JSON."""
import json
import shutil
import textwrap

from rnn_ops_timemachine.options import importing, positive


def add_to(commands) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser("info", help="print versions, devices, kernels and settings", allow_abbrev=False)
    parser.set_defaults(run=run)
    parser.add_argument("--batch-size", type=positive, default=32, metavar="B",
                        help="of the shape to choose a CUDA kernel for (default 32)")
    parser.add_argument("--hidden", type=positive, default=256, metavar="H", help="hidden units of that shape (default 256)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments) -> int:
    """0, or 1 where a setting is wrong."""
    with importing():
        from rnn_ops import info
    facts, wrong = info.collect(arguments.batch_size, arguments.hidden), info.wrong_settings() + info.wrong_folders()
    if arguments.json:
        print(json.dumps(dict(facts, wrong=wrong), indent=1))
        return int(bool(wrong))
    width = max(map(len, facts))
    columns = shutil.get_terminal_size().columns
    for name, text in facts.items():
        print(textwrap.fill(text, max(columns, width + 20), initial_indent=f"{name:<{width}}  ",
                            subsequent_indent=" " * (width + 2), break_long_words=False, break_on_hyphens=False))
    return int(bool(wrong))
