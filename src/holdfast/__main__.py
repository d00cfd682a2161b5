"""``python -m holdfast``: the command, where no script is on the path."""

from holdfast.cli.main import main

if __name__ == "__main__":
    main()
