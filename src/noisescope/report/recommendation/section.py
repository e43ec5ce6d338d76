"""A recommendation as a section of the page: the frontier, what was measured, and which formats.

Beside the recommended assignment stand its neighbours and what is done without a measurement at as
many bits, each with how much more it loses, question by question.
"""

import math
from collections.abc import Sequence
from typing import Any

from noisescope.analyse import Interval
from noisescope.analyse.predict import departs
from noisescope.export import export_files
from noisescope.report.figures import counted, estimate_text, number_text, percent, points_text
from noisescope.report.page.page import Picture, Section, Table
from noisescope.report.pictures.paint import (
    DASHES,
    INK,
    MARKERS,
    PREDICTED,
    TINTS,
    WORST,
    drawable,
    dress,
    logarithmic,
    new_figure,
)
from noisescope.study.recommended import RECOMMENDED, Assigned, Recommendation


def recommendation_section(found: Recommendation) -> Section:
    """Returns the section."""
    return Section(
        "recommendation",
        "The recommendation",
        tuple(recommendation_claims(found)),
        (frontier_picture(found), *_groups_picture(found)),
        (
            _assigned_table(found),
            _groups_table(found),
            *_kept_table(found),
            _engines_table(found),
        ),
    )


def recommendation_claims(found: Recommendation) -> list[str]:
    """Returns what is recommended, one statement each, with its number and its doubt."""
    best = found.best
    told = [
        f"With {found.options.target}: {_in_words(found, best)}; {best.bits:.3g} bits per "
        f"weight, predicted {_predicted(best)} nats per token{_measured(best)}."
    ]
    told += _goal(found)
    if best.also:
        told.append(f"{' and '.join(best.also)}: the same assignment.")
    told += _comparisons(found)
    if best.summary is not None and departs(best.predicted, best.summary.kl_nats):
        ratio = best.summary.kl_nats.mean / best.predicted.kl_nats
        told.append(
            f"Measured is {number_text(ratio)} times predicted, beyond chance: errors do not add "
            "here, and other assignments may be off as well. Go by what was measured."
        )
    told.append(
        "What to do: give the engine its file out of exports, if it can say this assignment. "
        "Another --bits or --kl, with another --out, moves along the frontier."
    )
    return told


def _goal(found: Recommendation) -> list[str]:
    """Says whether a loss that was asked for was met, as measured, and whether it is any harm."""
    goal, summary = found.options.kl_nats, found.best.summary
    if summary is None or not summary.kl_nats.is_known:
        return []
    told = []
    if goal is not None:
        kl = summary.kl_nats
        met = "is within" if kl.high <= goal else "is beyond" if kl.low > goal else "may be beyond"
        told.append(
            f"The goal of {goal:g} nats per token is one of the prediction; measured {met} it."
        )
    if summary.kl_verdict is not None and summary.kl_verdict.outcome == "harmless":
        told.append(f"By KL that is harmless: within {summary.kl_verdict.margin:g} nats per token.")
    return told


def _in_words(found: Recommendation, assigned: Assigned) -> str:
    """Says how many groups get which format, and names them where they are few."""
    formats, groups = found.options.formats, found.options.groups
    by_format: dict[str, list[str]] = {}
    for group, number in zip(groups, assigned.chosen, strict=True):
        by_format.setdefault(formats[number], []).append(group.name)
    ordered = sorted(by_format.items(), key=lambda item: len(item[1]))
    told = [
        f"{name} for {', '.join(members) if len(members) <= 4 else counted(len(members), 'group')}"
        for name, members in ordered[:-1]
    ]
    name, members = ordered[-1]
    rest = "the rest" if told else counted(len(members), "group")
    return ", ".join([*told, f"{name} for {rest}"])


def _predicted(assigned: Assigned) -> str:
    kl, error = assigned.predicted.kl_nats, assigned.predicted.error_nats
    if not math.isfinite(error):
        return number_text(kl)
    return f"{number_text(kl)} ± {number_text(error)}"


def _measured(assigned: Assigned) -> str:
    summary = assigned.summary
    if summary is None:
        return "; not measured yet"
    told = f", measured {estimate_text(summary.kl_nats)}"
    if math.isfinite(summary.accuracy_drop.mean):
        told += f", accuracy lost {points_text(summary.accuracy_drop)}"
    return told


def _comparisons(found: Recommendation) -> list[str]:
    told = []
    for assigned in found.assigned[1:]:
        if assigned.worse_by is None:
            continue
        names = " and ".join([assigned.name, *assigned.also])
        bits = f"{assigned.bits:.3g} bits"
        told.append(f"{names} ({bits}) {_against(assigned.worse_by)}")
    return told


