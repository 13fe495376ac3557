"""``sleb jobs``: list and control the jobs of a running service. Imports are lazy."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import (
    HEAL_OF_JOB,
    HELP,
    AsJson,
    CalibrationOption,
    DomainRatios,
    TaskNames,
    Url,
    WholeHelp,
    calibration_of,
    change_options,
    changes_of,
    heal_from,
    heal_of,
    heal_options,
    ratios_by_domain,
    spec_of,
    spec_options,
    tasks_of,
)
from app.terminal import json_text, print_json
from pruning.jobs.job import JobStatus
from pruning.spec.calibration import DEFAULT

if TYPE_CHECKING:
    from app.commands.client import ServiceClient

jobs = typer.Typer(
    cls=WholeHelp,
    no_args_is_help=True,
    help="Submit, heal, list, show, watch, pause, resume, retry, cancel and delete the "
    "jobs of a service.",
)

JobId = Annotated[str, typer.Argument(metavar="ID", help="Job id: prn-...")]


Priority = Annotated[
    int,
    typer.Option(
        min=-100, max=100, help="Priority in the queue; jobs with a higher priority run first."
    ),
]
WatchIt = Annotated[bool, typer.Option("--watch", help="Follow the job until it ends.")]


@jobs.command()
@spec_options(*HELP, *HEAL_OF_JOB)
def submit(
    model: Annotated[str, typer.Argument(help="Name of a dense model in the service.")],
    calibration: CalibrationOption = [dataset.value for dataset in DEFAULT],  # noqa: B006 - typer needs a list, and never changes it
    gate_max_perplexity_ratio_of: DomainRatios = [],  # noqa: B006 - as for the calibration
    tasks: TaskNames = None,
    heal_it: Annotated[
        bool, typer.Option("--heal", help="Heal the pruned model, with the --heal-* options.")
    ] = False,
    reuse_search: Annotated[
        bool,
        typer.Option(
            help="Reuse the search results of an earlier job with the same search settings."
        ),
    ] = True,
    priority: Priority = 0,
    watch_it: WatchIt = False,
    url: Url = None,
    as_json: AsJson = False,
    **values: object,
) -> None:
    """Submit a pruning job. Text files are named relative to the texts folder of the service.

    Exactly one of --num-remove, --sparsity, --max-perplexity-ratio, --target-speedup and
    --target-bytes is required.
    """
    text = calibration_of(calibration, values)
    ratios = ratios_by_domain(gate_max_perplexity_ratio_of)
    heal = heal_of(values, is_asked=heal_it)
    spec = spec_of(
        model,
        text,
        {**values, "gate_max_perplexity_ratio_of": ratios, "tasks": tasks_of(tasks), "heal": heal},
    )
    fields = {name: value for name, value in spec.to_dict().items() if value is not None}
    with _client(url) as client:
        own = {"priority": priority, "reuse_search": reuse_search}
        job = client.request("POST", "/prune-jobs", body={**fields, **own})
    _print_submitted(job, url, watch_it=watch_it, as_json=as_json)


@jobs.command("heal")
@heal_options
def heal_published(
    model: Annotated[str, typer.Argument(help="Published checkpoint in the service, as NAME@JOB.")],
    priority: Priority = 0,
    watch_it: WatchIt = False,
    url: Url = None,
    as_json: AsJson = False,
    **values: object,
) -> None:
    """Submit a job that heals a published checkpoint; takes the options of `sleb heal`."""
    heal = heal_from(values)
    with _client(url) as client:
        body = {"model": model, "heal": heal.to_dict(), "priority": priority}
        job = client.request("POST", "/heal-jobs", body=body)
    _print_submitted(job, url, watch_it=watch_it, as_json=as_json)


@jobs.command()
def delete(job_id: JobId, url: Url = None) -> None:
    """Delete a finished job, its checkpoint and all names of its variants."""
    from app.commands.client import job_path

    with _client(url) as client:
        client.request("DELETE", job_path(job_id))
    typer.echo(f"deleted job {job_id} and its checkpoint")


@jobs.command("list")
def list_jobs(
    limit: Annotated[
        int, typer.Option(min=1, max=100, help="Maximum number of jobs, newest first.")
    ] = 20,
    status: Annotated[
        JobStatus | None, typer.Option(help="List only jobs with this status.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List jobs."""
    from app.commands.jobs import print_jobs

    filters = {} if status is None else {"status": status.value}
    with _client(url) as client:
        page = client.request("GET", "/prune-jobs", params={"limit": limit, **filters})
    if as_json:
        print_json(page["data"])
    else:
        print_jobs(page["data"], has_more=page["has_more"])


