"""The kinds of panels. Each has a unit, a description with its metrics, and a text for no data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import (
    barchart,
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heatmap_model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dashboards.queries import metrics_in

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
NO_TRAFFIC = "no traffic"

_Panel = TypeVar(
    "_Panel",
    stat.Panel,
    timeseries.Panel,
    heatmap.Panel,
    table.Panel,
    bargauge.Panel,
    barchart.Panel,
)


@dataclass(frozen=True)
class Query:
    """A query of a panel; ``unit`` and ``decimals`` override those of the panel."""

    legend: str
    expr: str
    unit: str | None = None
    decimals: int | None = None


@dataclass(frozen=True)
class About:
    """Title, description and format of a panel. Grafana's grid is 24 wide."""

    title: str
    text: str
    unit: str
    no_value: str = NO_TRAFFIC
    width: int = 6
    height: int = 7
    decimals: int | None = None


def stat_panel(
    about: About, queries: Sequence[Query], steps: Sequence[tuple[float, str]] = ()
) -> stat.Panel:
    """Numbers for the whole time range; ``steps`` are values and the colors from there on."""
    panel = _described(stat.Panel(), about, queries)
    for query, ref_id in zip(queries, _REF_IDS, strict=False):
        panel.with_target(_target(query, ref_id).instant())
    return (
        panel.color_mode(looks.BigValueColorMode.VALUE)
        .graph_mode(looks.BigValueGraphMode.NONE)
        .text_mode(looks.BigValueTextMode.VALUE_AND_NAME)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_thresholds(steps))
        .mappings(_no_number(about.no_value))
    )


def lines(about: About, queries: Sequence[Query], *, is_stacked: bool = False) -> timeseries.Panel:
    panel = _described(timeseries.Panel(), about, queries)
    for query, ref_id in zip(queries, _REF_IDS, strict=False):
        panel.with_target(_target(query, ref_id).range().exemplar("_bucket" in query.expr))
    panel.legend(
        common.VizLegendOptions()
        .display_mode(looks.LegendDisplayMode.TABLE)
        .placement(looks.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["mean", "lastNotNull"])
    )
    panel.tooltip(common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI))
    if is_stacked:
        stacking = common.StackingConfig().mode(looks.StackingMode.NORMAL).group("A")
        panel.stacking(stacking).fill_opacity(40)
    return panel.show_points(looks.VisibilityMode.AUTO).span_nulls(False)


def buckets_over_time(about: About, query: Query) -> heatmap.Panel:
    """A heat map of the number of observations in each bucket."""
    panel = _described(heatmap.Panel(), about, [query])
    target = _target(query, "A").range().format(PromQueryFormat.HEATMAP)
    panel.with_target(target).calculate(False)
    panel.color(
        heatmap.HeatmapColorOptions()
        .mode(heatmap_model.HeatmapColorMode.SCHEME)
        .scheme("Oranges")
        .steps(64)
        .exponent(0.5)
        .fill("dark-orange")
    )
    return panel.y_axis(heatmap.YAxisConfig().unit(about.unit))


def rows(about: About, query: Query, hidden: Sequence[str]) -> table.Panel:
    """A table with a row for each series and a column for each label that is not hidden."""
    panel = _described(table.Panel(), about, [query])
    panel.with_target(_target(query, "A").instant().format(PromQueryFormat.TABLE))
    excluded = {"excludeByName": dict.fromkeys(("Time", *hidden), True)}
    return panel.with_transformation(
        model.DataTransformerConfig(id_val="organize", options=excluded)
    )


def gauges(about: About, queries: Sequence[Query]) -> bargauge.Panel:
    """Bars from 0 to 1."""
    panel = _described(bargauge.Panel(), about, queries)
    for query, ref_id in zip(queries, _REF_IDS, strict=False):
        panel.with_target(_target(query, ref_id).instant())
    return (
        panel.min(0)
        .max(1)
        .orientation(looks.VizOrientation.HORIZONTAL)
        .display_mode(looks.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def bars(about: About, query: Query, by: str) -> barchart.Panel:
    """A bar for each value of the label ``by``, in the order of these as numbers."""
    panel = _described(barchart.Panel(), about, [query])
    panel.with_target(_target(query, "A").instant().format(PromQueryFormat.TABLE))
    to_number = {"conversions": [{"targetField": by, "destinationType": "number"}]}
    changes = (("convertFieldType", to_number), ("sortBy", {"sort": [{"field": by}]}))
    for name, options in changes:
        panel.with_transformation(model.DataTransformerConfig(id_val=name, options=options))
    return panel.x_field(by)


_REF_IDS = "ABCDEFGHIJKL"


def _described(panel: _Panel, about: About, queries: Sequence[Query]) -> _Panel:
    names = dict.fromkeys(name for query in queries for name in metrics_in(query.expr))
    metrics = ", ".join(f"`{name}`" for name in names)
    panel.title(about.title).description(f"{about.text}\n\nMetrics: {metrics}")
    panel.datasource(SOURCE).unit(about.unit).no_value(about.no_value)
    panel.span(about.width).height(about.height)
    if about.decimals is not None:
        panel.decimals(about.decimals)
    for query, ref_id in zip(queries, _REF_IDS, strict=False):
        own = {"unit": query.unit, "decimals": query.decimals}
        properties = [
            model.DynamicConfigValue(name, value)
            for name, value in own.items()
            if value is not None
        ]
        if properties:
            panel.override_by_query(ref_id, properties)
    return panel


def _target(query: Query, ref_id: str) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend)
    return target.ref_id(ref_id).datasource(SOURCE)


def _thresholds(steps: Sequence[tuple[float, str]]) -> dashboard.ThresholdsConfig:
    found = [model.Threshold(None, "text")] + [model.Threshold(at, color) for at, color in steps]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(found)


def _no_number(text: str) -> list[model.ValueMapping]:
    """Show this text instead of NaN, which is the mean of no observations."""
    result = model.ValueMappingResult(text=text, index=0)
    options = model.DashboardSpecialValueMapOptions(
        match=model.SpecialValueMatch.NULL_AND_NAN, result=result
    )
    return [model.SpecialValueMap(options)]
