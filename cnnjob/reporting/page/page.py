"""The report as one self-contained HTML page: it loads nothing from the network, nor any other file.

The template engine escapes all text that comes from files; no HTML is built here. The page contains no date, so that
equal runs give equal bytes. Its curves are inline SVG, not Matplotlib's, which is fast enough for a thousand runs.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cnnjob.errors import format_seconds
from cnnjob.reporting import groups
from cnnjob.reporting.groups import Group, Interval
from cnnjob.reporting.page import charts, sections
from cnnjob.reporting.record import Record

if TYPE_CHECKING:
    from cnnjob.reporting.curve import Measure

PICTURED_RUNS = sections.MANY
"""With more runs than this the page has no images and matrices: it would be too large to send by mail."""
_SEEDS_SHOWN = 30


def render(records: Sequence[Record], sets: Sequence[Group]) -> str:
    """Render the page.

    Args:
        records: one or more runs, in order of name.
        sets: their groups, best first.

    Returns:
        A complete HTML document.
    """
    template = _environment().get_template("page.html.jinja")
    anchors = {record.name: f"run-{number}" for number, record in enumerate(records, start=1)}
    page: str = template.render(
        records=records,
        blocks=_blocks(sets),
        anchors=anchors,
        several_groups=len(sets) > 1,
        sections=[sections.of(record, anchors[record.name], len(records)) for record in records],
        pictured=len(records) <= PICTURED_RUNS,
        pictured_limit=PICTURED_RUNS,
        seeds_shown=_SEEDS_SHOWN,
        coloured=charts.COLOURS,
    )
    return page


class DatasetSection(NamedTuple):
    """The section of the page on the groups of one dataset."""

    dataset: str
    groups: list[Group]
    settings: list[str]
    """Names of the settings that differ between these groups."""
    comparisons: list[groups.GroupDifference]
    untold: list[groups.GroupDifference]
    charts: list[charts.Chart]


def _blocks(sets: Sequence[Group]) -> list[DatasetSection]:
    """Return one section per dataset, the best group's first; datasets that share a name are shown with digests."""
    datasets = dict.fromkeys(group.dataset for group in sets)
    names = [dataset.partition(" ")[0] for dataset in datasets]
    titles = [name if names.count(name) == 1 else dataset for name, dataset in zip(names, datasets, strict=True)]
    return [
        _block(title, [group for group in sets if group.dataset == dataset])
        for title, dataset in zip(titles, datasets, strict=True)
    ]


def _block(title: str, sets: list[Group]) -> DatasetSection:
    compared, settings = groups.group_differences(sets), groups.differing([group.settings for group in sets])
    untold = [difference for difference in compared if not difference.tells_apart]
    return DatasetSection(title, sets, settings, compared, untold, _overlays(sets))


def _overlays(sets: Sequence[Group]) -> list[charts.Chart]:
    overs: tuple[charts.Over, ...] = ("epoch", "time")
    measures: tuple[Measure, ...] = ("accuracy", "loss")
    drawn = (charts.of_groups(sets, measure, over) for over in overs for measure in measures)
    return [chart for chart in drawn if chart]


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - only the page needs it

    environment = Environment(
        loader=PackageLoader("cnnjob.reporting.page"),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name in the template is an error, not an empty cell
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent, "fixed": _fixed, "spread": _spread, "shown": groups.shown,
        "duration": _duration,
    }  # fmt: skip
    return environment


def _percent(share: Any, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f}" if isinstance(share, int | float) else ""


def _duration(seconds: Any) -> str:
    return format_seconds(seconds) if isinstance(seconds, int | float) else ""


def _fixed(value: Any, digits: int = 4) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else ""


def _spread(interval: Interval | None, digits: int = 2, factor: float = 1) -> str:
    """Format an interval: ``99.14 ± 0.12``."""
    if interval is None:
        return ""
    half = f" ± {factor * interval.half_width:.{digits}f}" if interval.half_width is not None else ""
    return f"{factor * interval.mean:.{digits}f}{half}"
