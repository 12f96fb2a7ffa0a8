"""The report as a self-contained HTML page that loads nothing from the network or from other files.

The template engine escapes all text read from files; no HTML is built here. The page contains no date, so that the
same runs give the same bytes. Curves are inline SVG and are drawn without Matplotlib, so that even a report on a
thousand runs is written quickly.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cnnjob.errors import format_seconds
from cnnjob.reporting import comparisons, groups
from cnnjob.reporting.groups import Group, Interval
from cnnjob.reporting.page import charts, sections
from cnnjob.reporting.record import Record
from cnnjob.reporting.tables import format_interval

if TYPE_CHECKING:
    from cnnjob.reporting.curve import Measure

MAX_PICTURED_RUNS = sections.MAX_DETAILED_RUNS
"""With more runs than this, the page has no images or matrices, as it would be too large for an email with them."""
_SEEDS_SHOWN = 30
_SENTENCES_SHOWN = 10
"""Maximum number of comparisons per dataset that are stated as sentences; the table has all of them."""


def render(records: Sequence[Record], run_groups: Sequence[Group]) -> str:
    """Render the page.

    Args:
        records: records of one or more runs, ordered by name.
        run_groups: the groups of these runs, best first.

    Returns:
        A complete HTML document.
    """
    template = _template_environment().get_template("page.html.jinja")
    anchors = {record.name: f"run-{number}" for number, record in enumerate(records, start=1)}
    page: str = template.render(
        records=records,
        datasets=_dataset_sections(run_groups),
        anchors=anchors,
        several_groups=len(run_groups) > 1,
        sections=[sections.build_section(record, anchors[record.name], len(records)) for record in records],
        pictured=len(records) <= MAX_PICTURED_RUNS,
        pictured_limit=MAX_PICTURED_RUNS,
        seeds_shown=_SEEDS_SHOWN,
        sentences_shown=_SENTENCES_SHOWN,
        coloured=charts.N_COLOURS,
    )
    return page


class DatasetSection(NamedTuple):
    """The page's section on one dataset's groups."""

    dataset: str
    groups: list[Group]
    settings: list[str]
    """Names of the settings that differ between the groups."""
    differences: list[comparisons.GroupDifference]
    charts: list[charts.Chart]


def _dataset_sections(run_groups: Sequence[Group]) -> list[DatasetSection]:
    """Return one section per dataset, in the order of their best groups.

    If several datasets have the same name, their titles include digests.
    """
    datasets = dict.fromkeys(group.dataset for group in run_groups)
    names = [dataset.partition(" ")[0] for dataset in datasets]
    titles = [name if names.count(name) == 1 else dataset for name, dataset in zip(names, datasets, strict=True)]
    return [
        _dataset_section(title, [group for group in run_groups if group.dataset == dataset])
        for title, dataset in zip(titles, datasets, strict=True)
    ]


def _dataset_section(title: str, run_groups: list[Group]) -> DatasetSection:
    differences = comparisons.group_differences(run_groups)
    settings = groups.differing_settings([group.settings for group in run_groups])
    return DatasetSection(title, run_groups, settings, differences, _group_charts(run_groups))


def _group_charts(run_groups: Sequence[Group]) -> list[charts.Chart]:
    axes: tuple[charts.XAxis, ...] = ("epoch", "time")
    measures: tuple[Measure, ...] = ("accuracy", "loss")
    drawn = (charts.build_group_chart(run_groups, measure, over) for over in axes for measure in measures)
    return [chart for chart in drawn if chart]


def _template_environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - only the page needs jinja2

    environment = Environment(
        loader=PackageLoader("cnnjob.reporting.page"),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name in a template is an error, not an empty cell
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent, "fixed": _fixed, "spread": _spread, "shown": groups.setting_text,
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
    """Return an interval formatted like ``99.14 ± 0.12``; empty if it is None."""
    return format_interval(interval, factor, digits) if interval else ""
