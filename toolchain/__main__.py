"""``python -m toolchain``, and the command ``toolchain``."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is loaded, which takes a moment, is not worth a traceback either."""
    try:
        from toolchain.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted; no result was written\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
