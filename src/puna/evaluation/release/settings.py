"""Settings of the release gate: margins of scores, limits of size, speed and cost, and the search for test data."""

from pydantic import Field

from puna.pipeline.config import StageConfig


class GateConfig(StageConfig):
    """Thresholds that a candidate must meet for a GO. Margins are shares of 1: 0.05 is 5 points of 100.

    Example: in a recipe

        [release.gate]
        teacher_margin = 0.03
        max_megabytes = 800
    """

    base_gain: float = Field(
        default=0.0,
        gt=-1,
        lt=1,
        description="Lead over the base on the task, as a share of 1, that must be exceeded; negative: largest drop",
    )
    teacher_margin: float = Field(
        default=0.05, ge=0, lt=1, description="Largest allowed drop below the teacher's score, as a share of 1"
    )
    in_use_margin: float = Field(
        default=0.02,
        ge=0,
        lt=1,
        description="Largest allowed drop below the score of the model in use, as a share of 1",
    )
    null_margin: float = Field(
        default=0.05, ge=0, lt=1, description="Lead over every null model, as a share of 1, that must be exceeded"
    )
    max_unjudged: float = Field(
        default=0.0, ge=0, le=1, description="Largest share of answers, 0 to 1, without a judgement of their content"
    )
    general_margin: float = Field(
        default=0.03,
        ge=0,
        lt=1,
        description="Largest allowed drop on the general suite below base and model in use (forgetting), as a share",
    )
    max_megabytes: float | None = Field(
        default=None, gt=0, description="Largest size of the weights on disk, in megabytes of 1,000,000 bytes"
    )
    min_tokens_per_s: float | None = Field(
        default=None, gt=0, description="Smallest speed in generated tokens per second, as measured by the evaluation"
    )
    usd_per_hour: float | None = Field(
        default=None, gt=0, description="Price in USD of one hour of a machine like the machine of the evaluation"
    )
    max_usd_per_million: float | None = Field(
        default=None, gt=0, description="Largest cost in USD of a million generated tokens; needs usd_per_hour"
    )
    overlap_words: int = Field(
        default=13, ge=8, le=50, description="Words per n-gram in the search for test questions in training data"
    )
    overlap_share: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of a question's n-grams in one training row from which the question counts as leaked",
    )
    max_overlaps: int = Field(default=0, ge=0, description="Largest allowed number of test questions in training data")
