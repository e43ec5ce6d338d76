"""What the terminal shows of channels: outliers, massive activations, and noise there alone."""

from collections.abc import Iterator

from rich.table import Table

from noisescope.report.figures import estimate_text, number_text, per_cent, share_text, times_text
from noisescope.report.shares import predicted_share
from noisescope.report.table import Columns, fitting, plain_table
from noisescope.study import Diagnosis
from noisescope.study.effects import ChannelEffect

_MOST_ROWS = 12
_CHANNELS_EACH = 3


def channel_tables(diagnosis: Diagnosis, width: int) -> Iterator[Table]:
    """Returns the tables there is something to fill with."""
    for columns, narrower in (_outliers(diagnosis), _massive(diagnosis), _effects(diagnosis)):
        if any(columns.values()):
            yield plain_table(fitting(columns, narrower, width))


_Found = tuple[Columns, list[tuple[str, list[str] | None]]]


def _outliers(diagnosis: Diagnosis) -> _Found:
    """Returns outlier channels beside what they are predicted to cost."""
    rows = [
        (module.module, channel, ratio)
        for module in diagnosis.told.modules
        for channel, ratio in zip(module.outliers[:_CHANNELS_EACH], module.ratios, strict=False)
    ]
    rows = sorted(rows, key=lambda row: -row[2])[:_MOST_ROWS]
    shares = [predicted_share(diagnosis.told.profile, module, c) for module, c, _ in rows]
    columns = {
        "outlier channels": [module for module, _, _ in rows],
        "channel": [str(channel) for _, channel, _ in rows],
        "x middle": [times_text(ratio) for _, _, ratio in rows],
        "predicted": [number_text(kl) for kl, _ in shares],
        "of its site": [per_cent(share) for _, share in shares],
    }
    return columns, [("predicted", None)]


def _massive(diagnosis: Diagnosis) -> _Found:
    rows = [(m.module, peak) for m in diagnosis.told.modules for peak in m.massive]
    rows = sorted(rows, key=lambda row: -row[1].ratio)[:_MOST_ROWS]
    peaks = [peak for _, peak in rows]
    columns = {
        "massive activations": [module for module, _ in rows],
        "channel": [str(peak.channel) for peak in peaks],
        "value": [number_text(peak.value) for peak in peaks],
        "x median": [times_text(peak.ratio) for peak in peaks],
        "position": ["n/a" if p.position is None else str(p.position) for p in peaks],
        "token": ["n/a" if p.token_id is None else str(p.token_id) for p in peaks],
    }
    return columns, [("value", None)]


def _effects(diagnosis: Diagnosis) -> _Found:
    """Returns what noise in some channels alone costs, and in all others alone."""
    found = diagnosis.findings.channels
    columns = {
        "noise in channels of": [effect.site for effect in found],
        "these": [_which(effect) for effect in found],
        "these alone": [estimate_text(effect.these) for effect in found],
        "predicted": [number_text(e.predicted.kl_nats) if e.predicted else "n/a" for e in found],
        "others alone": [estimate_text(effect.others) for effect in found],
        "share": [share_text(effect.share) for effect in found],
    }
    means = [per_cent(effect.share.mean) for effect in found]
    return columns, [
        ("share", means),
        ("others alone", [number_text(effect.others.mean) for effect in found]),
        ("these alone", [number_text(effect.these.mean) for effect in found]),
        ("predicted", None),
        ("these", None),
        ("share", None),
    ]


def _which(effect: ChannelEffect) -> str:
    return f"{len(effect.channels)} {'outliers' if effect.is_outlier else 'costliest'}"
