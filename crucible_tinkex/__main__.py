"""`python -m crucible_tinkex` is the `crucible` command."""

from crucible_tinkex.cli.app import main

if __name__ == "__main__":
    main()