def _against(worse_by: Interval) -> str:
    if not worse_by.is_known:
        return "cannot be told from it: too few data."
    span = f"{signed(worse_by.mean)} [{signed(worse_by.low)}, {signed(worse_by.high)}]"
    if worse_by.low > 0:
        return f"loses more: {span} nats per token."
    if worse_by.high < 0:
        return f"loses less: {span} nats per token."
    return f"cannot be told from it: {span} nats per token."


def signed(value: float) -> str:
    """Writes a difference with its sign."""
    return f"{value:+.2g}" if math.isfinite(value) else "n/a"


def frontier_picture(found: Recommendation) -> Picture:
    """Returns the least predicted loss over bits, and what was measured of which assignment."""
    figure = new_figure(8.2, 4.8)
    axes: Any = figure.subplots()
    dress(axes, "bits per weight, scales counted", "KL, nats per token")
    line = [(p.bits, p.kl_nats) for p in found.frontier if p.kl_nats > 0]
    if line:
        axes.plot(*zip(*line, strict=True), color=PREDICTED, linestyle=DASHES[1], linewidth=1.2)
        axes.plot(
            *zip(*line, strict=True),
            color=PREDICTED, marker=".", linestyle="none", gid="frontier", markersize=6,
            label="least predicted",
        )  # fmt: skip
    tips = {
        f"frontier/{n}": f"{bits:.3g} bits per weight\npredicted {number_text(kl)} nats per token"
        for n, (bits, kl) in enumerate(line)
    }
    for number, assigned in enumerate(found.assigned):
        tips |= _draw(axes, number, assigned)
    values = [kl for _, kl in line] + [
        a.summary.kl_nats.mean for a in found.assigned if a.summary is not None
    ]
    if any(math.isfinite(v) and v > 0 for v in values):
        axes.set_yscale("log")
        logarithmic(axes.yaxis)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return Picture(
        "frontier",
        "Predicted and measured loss over bits",
        "The line is the least predicted loss that a budget of bits allows. Marks with bars are "
        "assignments measured with the real rounding; open marks are what was predicted of them.",
        figure,
        tips,
        ("assignment", "bits", "predicted KL, nats per token", "measured KL", "low", "high"),
        (
            *(("frontier", p.bits, p.kl_nats, None, None, None) for p in found.frontier),
            *(_row(a) for a in found.assigned),
        ),
    )


def _row(assigned: Assigned) -> tuple[object, ...]:
    kl = None if assigned.summary is None else assigned.summary.kl_nats
    ends = (None,) * 3 if kl is None else (kl.mean, kl.low, kl.high)
    return (assigned.name, assigned.bits, assigned.predicted.kl_nats, *ends)


def _draw(axes: Any, number: int, assigned: Assigned) -> dict[str, str]:
    """Draws an assignment: what was predicted of it, and what was measured with its interval."""
    colour = WORST if assigned.name == RECOMMENDED else TINTS[number % len(TINTS)]
    marker = "*" if assigned.name == RECOMMENDED else MARKERS[number % len(MARKERS)]
    size = 11 if marker == "*" else 6
    style = {"color": colour, "marker": marker, "linestyle": "none", "markersize": size}
    if assigned.predicted.kl_nats > 0:
        axes.plot(assigned.bits, assigned.predicted.kl_nats, fillstyle="none", **style)
    if assigned.summary is None or not assigned.summary.kl_nats.mean > 0:
        return {}
    kl = assigned.summary.kl_nats
    if kl.is_known and kl.low > 0:
        axes.plot([assigned.bits] * 2, [kl.low, kl.high], color=colour, linewidth=1.3)
    gid = f"assigned-{number}"
    axes.plot(assigned.bits, kl.mean, gid=gid, label=drawable(assigned.name), **style)
    names = " and ".join([assigned.name, *assigned.also])
    lines = [
        names,
        f"{assigned.bits:.3g} bits per weight",
        f"measured {estimate_text(kl)} nats per token",
        f"predicted {_predicted(assigned)}",
    ]
    return {gid: "\n".join(lines)}


