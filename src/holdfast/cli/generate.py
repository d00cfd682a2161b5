"""``holdfast generate``: a model's greedy answers, on request guessed ahead by the heads that were trained with it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.measure import AnyBase, OnModel, model_named
from holdfast.cli.output import AsJson, print_json, say
from holdfast.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from holdfast.data.batches import Encoded
    from holdfast.data.examples import Message
    from holdfast.models.generate import Completion
    from holdfast.models.heads import Heads
    from holdfast.models.load import LoadedModel
    from holdfast.models.speculative import Acceptance

TOGETHER = 16
"""Prompts that are decoded together without guesses."""
ROWS = (".jsonl", ".json", ".csv", ".parquet", ".gz")
"""How files of rows end; any other is the text of one prompt."""


def generate(  # noqa: PLR0913, PLR0917 - one parameter an option
    model: Annotated[str, typer.Argument(help="lab, a folder or a hub name.")],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="What to ask. Repeatable.")] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option("--prompt-file", metavar="FILE", help="A prompt as text, or rows: JSONL, CSV or Parquet."),
    ] = None,
    adapter: OnModel = "",
    any_base: AnyBase = False,
    self_speculative: Annotated[
        bool, typer.Option("--self-speculative", help="Let the trained heads guess ahead: same answers, fewer passes.")
    ] = False,
    heads: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The heads. Default: 'heads' beside the model or the adapter."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens of an answer.")] = 256,
    as_json: AsJson = False,
) -> None:
    """Print a model's greedy answers to prompts."""
    if heads is not None and not self_speculative:
        raise ConfigError("--heads has no effect without --self-speculative. Do: add it, or take --heads out.")
    asked = _asked(prompt or [], prompt_file)
    beside = heads or (_beside(adapter or model) if self_speculative else None)

    from holdfast.models.config import ModelConfig
    from holdfast.models.load import load_model

    loaded = load_model(ModelConfig(**model_named(model, adapter, any_base)))  # type: ignore[arg-type]
    for note in loaded.notes:
        say(f"Note: {note}")
    prompts = [loaded.chat.prompt(messages, id=name) for name, messages in asked]
    guess = None if beside is None else _heads(loaded, beside, adapter)
    began = time.perf_counter()
    seen: Acceptance | None = None
    if guess is not None:
        answers, seen = _guessed(loaded, guess, prompts, max_new_tokens)
    else:
        from holdfast.models.generate import generate as plainly

        answers = plainly(loaded, prompts, max_new_tokens=max_new_tokens, batch_size=TOGETHER)
    speed = sum(len(answer.token_ids) for answer in answers) / (time.perf_counter() - began)
    texts = [loaded.chat.said(answer.text) for answer in answers]
    if as_json:
        print_json(_record([name for name, _ in asked], texts, answers, seen, speed))
        return
    typer.echo("\n\n".join(texts))
    if seen is not None:
        say(f"{_words(seen)} {speed:.1f} tokens/s.")


def _asked(prompts: Sequence[str], file: Path | None) -> list[tuple[str, Sequence[Message]]]:
    """Every prompt with its name."""
    from holdfast.data.examples import Message

    texts = [(f"prompt {i}", text) for i, text in enumerate(prompts, start=1)]
    rows: list[tuple[str, Sequence[Message]]] = []
    if file is not None and file.suffix in ROWS:
        from holdfast.data.sources import SourceConfig, load_examples

        rows = [(row.id, row.messages) for row in load_examples(SourceConfig(source=str(file)))]
    elif file is not None:
        try:
            texts.append((file.name, file.read_text(encoding="utf-8").rstrip("\n")))
        except UnicodeDecodeError as problem:
            raise DataError(f"Cannot read {file}: it is not UTF-8 text. Do: save it as UTF-8.") from problem
    if empty := [name for name, text in texts if not text.strip()]:
        raise ConfigError(f"Nothing to answer: {empty[0]} is empty. Do: give some text.")
    found = [(name, (Message("user", text),)) for name, text in texts] + rows
    if not found:
        raise ConfigError("Nothing to answer: no prompt was given. Do: add --prompt TEXT or --prompt-file FILE.")
    return found


def _beside(source: str) -> Path:
    """The heads that a training left beside its model or adapter."""
    own = Path(source).expanduser()
    folder = own.resolve().parent / "heads"
    if not own.is_dir():
        raise ConfigError(
            f"{source} is not the folder of a training, beside which heads would stand. Do: name theirs with --heads "
            "FOLDER."
        )
    if not folder.is_dir():
        raise ConfigError(
            f"{source} has no heads beside it: got no folder {folder}. Do: name theirs with --heads FOLDER, or train "
            "with token_weighting at a horizon of 2 or more."
        )
    return folder


def _heads(loaded: LoadedModel, folder: Path, adapter: str) -> Heads:
    from holdfast.methods.token_weighting.objective import base_of
    from holdfast.models.heads import load_heads
    from holdfast.models.sources import local_folder

    base = base_of(local_folder(adapter, marker="adapter_config.json")) if adapter else loaded.weights
    return load_heads(folder, loaded.model, base=base)


def _guessed(
    loaded: LoadedModel, heads: Heads, prompts: Sequence[Encoded], most: int
) -> tuple[list[Completion], Acceptance]:
    from holdfast.models.speculative import acceptance, self_speculative

    found = self_speculative(loaded, heads, prompts, max_new_tokens=most)
    return [each.completion for each in found], acceptance(found)


def _words(seen: Acceptance) -> str:
    """What the guesses were worth."""
    if seen.length is None:
        return "No pass over guesses was needed."
    rates = [f"horizon {i} {rate:.0%}" for i, rate in enumerate(seen.rates, start=2) if rate is not None]
    counted = f" Guesses that counted: {', '.join(rates)}." if rates else ""
    return (
        f"{seen.length:.2f} tokens a pass over {seen.passes} passes.{counted} "
        f"The closest choice was between logits {seen.closest:.1g} apart."
    )


def _record(
    names: Sequence[str], texts: Sequence[str], answers: Sequence[Completion], seen: Acceptance | None, speed: float
) -> dict[str, Any]:
    guessed = None
    if seen is not None:
        rates = {str(i): rate for i, rate in enumerate(seen.rates, start=2)}
        guessed = {"passes": seen.passes, "length": seen.length, "rates": rates, "closest": seen.closest}
    told = [
        {"id": name, "text": text, "tokens": len(answer.token_ids), "finish": answer.finish}
        for name, text, answer in zip(names, texts, answers, strict=True)
    ]
    return {"answers": told, "tokens_per_second": speed, "self_speculative": guessed}
