"""``rnn-ops sample``: let a trained model continue a text."""
from rnn_ops_timemachine import streams
from rnn_ops_timemachine.options import FAILURE, USAGE, CommandError, importing, one_line, path


def add_to(commands) -> None:
    """Add the command to the parser's."""
    parser = commands.add_parser("sample", help="let a trained model continue a text", allow_abbrev=False)
    parser.set_defaults(run=run)
    parser.add_argument("--checkpoint", type=path, required=True, metavar="DIR|FILE", help="a run's folder or its model.npz")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    parser.add_argument("--ignore-unknown", action="store_true",
                        help="leave out characters of the prompt that the model does not know")
    parser.add_argument("--length", type=int, default=512, metavar="N", help="characters to add (default 512)")
    parser.add_argument("--temperature", type=float, default=0.5, metavar="T",
                        help="near 0 always the likeliest character, 1 as trained (default 0.5)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, another text (default 0)")


def run(arguments) -> int:
    """0; a `CommandError` where the model or the prompt cannot be used."""
    with importing():
        from rnn_ops_timemachine import checkpoint, data, sampling
    with one_line(USAGE, OSError, ValueError):
        model = checkpoint.load(arguments.checkpoint)
        prompt, unknown = arguments.prompt, model.vocabulary.missing(arguments.prompt)
        if unknown and arguments.ignore_unknown:
            prompt = "".join(character for character in prompt if character not in unknown)
            streams.complain(f"prompt: leaves out {data.listed(unknown)}, which the model does not know")
        elif unknown:
            raise ValueError(f"prompt: got {data.listed(unknown)}, not among the {len(model.vocabulary):,} symbols that the "
                             "model knows; --ignore-unknown leaves such characters out")
        pieces = sampling.stream(model.parameters, model.vocabulary, prompt, arguments.length, arguments.temperature,
                                 arguments.seed)
    print(prompt, end="", flush=True)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except FloatingPointError as error:
        print(flush=True)  # the message begins a line of its own
        raise CommandError(FAILURE, f"error: checkpoint: {arguments.checkpoint}: {error}") from error
    print()
    return 0
