"""What benchmarks, evaluations and runs of stability have measured, from the data directory."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from app.api.deps import ServicesDep
from app.api.openapi import responses_for
from app.api.schemas.bodies import view_of
from app.auth.keys import seen_tenant
from app.results.store import ResultKind, ResultNotFound

router = APIRouter(prefix="/results", tags=["results"])

ResultId = Annotated[str, Path(description="Id of the result, from the list of results.")]


class ResultView(BaseModel):
    """A finished measurement, without its details."""

    id: str = Field(description="Id of the result; later results have larger ids.")
    object: Literal["result"] = Field(default="result", description="Type of this object.")
    kind: ResultKind = Field(
        description="Kind of measurement: bench and stability are commands; eval is POST /evals, "
        "and frontier is POST /frontiers."
    )
    model: str = Field(description="The dense model.")
    headline: str = Field(description="The main finding, in words.")
    created_at: float = Field(description="Creation time, in seconds since the epoch.")


class ResultReportView(ResultView):
    """A finished measurement with all its numbers."""

    report: dict[str, Any] = Field(
        description="The content of `bench.json` or `stability.json`, as the command writes it; "
        "for eval, the perplexities by text; for frontier, what `sleb frontier --json` prints."
    )


class ResultList(BaseModel):
    object: Literal["list"] = Field(default="list", description="Type of this object.")
    data: list[ResultView] = Field(description="The results, newest first.")
    has_more: bool = Field(description="Whether older results follow.")


@router.get("", responses=responses_for())
def list_results(
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=100, description="Results per page.")] = 20,
    after: Annotated[
        str | None, Query(max_length=64, description="Id of the last result of the previous page.")
    ] = None,
) -> ResultList:
    """List results, newest first. Results about checkpoints of other tenants are not listed."""
    page = services.results.page(limit, after, seen_tenant())
    views = [view_of(ResultView, each) for each in page.results]
    return ResultList(data=views, has_more=page.has_more)


@router.get("/{result_id}", responses=responses_for(ResultNotFound))
def get_result(result_id: ResultId, services: ServicesDep) -> ResultReportView:
    """Return one result with its full report."""
    return view_of(ResultReportView, services.results.get(result_id, seen_tenant()))
