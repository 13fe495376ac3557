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
    """A finished measurement, without its numbers."""

    id: str = Field(description="Of the result; later ones are larger.")
    object: Literal["result"] = Field(default="result", description="The kind of this object.")
    kind: ResultKind = Field(description="bench and stability: the command; eval: POST /evals.")
    model: str = Field(description="The dense model.")
    headline: str = Field(description="The most important finding, in words.")
    created_at: float = Field(description="When it was written, in seconds since the epoch.")


class ResultReportView(ResultView):
    """A finished measurement with all its numbers."""

    report: dict[str, Any] = Field(
        description="What the command writes as `bench.json` or `stability.json`; for eval, the "
        "perplexities by text."
    )


class ResultList(BaseModel):
    object: Literal["list"] = Field(default="list", description="The kind of this object.")
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
    """The newest first. Results about checkpoints of another tenant are left out."""
    page = services.results.page(limit, after, seen_tenant())
    views = [view_of(ResultView, each) for each in page.results]
    return ResultList(data=views, has_more=page.has_more)


@router.get("/{result_id}", responses=responses_for(ResultNotFound))
def get_result(result_id: ResultId, services: ServicesDep) -> ResultReportView:
    """One result with its whole report."""
    return view_of(ResultReportView, services.results.get(result_id, seen_tenant()))
