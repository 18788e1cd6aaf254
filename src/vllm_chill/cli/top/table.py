"""The targets of a status as rows: in columns, or, where the terminal is narrow, in a paragraph each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from vllm_chill.api.status import ProxyStatus, StartStatus, TargetStatus
from vllm_chill.cli.status import replicas_of, rows_of, words_of_start
from vllm_chill.cli.tables import cut
from vllm_chill.cli.top.lines import Line, Look, bar, joined, plain, wrapped
from vllm_chill.core.cold_start import STAGE_NAMES, duration
from vllm_chill.core.target import Stage

COLUMNS_FROM = 72
"""The width from which on there are columns."""

_PHASES = ("failed", "unknown", "queued", "waking", "draining", "ready", "asleep")
_LOOKS = {
    "failed": Look.BAD,
    "unknown": Look.BAD,
    "queued": Look.BUSY,
    "waking": Look.BUSY,
    "draining": Look.BUSY,
    "ready": Look.GOOD,
    "asleep": Look.FAINT,
}
_HEADS = ("PHASE", "FOR", "WAITING", "IN FLIGHT", "REPLICAS", "SLEEPS IN")
_WIDTHS = (8, 6, 7, 9, 8, 9)
_GAP = 2
_NAME_MOST = 44
_INDENT = 2
_LABEL = 11
_BAR_WIDE, _BAR_NARROW = 20, 10

SORTS: dict[str, Callable[[TargetStatus], Any]] = {
    "name": lambda target: name_of(target),
    "phase": lambda target: (_PHASES.index(target.phase), target.phase_seconds or 0.0),
    "waiting": lambda target: (-target.waiting, -target.in_flight),
    "in-flight": lambda target: (-target.in_flight, -target.waiting),
}
"""By what rows are sorted, and how; what is equal is by name."""


def sorted_by(sort: str, targets: Sequence[TargetStatus]) -> list[TargetStatus]:
    """The targets in this order."""
    return sorted(sorted(targets, key=name_of), key=SORTS[sort])


def name_of(target: TargetStatus) -> str:
    """What a target is called here."""
    return plain(target.model or target.target)


def aged(target: TargetStatus, seconds: float) -> TargetStatus:
    """The target so many seconds after it was told so, if nothing else has happened."""
    start = target.start
    if start is not None:
        eta = start.eta_seconds
        start = replace(
            start,
            elapsed_seconds=start.elapsed_seconds + seconds,
            eta_seconds=None if eta is None else max(0.0, eta - seconds),
        )
    return replace(
        target,
        start=start,
        phase_seconds=None if target.phase_seconds is None else target.phase_seconds + seconds,
        idle_seconds=None if target.idle_seconds is None else target.idle_seconds + seconds,
        sleeps_in_seconds=None if target.sleeps_in_seconds is None else max(0.0, target.sleeps_in_seconds - seconds),
    )


def heading(width: int) -> Line | None:
    """The names of the columns; None where there are none."""
    if width < COLUMNS_FROM:
        return None
    cells = [head.ljust(size) if n == 0 else head.rjust(size) for n, (head, size) in enumerate(_columns())]
    return ((_spaced(["TARGET".ljust(_name_width(width)), *cells]), Look.STRONG),)


def row(target: TargetStatus, status: ProxyStatus, width: int) -> list[Line]:
    """A target, in one line or more."""
    lines = _in_columns(target, status, width) if width >= COLUMNS_FROM else _in_paragraph(target, status, width)
    return [*lines, *more(target, width)]


def more(target: TargetStatus, width: int) -> list[Line]:
    """What there is to say of a target besides its numbers: how far its start is, whom it waits for, its cause."""
    if target.start is not None:
        return _start(target.start, width)
    if target.waits_for:
        return wrapped(f"waits for {', '.join(target.waits_for)}", width, Look.BUSY, _INDENT)
    if target.cause is not None:
        return wrapped(target.cause, width, Look.BAD if target.phase == "failed" else Look.PLAIN, _INDENT)
    return []


def details(target: TargetStatus, output: Sequence[str], width: int) -> list[Line]:
    """All there is to say of a target, and under it what its engine wrote last."""
    lines: list[Line] = []
    for name, value in rows_of(target):
        texts = [
            line for text in value.split("\n") for line in wrapped(text.removeprefix(" " * _LABEL), width - _LABEL)
        ]
        for number, line in enumerate(texts or [()]):
            lines.append(((("" if number else name).ljust(_LABEL), Look.STRONG), *line))
    if target.start is not None and (share := _share(target.start)) is not None:
        lines += [(), (*bar(share, min(40, width - 6)), (f" {share:4.0%}", Look.PLAIN))]
    if output:
        lines += [(), *wrapped("The engine's last lines:", width, Look.STRONG)]
        for text in output:
            lines += wrapped(text, width, Look.FAINT)
    return lines


def question(target: TargetStatus) -> str:
    """What is asked before a target is put to sleep."""
    ends = f" once its {target.in_flight} answers have ended" if target.in_flight > 1 else ""
    ends = " once its answer has ended" if target.in_flight == 1 else ends
    held = f" {target.waiting} wait for it, and will wake it again." if target.waiting else ""
    return f"Put {name_of(target)} to sleep{ends}?{held}"


def _start(start: StartStatus, width: int) -> list[Line]:
    words = plain(words_of_start(start))
    share = _share(start)
    if share is None:
        return wrapped(words, width, Look.BUSY, _INDENT)
    cells = _BAR_WIDE if width >= COLUMNS_FROM else _BAR_NARROW
    drawn: Line = ((" " * _INDENT, Look.PLAIN), *bar(share, cells), (f" {share:4.0%}  ", Look.PLAIN))
    taken = _INDENT + cells + 7
    if taken + len(words) <= width:
        return [(*drawn, (words, Look.BUSY))]
    return [drawn, *wrapped(words, width, Look.BUSY, _INDENT)]


def _share(start: StartStatus) -> float | None:
    """How much of a start is over, as far as that is known."""
    if start.eta_seconds is None or start.stage == STAGE_NAMES[Stage.ANSWERING]:
        return None
    whole = start.elapsed_seconds + start.eta_seconds
    return min(0.99, start.elapsed_seconds / whole) if whole > 0 else None


def _in_columns(target: TargetStatus, status: ProxyStatus, width: int) -> list[Line]:
    room = _name_width(width)
    cells = [
        target.phase.ljust(_WIDTHS[0]),
        *(text.rjust(size) for text, size in zip(_numbers(target), _WIDTHS[1:], strict=True)),
    ]
    gap = (" " * _GAP, Look.PLAIN)
    return [
        (
            (cut(_title(target, status), room).ljust(room), Look.STRONG),
            gap,
            (cells[0], _LOOKS.get(target.phase, Look.PLAIN)),
            gap,
            (_spaced(cells[1:]), Look.PLAIN),
        )
    ]


def _in_paragraph(target: TargetStatus, status: ProxyStatus, width: int) -> list[Line]:
    phase = joined([target.phase, _time(target.phase_seconds)], " ")
    room = max(8, width - len(phase) - 1)
    replicas = replicas_of(target.replicas, target.ready_replicas, target.desired_replicas)
    sleeps = _time(target.sleeps_in_seconds)
    parts = [
        f"{target.waiting} waiting",
        f"{target.in_flight} in flight",
        None if replicas is None else f"replicas {replicas}",
        f"sleeps in {sleeps}" if sleeps else None,
    ]
    first = (
        (cut(_title(target, status), room).ljust(room), Look.STRONG),
        (" ", Look.PLAIN),
        (phase, _LOOKS.get(target.phase, Look.PLAIN)),
    )
    return [first, *wrapped(joined(parts), width, Look.PLAIN, _INDENT)]


def _title(target: TargetStatus, status: ProxyStatus) -> str:
    default = status.default_model
    is_default = default is not None and len(status.targets) > 1 and default in (target.model, *target.served_names)
    return f"{name_of(target)}{' *' if is_default else ''}"


def _numbers(target: TargetStatus) -> tuple[str, ...]:
    current, ready = target.replicas, target.ready_replicas
    replicas = "-" if current is None else str(current) if ready in (None, current) else f"{ready}/{current}"
    return (
        _time(target.phase_seconds) or "-",
        str(target.waiting),
        str(target.in_flight),
        replicas,
        _time(target.sleeps_in_seconds) or "-",
    )


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else duration(seconds)


def _columns() -> list[tuple[str, int]]:
    return list(zip(_HEADS, _WIDTHS, strict=True))


def _name_width(width: int) -> int:
    return min(_NAME_MOST, width - sum(_WIDTHS) - _GAP * len(_WIDTHS))


def _spaced(cells: Sequence[str]) -> str:
    return (" " * _GAP).join(cells)
