"""The interface between the training loop and everything that watches it."""

from puna.training.loop.training import Training


class Observer:
    """Base class of observers of a training run; each method does nothing unless a subclass overrides it.

    Observers begin in the order of the list and end in reverse order. A preview calls `begin` alone.

    Example:
        >>> class StepPrinter(Observer):
        ...     def before_step(self, training: Training) -> None:
        ...         print(training.state.step)
        >>> fit(config, run, objective, model, tokenizer, observers=[StepPrinter()])
    """

    def begin(self, training: Training) -> None:
        """Called once per execution, before the first step; a resumed run begins at a later step."""

    def before_step(self, training: Training) -> None:
        """Called before each optimizer step, before its batches are read."""

    def end(self, training: Training) -> None:
        """Called after the last step, before the checkpoint is written."""
