"""The parts of a dashboard other than its panels: variables, links, annotations."""

from collections.abc import Sequence

from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    CustomVariable,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as model

from dashboards.panels import SOURCE

Panel = Builder[model.Panel]

_TAG = "sleb-serve"


def board(uid: str, title: str) -> Dashboard:
    """Return an empty dashboard, with links to the others of this project."""
    link = DashboardLink("sleb-serve").type(model.DashboardLinkType.DASHBOARDS).tags([_TAG])
    return (
        Dashboard(title)
        .uid(uid)
        .tags([_TAG])
        .link(link.include_vars(True).keep_time(True))
        .time("now-30m", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .readonly()
    )


def datasource() -> Builder[model.VariableModel]:
    return DatasourceVariable("datasource").label("Data source").type("prometheus")


def values_of(name: str, label: str, query: str) -> Builder[model.VariableModel]:
    """A variable whose values are the result of a query."""
    return (
        QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": query, "refId": name})
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.NATURAL_ASC)
    )


def one_of(name: str, label: str, values: Sequence[str]) -> Builder[model.VariableModel]:
    """A variable with fixed values; the first is the default."""
    options = [model.VariableOption(value == values[0], value, value) for value in values]
    variable = CustomVariable(name).label(label).values(",".join(values)).options(options)
    return variable.current(options[0])


def annotation(name: str, expr: str, color: str) -> Builder[model.AnnotationQuery]:
    """A mark at each time at which ``expr`` has a value."""
    return AnnotationQuery().name(name).datasource(SOURCE).expr(expr).icon_color(color).enable(True)
