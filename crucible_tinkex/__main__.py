"""The `crucible` command, also as `python -m crucible_tinkex`.

Nothing is imported before Ctrl-C is looked after: on a busy machine imports take seconds.
"""

import sys


def main() -> None:
    try:
        from crucible_tinkex.cli.app import main as run_command
    except KeyboardInterrupt:
        sys.exit(130)
    run_command()


if __name__ == "__main__":
    main()