@jobs.command()
def show(job_id: JobId, url: Url = None, as_json: AsJson = False) -> None:
    """Show a job and its webhook deliveries."""
    from app.commands.client import job_path
    from app.commands.jobs import print_deliveries, print_job

    with _client(url) as client:
        job = client.get(job_id)
        deliveries = []
        if job["webhook"]:
            deliveries = client.request("GET", f"{job_path(job_id)}/webhook-deliveries")["data"]
        events = [] if as_json else list(client.events_so_far(job_id))
    if as_json:
        print_json({**job, "webhook_deliveries": deliveries} if job["webhook"] else job)
    else:
        print_job(job, events)
        print_deliveries(deliveries)


@jobs.command()
def watch(
    job_id: JobId,
    url: Url = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print each event as one line of JSON.")
    ] = False,
) -> None:
    """Follow a job until it ends; the exit code is 1 unless it succeeds. Ctrl-C does not stop the
    job.
    """
    with _client(url) as client:
        try:
            if as_json:
                from app.commands.client import follow

                follow(client, job_id, lambda event: typer.echo(json_text(event)))
            else:
                from app.commands.jobs import watch as watch_job

                watch_job(client, job_id)
        except KeyboardInterrupt:
            typer.echo(f"stopped watching; job {job_id} is still running", err=True)
            raise


@jobs.command()
def cancel(job_id: JobId, url: Url = None, as_json: AsJson = False) -> None:
    """Cancel a job. A running job stops after its current evaluation."""
    with _client(url) as client:
        _print_change(client.change(job_id, "cancel"), as_json=as_json)


@jobs.command()
def pause(job_id: JobId, url: Url = None, as_json: AsJson = False) -> None:
    """Pause a job and keep its progress. A queued job leaves the queue."""
    with _client(url) as client:
        _print_change(client.change(job_id, "pause"), as_json=as_json)


@jobs.command()
def resume(job_id: JobId, url: Url = None, as_json: AsJson = False) -> None:
    """Resume a paused job. It continues where it stopped."""
    with _client(url) as client:
        _print_change(client.change(job_id, "resume"), as_json=as_json)


@jobs.command()
@change_options
def retry(
    job_id: JobId,
    gate_max_perplexity_ratio_of: DomainRatios = [],  # noqa: B006 - typer needs a list, and never changes it
    tasks: TaskNames = None,
    no_gate: Annotated[bool, typer.Option("--no-gate", help="Remove the quality gate.")] = False,
    no_heal: Annotated[bool, typer.Option("--no-heal", help="Remove the healing.")] = False,
    watch_it: WatchIt = False,
    url: Url = None,
    as_json: AsJson = False,
    **values: object,
) -> None:
    """Retry a failed or cancelled job. Candidates that were already scored are not scored again.

    Options change the steps after the search. Settings without an option stay as they were; any
    --heal-* option adds a healing.
    """
    ratios = ratios_by_domain(gate_max_perplexity_ratio_of) or None
    none = {part: None for part, is_none in (("gate", no_gate), ("heal", no_heal)) if is_none}
    with _client(url) as client:
        named = None if tasks is None else tasks_of(tasks)
        options = {**values, "gate_max_perplexity_ratio_of": ratios, "tasks": named}
        changes = {**changes_of(options, client.get(job_id)["spec"]), **none}
        job = client.change(job_id, "retry", changes)
    _print_submitted(job, url, watch_it=watch_it, as_json=as_json)


def _client(url: str | None) -> "AbstractContextManager[ServiceClient]":
    from app.commands.client import service_client

    return service_client(url)


def _print_submitted(
    job: dict[str, Any], url: str | None, *, watch_it: bool, as_json: bool
) -> None:
    _print_change(job, as_json=as_json)
    if watch_it:
        watch(job["id"], url=url, as_json=as_json)


def _print_change(job: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(job)
        return
    pauses = "; it will pause after the current evaluation" if job["pause_requested_at"] else ""
    typer.echo(f"job {job['id']} is {job['status']}{pauses}")
