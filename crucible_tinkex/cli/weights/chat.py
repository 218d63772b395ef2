"""`crucible chat`: talk to a trained adapter, or ask it one thing."""

from __future__ import annotations

import json as json_module
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from crucible_tinkex.cli.commands.options import DEFAULT_STORAGE, Folder, Json, Sweep, Trial
from crucible_tinkex.errors import ConfigError, RequestRejectedError

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from crucible_tinkex.weights.chat import Chat, Style

_HELP = "/reset begins again, /exit or Ctrl-D ends"


def chat(
    sweep: Sweep,
    trial: Trial = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Ask this, print the answer, end.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    plain: Annotated[
        bool | None,
        typer.Option(
            "--plain/--chat",
            help="Without or with the chat template (default: as the training rows).",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0: the most probable token.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Nucleus sampling.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same answers again.")] = None,
    storage: Folder = DEFAULT_STORAGE,
    json: Json = False,
) -> None:
    """Talk to the adapter of a trial."""
    from anyio.from_thread import start_blocking_portal

    from crucible_tinkex.protocol.wire import SamplingParams
    from crucible_tinkex.sweep.results.trained import Trained
    from crucible_tinkex.sweep.results.views.summary import existing_sweep
    from crucible_tinkex.weights.chat import chat_with

    if json and prompt is None:
        raise ConfigError("--json goes with --prompt")
    trained = Trained.find(existing_sweep(storage, sweep), trial)
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    style: Style | None = None if plain is None else "plain" if plain else "chat"
    if prompt is None:
        print(f"starting {trained.trial.run_name}, step {trained.checkpoint.step}", file=sys.stderr)
    # The service lives in a thread of its own, so that it is not forgotten while somebody types.
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(
            chat_with(trained, style=style, params=params, system=system)
        ) as conversation,
    ):
        if prompt is None:
            _talk(portal, conversation)
            return
        answer = portal.call(conversation.say, prompt)
    print(json_module.dumps(vars(answer)) if json else answer.text)


def _talk(portal: BlockingPortal, conversation: Chat) -> None:
    asks = sys.stdin.isatty()
    if asks:
        print(_HELP, file=sys.stderr)
    while True:
        if asks:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        said = line.strip()
        if not line or said == "/exit":
            return
        if said == "/reset":
            conversation.reset()
        elif said:
            try:
                answer = portal.call(conversation.say, said)
            except (ConfigError, RequestRejectedError) as e:
                print(f"error: {e}", file=sys.stderr)
                continue
            print(answer.text + (" ..." if answer.cut else ""), flush=True)
