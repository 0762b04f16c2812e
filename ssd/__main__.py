"""The program `ssd`, also as `python -m ssd` and `torchrun -m ssd`."""

import sys


def main() -> int:
    """Runs the command line, and also ends quietly at a Ctrl-C during its imports, which take seconds."""
    try:
        from ssd.cli import main

        return main()
    except KeyboardInterrupt:
        print("ssd: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
