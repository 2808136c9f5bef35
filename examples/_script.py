"""What the examples' command lines share: checked flags, one-line errors, a folder for pictures."""

import argparse
from pathlib import Path


def parser(lesson: str, output: str) -> argparse.ArgumentParser:
    """A parser that says what the lesson is and where its pictures go."""
    flags = argparse.ArgumentParser(description=lesson)
    flags.add_argument("--output", type=Path, default=Path(output), help="a folder for pictures")
    return flags


def positive(kind):
    """A flag's type: a finite number above 0."""

    def parse(text):
        if not 0 < (value := kind(text)) < float("inf"):
            raise ValueError
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse


def run(main, flags: argparse.ArgumentParser) -> None:
    """Runs a lesson; what its flags make impossible is said in one line, with exit code 2."""
    args = flags.parse_args()
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / ".writable").touch()  # better to fail now than after training
        (args.output / ".writable").unlink(missing_ok=True)  # another process may have
        main(args)
    except (ValueError, OverflowError, OSError) as error:
        flags.error(str(error))


def save(figure, path: Path) -> None:
    """Writes a picture and says where."""
    figure.savefig(path, dpi=150)
    print(f"wrote {path}")
