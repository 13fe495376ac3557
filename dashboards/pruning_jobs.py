"""The dashboard "Pruning jobs": queue, progress, speed, workers."""

from collections.abc import Iterator

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from dashboards.frame import Panel, annotation, board, datasource, values_of
from dashboards.panels import About, Query, bars, gauges, lines, stat_panel

_JOB = '{job_id=~"$job_id"}'
_NO_JOB = "no running job"
_NO_WORKER = "no worker scraped"


def pruning_jobs() -> Dashboard:
    found = (
        board("sleb-pruning-jobs", "Pruning jobs")
        .with_variable(datasource())
        .with_variable(values_of("job_id", "Job", "label_values(sleb_prune_job_loss, job_id)"))
        .annotation(
            annotation(
                "child process died", "increase(sleb_prune_children_lost_total[1m]) > 0", "red"
            )
        )
    )
    sections = (
        ("Queue", _queue()),
        ("Progress", _progress()),
        ("Speed", _speed()),
        ("Workers", _workers()),
    )
    for title, panels in sections:
        found.with_row(Row(title))
        for panel in panels:
            found.with_panel(panel)
    return found


def _queue() -> Iterator[Panel]:
    yield stat_panel(
        About(
            "Jobs",
            "Jobs in the job store now.",
            "short",
            "no job store",
        ),
        [
            Query("waiting", 'max(sleb_prune_jobs{state="queued"})'),
            Query("running", 'max(sleb_prune_jobs{state="running"})'),
        ],
    )
    yield stat_panel(
        About("Age of the queue", "Waiting time of the first job.", "s", "no job store"),
        [Query("age", "max(sleb_prune_queue_age_seconds)")],
        ((0.0, "green"), (3600.0, "orange"), (6 * 3600.0, "red")),
    )
    yield stat_panel(
        About("Workers", "Workers with a recent heartbeat.", "short", "no job store"),
        [Query("workers", "max(sleb_prune_workers)")],
        ((0.0, "red"), (1.0, "green")),
    )
    yield stat_panel(
        About("Job store", "1 while Redis answers.", "short", "no API scraped"),
        [Query("up", "min(sleb_job_store_up)")],
        ((0.0, "red"), (1.0, "green")),
    )
    yield lines(
        About("Jobs by state", "All jobs in the job store.", "short", "no job store", width=24),
        [Query("{{state}}", "max by (state) (sleb_prune_jobs)")],
        is_stacked=True,
    )


def _progress() -> Iterator[Panel]:
    ratio = "max by (model_name, job_id) (sleb_prune_job_progress_ratio)"
    yield gauges(
        About("Progress", "Share of finished evaluations.", "percentunit", _NO_JOB, width=8),
        [Query("{{model_name}} {{job_id}}", f"max_over_time({ratio}[$__range:])")],
    )
    yield lines(
        About("Progress over time", "As on the left.", "percentunit", _NO_JOB, width=8),
        [Query("{{model_name}} {{job_id}}", ratio)],
    )
    finish = "max by (model_name, job_id) (sleb_prune_job_estimated_finish_timestamp_seconds)"
    yield lines(
        About("Remaining time", "Of its phase, at its speed so far.", "s", _NO_JOB, width=8),
        [Query("{{model_name}} {{job_id}}", f"{finish} - time()")],
    )
    loss = f"max by (num_removed) (last_over_time(sleb_prune_job_loss{_JOB}[$__range]))"
    yield bars(
        About(
            "Loss by round",
            "Nats per predicted token on the calibration text, by number of removed blocks.",
            "none",
            "no search in this time range",
            width=12,
            height=9,
            decimals=3,
        ),
        Query("loss", loss),
        by="num_removed",
    )
    yield lines(
        About("Loss over time", "After the last round.", "none", _NO_JOB, 12, 9, 3),
        [Query("{{model_name}} {{job_id}}", "max by (model_name, job_id) (sleb_prune_job_loss)")],
    )


def _speed() -> Iterator[Panel]:
    evaluations = "rate(sleb_prune_evaluations_total[$__rate_interval])"
    yield lines(
        About("Evaluations per second", "By worker.", "short", _NO_WORKER, 12, decimals=2),
        [Query("{{instance}}", f"sum by (instance) ({evaluations})")],
    )
    took, number = (
        f"sum by (instance) (rate(sleb_prune_evaluation_seconds_{part}[$__rate_interval]))"
        for part in ("sum", "count")
    )
    yield lines(
        About("Seconds per evaluation", "Mean, by worker.", "s", _NO_JOB, 12),
        [Query("{{instance}}", f"{took} / {number}")],
    )


def _workers() -> Iterator[Panel]:
    text = "Up: its heartbeats reach the job store. Busy: it runs a job."
    yield lines(
        About("Up and busy", text, "short", _NO_WORKER, 12),
        [
            Query("up {{instance}}", "sleb_worker_up"),
            Query("busy {{instance}}", "sleb_worker_busy"),
        ],
    )
    ended = "increase(sleb_prune_jobs_ended_total[$__rate_interval])"
    yield lines(
        About("Ended jobs", "By state.", "short", _NO_WORKER, 12),
        [Query("{{state}}", f"sum by (state) ({ended})")],
    )
    yield _losses()
    used = "sleb_gpu_memory_used_bytes / sleb_gpu_memory_total_bytes"
    yield lines(
        About("GPU memory", "Of the machines of workers.", "percentunit", "no NVIDIA GPU", 12),
        [Query("{{instance}} {{device}}", used)],
    )


def _losses() -> Panel:
    text = "Child processes that died, leases lost to another worker, leases of dead workers."
    names = {
        "children lost": "children_lost",
        "leases lost": "leases_lost",
        "leases expired": "leases_expired",
    }
    queries = [
        Query(name, f"sum(increase(sleb_prune_{metric}_total[$__range]))")
        for name, metric in names.items()
    ]
    about = About("Lost workers and children", text, "short", _NO_WORKER, width=12, decimals=0)
    return stat_panel(about, queries, ((0.0, "green"), (1.0, "orange")))
