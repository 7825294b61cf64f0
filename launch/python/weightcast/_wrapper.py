"""What an export that is wrapped for some kind of trainer does as the export itself."""


class Wrapper:
    """Of `export`, an Export, whose tensors stay what they are when it is closed."""

    def __init__(self, export):
        self._export = export

    def settle(self, timeout=600.0):
        """Waits for the end of what was offered, as Export.settle."""
        self._export.settle(timeout)

    def memory(self, name):
        """The bytes of what is published under that name, in the host's memory."""
        return self._export.memory(name)

    def close(self, timeout=60.0):
        """Withdraws the publication, as Export.close; tensors in its memory get memory of their own again."""
        self._export.close(timeout, keep=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
