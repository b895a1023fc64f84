"""The interface of observers of the training loop: reports, plots, answers of an on-policy student."""

from puna.training.loop.training import Training


class Observer:
    """Base class of the observers of a training run; methods do nothing by default.

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
        """Called before every optimizer step, before the batches of the step are read."""

    def end(self, training: Training) -> None:
        """Called after the last step, before the checkpoint is written."""
