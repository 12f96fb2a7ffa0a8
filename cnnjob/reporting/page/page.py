"""The report as a self-contained HTML page that loads nothing from the network or from other files.

The template engine escapes all text read from files; no HTML is built here. All dates on the page are from the run
folders, so that the same runs give the same bytes. Curves are inline SVG and are drawn without Matplotlib, so that even
a report on a thousand runs is written quickly.

If there are many runs, the content of each run's section is in a ``noscript`` element. A browser that runs scripts
treats this element as text, so that a page with a thousand runs opens quickly; the page's script inserts the content
when the section is opened or printed. A browser without scripts shows the content as usual.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cnnjob.errors import format_seconds
from cnnjob.reporting import groups
from cnnjob.reporting.groups import Group, Interval
from cnnjob.reporting.lines import COLOURS, XAxis
from cnnjob.reporting.page import charts, matrices, parallel, results, sections
from cnnjob.reporting.record import Record
from cnnjob.reporting.tables import format_interval

if TYPE_CHECKING:
    from cnnjob.reporting.curve import Measure

MAX_PICTURED_RUNS = sections.MAX_DETAILED_RUNS
"""With more runs than this, the page has no images or matrices, as it would be too large for an email with them."""
_MAX_OPEN_RUNS = 3
"""With more runs than this, the sections on runs are folded, and their content is inserted when they are opened."""
_MAX_UNFOLDED_RUNS = 12
"""With more runs than this, the results table shows the runs of a group only on request."""
_MAX_LISTED_RUNS = 30
"""With more runs than this, the contents do not list individual runs."""
_SENTENCES_SHOWN = 10
"""Maximum number of comparisons per dataset that are stated as sentences; the table has all of them."""


class DatasetSection(NamedTuple):
    """The page's sections on one dataset's groups."""

    results: results.DatasetResults
    charts: list[charts.Chart]
    parallel: parallel.ParallelChart | None
    matrices: dict[str, Any] | None


class SectionFold(NamedTuple):
    """The sections of one run, or of several runs in the same state for the same reason."""

    fold: results.Fold
    sections: list[sections.RunSection]


def render(records: Sequence[Record], run_groups: Sequence[Group]) -> str:
    """Render the page.

    Args:
        records: records of one or more runs, ordered by name.
        run_groups: the groups of these runs, best first.

    Returns:
        A complete HTML document.
    """
    datasets = results.build_results(run_groups)
    unreadable = results.fold_runs(record for record in records if not record.settings)
    folds = [
        *(fold for dataset in datasets for entry in dataset.entries for fold in entry.folds),
        *(fold for dataset in datasets for fold in dataset.others),
        *unreadable,
    ]
    ordered = [record for fold in folds for record in fold.records]
    anchors = {record.name: f"run-{number}" for number, record in enumerate(ordered, start=1)}
    common = sections.common_settings(records)
    n_runs = len(records)
    families = sections.find_families(ordered, anchors)
    built = {
        record.name: sections.build_section(record, anchors[record.name], n_runs, common, families.get(record.name))
        for record in records
    }
    page: str = _template_environment().get_template("page.html.jinja").render(
        records=records,
        jobs=sorted({str(record.row["job"]) for record in records if record.row["job"]}),
        period=results.describe_period(records),
        states=results.count_states(records),
        datasets=[_dataset_section(dataset) for dataset in datasets],
        unreadable=unreadable,
        anchors=anchors,
        section_folds=[
            SectionFold(fold, [built[record.name] for record in fold.records]) for fold in folds
        ],
        common_settings=common,
        pictured=n_runs <= MAX_PICTURED_RUNS,
        pictured_limit=MAX_PICTURED_RUNS,
        charted=n_runs <= sections.MAX_CHARTED_RUNS,
        folded=n_runs > _MAX_OPEN_RUNS,
        unfolded=n_runs <= _MAX_UNFOLDED_RUNS,
        listed=n_runs <= _MAX_LISTED_RUNS,
        sentences_shown=_SENTENCES_SHOWN,
        coloured=len(COLOURS),
    )  # fmt: skip
    return page


def _dataset_section(dataset: results.DatasetResults) -> DatasetSection:
    """Add charts to the results on a dataset; the curves of a single run are shown only in the run's own section."""
    n_curves = sum(record.curve is not None for group in dataset.groups for record in group.records)
    return DatasetSection(
        dataset,
        _group_charts(dataset.groups) if n_curves > 1 else [],
        parallel.build_parallel_chart(dataset.groups, dataset.settings),
        matrices.comparable_matrices(dataset.groups),
    )


def _group_charts(run_groups: Sequence[Group]) -> list[charts.Chart]:
    axes: tuple[XAxis, ...] = ("epoch", "time")
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
        "duration": _duration, "headings": _headings,
    }  # fmt: skip
    return environment


def _percent(share: Any, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f}" if isinstance(share, int | float) else ""


def _duration(seconds: Any) -> str:
    return format_seconds(seconds) if isinstance(seconds, int | float) else ""


def _fixed(value: Any, digits: int = 4) -> str:
    return f"{value:z.{digits}f}" if isinstance(value, int | float) else ""


def _headings(section: str) -> list[tuple[str, Any]]:
    """Return the ids and titles of the headings in a rendered section."""
    from markupsafe import Markup  # noqa: PLC0415 - only the page needs it

    headings = re.findall(r'<h2 id="([^"]*)">(.*?)</h2>', str(section))
    return [(anchor, Markup(title)) for anchor, title in headings]  # noqa: S704 - rendered, so already escaped


def _spread(interval: Interval | None, digits: int = 2, factor: float = 1) -> str:
    """Return an interval formatted like ``99.14 ± 0.12``; empty if it is None."""
    return format_interval(interval, factor, digits) if interval else ""
