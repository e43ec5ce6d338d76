"""The ground of every statistic: one record per condition, draw and sample."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

CLEAN = "clean"


@dataclass(frozen=True)
class Record:
    """One sample under one realisation of a condition's noise.

    Attributes:
        condition: The condition's name; `clean` for the clean model.
        draw: Number of the realisation; 0 for the clean model.
        sample: The sample's name.
        group: The source that the sample shares with others, if its data tell one.
        tokens: Tokens that were scored, along the clean answer or the text itself.
        kl_nats: KL(clean || noisy), mean over these tokens, in nats per token.
        kl_p95_nats: 95th percentile over these tokens, linear between order statistics.
        kl_p99_nats: 99th percentile, likewise.
        nll_nats: Negative log-likelihood of these tokens under this condition, mean.
        nll_change_nats: The same minus the clean model's.
        top1_agreement: Share of these tokens whose most likely token is unchanged.
        is_right: Whether the generated answer is right; None where nothing is generated.
        answer: The generated answer as text; of samples given as ids, ids joined by spaces.
        is_cut: Whether the answer ended for want of tokens, before its end token.
        close_calls: Steps of the answer at which the two best logits differed by no more than
            rounding: there another batch or device may go on with another token.
        answer_ids: Token ids of the clean answer, along which every condition is scored; None of
            noisy records, and of texts.
    """

    condition: str
    draw: int
    sample: str
    tokens: int
    kl_nats: float
    nll_change_nats: float
    top1_agreement: float
    is_right: bool | None
    kl_p95_nats: float = math.nan
    kl_p99_nats: float = math.nan
    nll_nats: float = math.nan
    group: str | None = None
    answer: str | None = None
    is_cut: bool | None = None
    close_calls: int | None = None
    answer_ids: tuple[int, ...] | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns a dictionary for JSON, with None in the place of NaN and infinities."""
        return {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in asdict(self).items()
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Returns the record of a dictionary that `as_json` made, with NaN where a number lacks."""
        numbers = {f.name for f in fields(cls) if f.type is float}
        values: dict[str, Any] = {
            name: math.nan if value is None and name in numbers else value
            for name, value in entry.items()
        }
        if values.get("answer_ids") is not None:
            values["answer_ids"] = tuple(values["answer_ids"])
        return cls(**values)
