"""Routes for those who operate the server: health, and metrics for Prometheus."""

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from hgsl.search.web import schemas
from hgsl.search.web.metrics import CONTENT_TYPE, Metrics, series
from hgsl.search.web.served import ServedIndexes


def add_monitoring_routes(app: FastAPI, served: ServedIndexes, metrics: Metrics) -> None:
    """Adds ``/healthz`` and ``/metrics``."""

    @app.get("/healthz", responses=schemas.error_responses())
    async def health() -> schemas.Health:
        """Says that the server answers, and which state of each index; it stays up if a store is out of reach."""
        return schemas.Health(
            status="ok",
            indexes={
                name: schemas.IndexHealth(
                    state=one.index.record["state"], images=len(one.index), current=one.error is None
                )
                for name, one in served
            },
        )

    @app.get("/metrics", response_class=PlainTextResponse, responses=schemas.error_responses())
    async def prometheus() -> PlainTextResponse:
        """Requests, their durations and the indexes in the text format of Prometheus."""
        indexes = dict(served)
        lines = metrics.lines()
        for name, kind, description, values in (
            ("hgsl_index_images", "gauge", "Images in the index.", {n: len(one.index) for n, one in indexes.items()}),
            ("hgsl_index_state", "gauge", "Number of the state that is served.",
             {n: one.index.record["state"] for n, one in indexes.items()}),
            ("hgsl_refresh_errors_total", "counter", "Looks at a store that failed.",
             {n: one.errors for n, one in indexes.items()}),
        ):  # fmt: skip
            lines += series(name, kind, description, [({"index": index}, value) for index, value in values.items()])
        return PlainTextResponse("\n".join(lines) + "\n", media_type=CONTENT_TYPE)
