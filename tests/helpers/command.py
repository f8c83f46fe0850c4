"""The command line, run in the process of the test."""

from data2vec import cli


def exit_status(*words: str) -> object:
    """The exit status of a command, also where argparse ends it."""
    try:
        return cli.main(words)
    except SystemExit as ended:
        return ended.code
