"""The Kubeflow pipeline "driftloop-retraining": the steps of `steps.py` in our own image, and its compiled form.

    python -m pipelines.retraining         writes the committed copy, retraining.yaml, anew

Kubeflow copies each function's source into the compiled file, so a step's body is one import and one call. The image holds
driftloop with its extra `pipeline`; nothing is installed when a run starts.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kfp import compiler, dsl

from pipelines.parameters import COMPILED

IMAGE = "driftloop-pipeline:0.1.0"


def component(function: Callable[..., Any]) -> Any:
    """A step in our image."""
    return dsl.component(function, base_image=IMAGE, install_kfp_package=False)


def pipeline(function: Callable[..., None]) -> Any:
    return dsl.pipeline(function, name="driftloop-retraining", description="Collect, train, evaluate; deploy only what is better; verify.")


@component
def collect(
    rows: dsl.Output[dsl.Dataset],
    model: str,
    data: str,
    repository: str,
    target: str,
    since_offset: int,
    min_rows: int,
    max_rows: int,
    wait_seconds: float,
) -> None:
    from pathlib import Path

    from pipelines import steps

    steps.collect(
        Path(rows.path),
        model=model,
        data=data,
        repository=repository,
        target=target,
        since_offset=since_offset,
        min_rows=min_rows,
        max_rows=max_rows,
        wait_seconds=wait_seconds,
    )


@component
def train(rows: dsl.Input[dsl.Dataset], candidate: dsl.Output[dsl.Model], trainer: str, holdout: float, reference_rows: int) -> None:
    from pathlib import Path

    from pipelines import steps

    steps.train(Path(rows.path), Path(candidate.path), trainer=trainer, holdout=holdout, reference_rows=reference_rows)


@component
def evaluate(
    candidate: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    model: str,
    run_id: str,
    repository: str,
    metric: str,
    margin: float,
    floor: float,
) -> bool:
    from pathlib import Path

    from pipelines import steps

    return steps.evaluate(
        Path(candidate.path),
        Path(evaluation.path),
        model=model,
        run_id=run_id,
        repository=repository,
        metric=metric,
        margin=margin,
        floor=floor,
    )


@component
def deploy(
    candidate: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    model: str,
    run_id: str,
    repository: str,
    server_url: str,
    gateway_url: str,
    log_url: str,
    incident: str,
    reason: str,
) -> str:
    from pathlib import Path

    from pipelines import steps

    return steps.deploy(
        Path(candidate.path),
        Path(evaluation.path),
        model=model,
        run_id=run_id,
        repository=repository,
        server_url=server_url,
        gateway_url=gateway_url,
        log_url=log_url,
        incident=incident,
        reason=reason,
    )


@component
def keep(evaluation: dsl.Input[dsl.Artifact], model: str, run_id: str, gateway_url: str, log_url: str) -> None:
    from pathlib import Path

    from pipelines import steps

    steps.keep(Path(evaluation.path), model=model, run_id=run_id, gateway_url=gateway_url, log_url=log_url)


@component
def report(model: str, run_id: str, gateway_url: str, log_url: str, status: dsl.PipelineTaskFinalStatus) -> None:
    from pipelines import steps

    message = status.error_message or ""
    steps.report(model=model, run_id=run_id, state=status.state, message=message, gateway_url=gateway_url, log_url=log_url)


def _uncached(task: Any) -> Any:
    """Every step reads or changes the world outside: an earlier run's output is never this run's."""
    return task.set_caching_options(False)


@pipeline
def retraining(
    model: str,
    run_id: str,
    data: str,
    repository: str,
    target: str = "",
    since_offset: int = -1,
    min_rows: int = 100,
    max_rows: int = 50_000,
    wait_seconds: float = 60.0,
    holdout: float = 0.3,
    trainer: str = "pipelines.trainers:classifier",
    metric: str = "accuracy",
    margin: float = 0.01,
    floor: float = 0.0,
    reference_rows: int = 5_000,
    server_url: str = "",
    gateway_url: str = "",
    log_url: str = "",
    incident: str = "",
    reason: str = "",
) -> None:
    told: dict[str, Any] = {"model": model, "run_id": run_id, "gateway_url": gateway_url, "log_url": log_url}
    with dsl.ExitHandler(_uncached(report(**told))):
        collected = _uncached(
            collect(
                model=model,
                data=data,
                repository=repository,
                target=target,
                since_offset=since_offset,
                min_rows=min_rows,
                max_rows=max_rows,
                wait_seconds=wait_seconds,
            )
        )
        trained = _uncached(train(rows=collected.outputs["rows"], trainer=trainer, holdout=holdout, reference_rows=reference_rows))
        candidate = trained.outputs["candidate"]
        evaluated = _uncached(
            evaluate(
                candidate=candidate,
                model=model,
                run_id=run_id,
                repository=repository,
                metric=metric,
                margin=margin,
                floor=floor,
            )
        )
        evaluation = evaluated.outputs["evaluation"]
        with dsl.If(evaluated.outputs["Output"] == True, name="better"):  # noqa: E712 - Kubeflow compiles the comparison
            _uncached(
                deploy(
                    candidate=candidate,
                    evaluation=evaluation,
                    repository=repository,
                    server_url=server_url,
                    incident=incident,
                    reason=reason,
                    **told,
                )
            )
        with dsl.Else(name="not-better"):
            _uncached(keep(evaluation=evaluation, **told))


def compile_pipeline(path: Path) -> None:
    """Write the pipeline as Kubeflow's YAML, the same bytes every time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(retraining, str(path))


if __name__ == "__main__":
    compile_pipeline(COMPILED)
