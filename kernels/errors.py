"""The project's one base error: input that cannot be used, said in one line.

It lies in a file of its own, without PyTorch, so that ``--help`` does not wait for PyTorch's import.
"""


class AlexNetError(Exception):
    """Something asked for cannot be done. The message says what was given and what is accepted.

    Library code raises it, one of its subclasses, or Python's own errors. A command prints it as one line on stderr
    and exits with status 2.
    """
