"""What the measurements of a device say, in sentences made from its records. Draws and measures nothing."""

from dataclasses import dataclass

from .records import Record
from .tables import Device, chosen, contests, time_ratio, verdict

# Stands beside the operators to show what their own products take; it computes none of them.
YARDSTICKS = ["matrix product"]
_MODES = {"forward": "forward", "backward": "backward", "step": "step (both)"}


@dataclass(frozen=True)
class Finding:
    """How irnet's implementation stands against the fastest peer of one operator, dtype and mode, in one run."""

    case: str
    dtype: str
    mode: str
    implementation: str
    peer: str
    ratio: str  # "2.00 x faster", "≈ 1.05 x faster", "1.10 x slower" or "equal"

    @property
    def met(self) -> bool:
        """Whether irnet is the faster one, beyond the spread of the measurements."""
        return self.ratio.endswith("faster") and not self.ratio.startswith("≈")


def findings(device: Device) -> list[Finding]:
    """One finding for every operator, dtype and mode that was measured beside a peer in the same run."""
    results = []
    for (case, dtype), contest in contests([r for r in device.records if r.suite == "kernels"]).items():
        ours = chosen(contest)
        rivals = contest[contest.peer].drop(YARDSTICKS, errors="ignore")  # what computes something else is no rival
        for mode in _MODES if ours else ():
            mine = contest[mode][ours]
            theirs = [r for r in rivals[mode] if _ran(r) and _ran(mine) and r.run == mine.run]
            if theirs:
                best = min(theirs, key=lambda record: record.median)
                results.append(Finding(case, dtype, mode, ours, best.implementation, time_ratio(mine, best)))
    return results


def _ran(record: Record | None) -> bool:
    return record is not None and verdict(record) == "ok" and bool(record.median)


def sentences(device: Device) -> list[str]:
    """The findings in words: how many there are and how many are met, one sentence per operator, and what is missed."""
    every = findings(device)
    if not every:
        return []
    missed = [f for f in every if not f.met]
    text = (
        f"On {device.name}, irnet is faster than the fastest peer in {len(every) - len(missed)} of {len(every)} cases "
        "(an operator in one dtype; forward, backward or both), beyond the spread of the measurements. A ratio is of "
        "two medians of one run."
    )
    lines = [text]
    if missed:
        what = "; ".join(f"{f.case} {f.dtype} {_MODES[f.mode]} ({f.ratio}{_than(f)})" for f in missed)
        lines.append(f"That bar, clearly faster than the fastest peer, is missed by {what}.")
    for case, dtype in dict.fromkeys((f.case, f.dtype) for f in every):
        lines.append(_sentence([f for f in every if (f.case, f.dtype) == (case, dtype)]))
    if any(r.implementation in YARDSTICKS for r in device.records):
        lines.append(
            f"{' and '.join(YARDSTICKS)}: a yardstick, no peer, for it does the operator's own products alone."
        )
    return lines


def _sentence(group: list[Finding]) -> str:
    """One operator in one dtype: "crop_resize float32 (cpp): forward 14.6 x faster than grid_sample, ..."."""
    first, phrases, before = group[0], [], None
    for f in group:
        phrases.append(f"{_MODES[f.mode]} {f.ratio}{'' if f.peer == before else _than(f)}")
        before = f.peer
    return f"{first.case} {first.dtype} ({first.implementation}): {', '.join(phrases)}."


def _than(finding: Finding) -> str:
    return f" {'to' if finding.ratio == 'equal' else 'than'} {finding.peer}"