def _groups_picture(found: Recommendation) -> Sequence[Picture]:
    """Returns the predicted loss of every group in every format, the chosen one marked."""
    kl_GF, names = found.choices.kl_GF, [drawable(g.name, 56) for g in found.options.groups]
    if not (kl_GF > 0).any():
        return ()
    figure = new_figure(8.6, 1.0 + 0.24 * len(names))
    axes: Any = figure.subplots()
    dress(axes, "predicted KL, nats per token", "")
    tips: dict[str, str] = {}
    for number, name in enumerate(found.options.formats):
        style = {"color": TINTS[number % len(TINTS)], "marker": MARKERS[number % len(MARKERS)]}
        for row, group in enumerate(found.options.groups):
            value, is_chosen = float(kl_GF[row, number]), found.best.chosen[row] == number
            if not value > 0:
                continue
            gid = f"group-{row}-{number}"
            axes.plot(
                value, row, linestyle="none", markersize=7 if is_chosen else 5,
                fillstyle="full" if is_chosen else "none", gid=gid, **style,
            )  # fmt: skip
            bits = number_text(found.choices.bits_GF[row, number])
            chosen = ", chosen" if is_chosen else ""
            tips[gid] = (
                f"{group.name}\n{name}{chosen}: {bits} bits\npredicted {number_text(value)} nats "
                "per token"
            )
        axes.plot([], [], linestyle="none", label=drawable(name), **style)
    axes.set_yticks(range(len(names)), names, fontsize=7.5)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xscale("log")
    logarithmic(axes.xaxis)
    axes.legend(
        frameon=False, fontsize=8, labelcolor=INK, ncols=4, loc="lower left",
        bbox_to_anchor=(0, 1.0),
    )  # fmt: skip
    rows = tuple(
        (
            group.name,
            name,
            float(found.choices.bits_GF[row, number]),
            float(kl_GF[row, number]),
            "yes" if found.best.chosen[row] == number else "",
        )
        for row, group in enumerate(found.options.groups)
        for number, name in enumerate(found.options.formats)
    )
    picture = Picture(
        "formats",
        "Every group in every format",
        "What each group is predicted to cost in each format; the chosen one is filled.",
        figure,
        tips,
        ("group", "format", "bits", "predicted KL, nats per token", "chosen"),
        rows,
    )
    return (picture,)


def _assigned_table(found: Recommendation) -> Table:
    rows = []
    for assigned in found.assigned:
        summary, worse = assigned.summary, assigned.worse_by
        rows.append(
            (
                " and ".join([assigned.name, *assigned.also]),
                f"{assigned.bits:.3f}",
                f"{assigned.stored_bits:.3f}",
                _predicted(assigned),
                "n/a" if summary is None else estimate_text(summary.kl_nats),
                "n/a" if summary is None else percent(summary.accuracy),
                "" if worse is None else span_text(worse),
            )
        )
    return Table(
        "Assignments",
        ("assignment", "bits", "bits stored", "predicted", "measured", "accuracy", "loses more by"),
        tuple(rows),
        "KL in nats per token, mean and 95 % interval. Bits are per weight that takes part, scales "
        "counted; experts count by the share of them that a token reads, and whole where stored. "
        "The last column is KL less that of the recommended assignment, question by question.",
    )


def span_text(interval: Interval) -> str:
    """Writes a difference with its interval."""
    if not interval.is_known:
        return f"{signed(interval.mean)} [too few data]"
    return f"{signed(interval.mean)} [{signed(interval.low)}, {signed(interval.high)}]"


def _groups_table(found: Recommendation) -> Table:
    rows = []
    for row, group in enumerate(found.options.groups):
        number = found.best.chosen[row]
        losses = [number_text(float(kl)) for kl in found.choices.kl_GF[row]]
        rows.append(
            (
                group.name,
                found.options.formats[number],
                f"{found.choices.bits_GF[row, number]:.3f}",
                f"{group.weights:,}",
                *losses,
            )
        )
    formats = tuple(f"KL in {name}" for name in found.options.formats)
    return Table(
        "Which group gets which format",
        ("group", "format", "bits", "weights", *formats),
        tuple(rows),
        "Modules of a group run fused in inference engines, or are experts of one layer, and share "
        "a format. Losses are predicted, each group rounded alone.",
    )


def _engines_table(found: Recommendation) -> Table:
    """Returns which engines' files can say the assignment, and why the others cannot."""
    assignment = found.assignment
    made = export_files(assignment, [*assignment.formats, *assignment.kept])
    rows = [(name, "; ".join(made.notes.get(name, ())) or "as it is") for name in made.files]
    rows += list(made.left_out.items())
    return Table(
        "Files for inference engines",
        ("file or engine", "what it says, or why it cannot"),
        tuple(rows),
        "Linear layers that are kept, and everything that is no linear layer, stay in the model's "
        "own dtype.",
    )


def _kept_table(found: Recommendation) -> Sequence[Table]:
    if not found.options.kept:
        return ()
    return (
        Table(
            "Linear modules that stay as they are",
            ("module", "because"),
            tuple(found.options.kept.items()),
        ),
    )
