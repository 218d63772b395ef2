"""The embedded server alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from crucible_tinkex.cli.commands.options import LAST_PORT


def serve(
    model: Annotated[
        str | None,
        typer.Option(
            "--base",
            "--model",
            help="nano, smollm2-135m-instruct, a Hugging Face folder, or org/name on the hub "
            "(default: that of the checkpoints in the data folder, else smollm2-135m-instruct).",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Other than loopback needs --api-key-file.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=LAST_PORT, help="0 takes a free one.")] = 8010,
    data_dir: Annotated[Path, typer.Option(help="Checkpoints and key.")] = Path("runs/.service"),
    api_key_file: Annotated[Path | None, typer.Option(help="Key to accept (default: made)")] = None,
    dtype: Annotated[
        Literal["auto", "fp32", "bf16"], typer.Option(help="Number format of the base.")
    ] = "auto",
    device: Annotated[
        Literal["cpu", "cuda", "auto"], typer.Option(help="auto: CUDA where there is one.")
    ] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads (default: all cores).")] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option(min=0.01, help="For adapters; idle ones lie on disk (default: RAM / 4)."),
    ] = None,
    max_sessions: Annotated[
        int, typer.Option(min=1, help="Sessions, and models, at a time; one more is refused.")
    ] = 4096,
    ready_file: Annotated[Path | None, typer.Option(hidden=True)] = None,
    exit_with_parent: Annotated[bool, typer.Option("--exit-with-parent", hidden=True)] = False,
) -> None:
    """Run the embedded Tinker-compatible server alone."""
    from crucible_tinkex.server.sessions.limits import Limits
    from crucible_tinkex.server.web.serve import ServeOptions
    from crucible_tinkex.server.web.serve import serve as run_server
    from crucible_tinkex.telemetry.tracing.serving import server_spans

    options = ServeOptions(
        model=model,
        host=host,
        port=port,
        data_dir=data_dir,
        api_key_file=api_key_file,
        ready_file=ready_file,
        dtype=dtype,
        device=device,
        threads=threads,
        exit_with_parent=exit_with_parent,
        limits=Limits(max_sessions=max_sessions, max_models=max_sessions),
        memory_bytes=None if memory_gb is None else int(memory_gb * 1e9),
    )
    with server_spans() as hear:
        run_server(options, hear=hear)
