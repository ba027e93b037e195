"""Ending what onnxruntime computes, from another thread: an image can take a minute, and who asked may have left."""


class Interruption:
    """Ends the runs of one model's graphs between two of their nodes for as long as it is set; any thread may set it.

    What is ended raises `Interrupted`. A GPU's decoder does not hear of it: its runs are short.
    """

    def __init__(self) -> None:
        import onnxruntime

        # Every run is given these.
        self.options = onnxruntime.RunOptions()

    def set(self) -> None:
        """End the run under way, and every other one until `clear`."""
        self.options.terminate = True

    def clear(self) -> None:
        """Let runs come to their ends again."""
        self.options.terminate = False
