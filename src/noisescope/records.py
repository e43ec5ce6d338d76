"""The ground of every statistic: one record per condition, draw and sample."""

import math
from dataclasses import asdict, dataclass
from typing import Any

CLEAN = "clean"


@dataclass(frozen=True)
class Record:
    """One sample under one realisation of a condition's noise.

    Attributes:
        condition: The condition's name; `clean` for the clean model.
        draw: Number of the realisation; 0 for the clean model.
        sample: The sample's name.
        tokens: Tokens that were scored.
        kl_nats: KL(clean || noisy), mean over these tokens, in nats per token.
        nll_change_nats: Noisy minus clean negative log-likelihood, the same way.
        top1_agreement: Share of these tokens whose most likely token is unchanged.
        is_right: Whether the generated answer is right; None where nothing is generated.
    """

    condition: str
    draw: int
    sample: str
    tokens: int
    kl_nats: float
    nll_change_nats: float
    top1_agreement: float
    is_right: bool | None

    def as_json(self) -> dict[str, Any]:
        """Returns a dictionary for JSON, with None in the place of NaN and infinities."""
        return {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in asdict(self).items()
        }
