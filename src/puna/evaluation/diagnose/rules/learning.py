"""Losses, learning rate and gradient norms of a run -> findings about the optimization."""

import numpy as np

from puna.evaluation.diagnose.record import Record
from puna.pipeline.finding import Finding

# A difference counts from three standard errors on: few steps give only a rough standard error.
ERRORS = 3
MOST_RISE = 1.2
# The loss of the first batch may lie a third below the usual loss.
MOST_EARLY_RISE = 1.5
# In nats: for a student that starts nearly as good as the teacher, batches differ by more than half.
LEAST_EARLY_RISE = 0.2
LEAST_FALL = 0.01
MOST_LAST_FALL = 0.1
MOST_CLIPPED = 0.98
MOST_NORM = 10
JUMPS = 3
LOWER_RATE = "Lower optim.lr to a third, and look again."
LEAST_ANNEALED = 0.05
MIDDLE = (0.2, 0.3), (0.7, 0.8)
FIRST, THIRD_QUARTER, LAST = (0.0, 0.1), (0.65, 0.75), (0.9, 1.0)


def loss_diverged(record: Record) -> Finding | None:
    """The loss rose far above the first loss, or ended well above the best loss of the run."""
    losses = record.values("loss")
    highest = float(np.convolve(losses, np.ones(3) / 3, "valid").max()) if len(losses) >= 3 else 0.0
    if highest > max(MOST_EARLY_RISE * losses[0], losses[0] + LEAST_EARLY_RISE):
        seen = f"The loss was {losses[0]:.3f} at the first step and rose to {highest:.3f} (mean of three steps)."
        return Finding("loss-diverged", seen, LOWER_RATE, ("lower rate",))
    tenths = [(tenth / 10, (tenth + 1) / 10) for tenth in range(10)]
    means = [record.mean("loss", *tenth) for tenth in tenths]
    known = [(mean, tenth) for mean, tenth in zip(means, tenths, strict=True) if mean is not None]
    if not known:
        return None
    best, where = min(known)
    fall, error = record.fall("loss", LAST, where)
    if fall <= ERRORS * error or best + fall <= MOST_RISE * best:
        return None
    seen = f"The loss was {best:.3f} in the run's best tenth (from {where[0]:.0%} on), {best + fall:.3f} in its last."
    return Finding("loss-diverged", seen, LOWER_RATE, ("lower rate",))


def rate_high(record: Record) -> Finding | None:
    """The loss stayed level at the high learning rate, and fell only with the learning rate."""
    optim = record.config.get("optim", {})
    fall, error = record.fall("loss", MIDDLE[1], LAST)
    middle, _ = record.fall("loss", *MIDDLE)
    before = record.mean("loss", *MIDDLE[1])
    if before is None or optim.get("final_lr_share", 1.0) > 0.5 or fall <= ERRORS * error or fall <= 2 * middle:
        return None
    if fall <= LEAST_ANNEALED * before:
        return None
    before_that = f"fell by {middle:.3f}" if middle >= 0 else f"rose by {-middle:.3f}"
    seen = f"From a quarter to three quarters of the run the loss {before_that}; after that, as the rate went down, it "
    seen += f"fell by {fall:.3f} (lr = {optim.get('lr')})."
    return Finding("rate-high", seen, LOWER_RATE, ("lower rate",))


def loss_stuck(record: Record) -> Finding | None:
    """The loss at the end is no lower than at the start."""
    fall, error = record.fall("loss", FIRST, LAST)
    first = record.mean("loss", *FIRST)
    if first is None or not np.isfinite(error) or fall > max(ERRORS * error, LEAST_FALL * first):
        return None
    rate = record.config.get("optim", {}).get("lr")
    seen = f"The loss was {first:.3f} in the first tenth of the run and {first - fall:.3f} in the last (lr = {rate})."
    remedy = "Raise optim.lr threefold, and check that the data hold something new to the model."
    return Finding("loss-stuck", seen, remedy, ("raise rate",))


def loss_jumps(record: Record) -> Finding | None:
    """Several steps raised the loss by more than half of the progress so far."""
    losses = record.values("loss")
    first, window = float(losses[0]), max(10, len(losses) // 20)
    jumps = 0
    for step in range(window + len(losses) // 10, len(losses)):
        before = losses[step - window : step]
        middle = float(np.median(before))
        usual = 1.4826 * float(np.median(np.abs(before - middle)))
        jumps += losses[step] - middle > max(6 * usual, (first - middle) / 2)
    if jumps < JUMPS:
        return None
    seen = f"In {jumps} steps the loss rose by more than half of the progress so far."
    remedy = "Look for broken rows, then lower optim.lr or optim.clip."
    return Finding("loss-jumps", seen, remedy, ("lower rate",))


def steps_skipped(record: Record) -> Finding | None:
    """The loop skipped steps without a finite loss or gradient."""
    skipped = sum(row.get("loss", 0) is None or row.get("gradient_norm", 0) is None for row in record.rows)
    if skipped < 2:
        return None
    seen = f"{skipped:,} of {record.num_steps:,} steps had a loss or gradient that is not finite."
    return Finding("steps-skipped", seen, LOWER_RATE, ("lower rate",))


def gradient_clipped(record: Record) -> Finding | None:
    """Nearly all gradients were clipped, to a tenth of their length or less."""
    clip, warmup = (record.config.get("optim", {}).get(name) for name in ("clip", "warmup_steps"))
    norms = record.values("gradient_norm")[warmup or 0 :]
    if not clip or not len(norms) or (norms > clip).mean() < MOST_CLIPPED or np.median(norms) < MOST_NORM * clip:
        return None
    seen = (
        f"After the warm-up {(norms > clip).mean():.0%} of the gradients were clipped at {clip:g}; half of them were "
    )
    seen += f"longer than {np.median(norms):.1f}."
    remedy = (
        "Lower optim.lr, or raise accumulate: gradients of more tokens are shorter. Check the start model for damage."
    )
    return Finding("gradient-clipped", seen, remedy, ("lower rate",))


def warmup_long(record: Record) -> Finding | None:
    """The run ended during the warm-up, or soon after."""
    warmup, steps = record.config.get("optim", {}).get("warmup_steps", 0), record.num_steps
    if 2 * warmup <= steps:
        return None
    seen = f"The warm-up of {warmup} steps is more than half of the {steps} steps of the run."
    if steps <= warmup:
        seen = f"The run ended after step {steps} of {warmup} steps of warm-up, below its learning rate."
    return Finding("warmup-long", seen, "Lower optim.warmup_steps to a tenth of the steps.")


def steps_few(record: Record) -> Finding | None:
    """The loss was still falling steeply when the run ended."""
    fall, error = record.fall("loss", THIRD_QUARTER, LAST)
    whole, _ = record.fall("loss", FIRST, LAST)
    if not whole > 0 or fall <= ERRORS * error or fall / whole <= MOST_LAST_FALL:
        return None
    seen = f"The last quarter of the {record.num_steps} steps brought {fall / whole:.0%} of the whole fall of the loss."
    return Finding("steps-few", seen, "Train longer: twice the steps, and look again.", ("more steps",))
