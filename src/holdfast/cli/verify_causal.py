"""``holdfast verify causal``: does an instruction inside the data change what a model says?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.measure import AnyBase, model_named
from holdfast.cli.output import AsJson, Ticker, print_json, print_table, say
from holdfast.core.files import write_atomically

if TYPE_CHECKING:
    from holdfast.core.results import Metric
    from holdfast.methods.causal.verify import Verification
    from holdfast.methods.causal.verify_config import VerifyConfig

SAYS = {True: "holds", False: "FAILS", None: "abstains"}
LONGEST = 80
"""Letters of a reason on the terminal; ``-o`` has all of it."""
MEASURED = {
    "causal/attack_success": "attack success",
    "causal/attack_success/all": "  over invalid answers too",
    "causal/eps/outcome": "eps_causal, outcome",
    "causal/eps/outcome/worst": "  worst family",
    "causal/eps/token": "eps_causal, token",
    "causal/eps/token/worst": "  worst family",
    "causal/stability": "causal stability",
    "causal/stability_random": "  random pairs",
    "causal/stability_centred": "  centred",
    "causal/separation": "spurious separation",
    "causal/separation_random": "  random pairs",
    "causal/separation_centred": "  centred",
}
"""Figures of the terminal, in order."""


def causal(  # noqa: PLR0913, PLR0917 - one parameter an option
    model: Annotated[str, typer.Argument(metavar="MODEL", help="lab, a folder or a hub name.")],
    data: Annotated[str, typer.Option(metavar="FILE", help="Cases: lab, a file or folder, or a set on the hub.")],
    adapter: Annotated[
        str, typer.Option(metavar="FOLDER", help="The PEFT adapter that is the defence; adds PAC-Bayes bounds.")
    ] = "",
    any_base: AnyBase = False,
    against: Annotated[
        str | None, typer.Option(metavar="BASE", help="The model before its defence: its figures stand beside.")
    ] = None,
    layers: Annotated[str, typer.Option(help="Layers whose inputs are looked at, e.g. layers.3.up_proj,o_proj.")] = "",
    rows: Annotated[int, typer.Option(help="Test cases at most, drawn evenly over families.")] = 300,
    families: Annotated[str, typer.Option(help="Attack families that are asked, e.g. role_claim,ignore.")] = "",
    bound: Annotated[
        float | None, typer.Option(help="Attack success to certify, e.g. 0.05; too few rows for it are refused.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Permutations of every test, at least 999.")] = 999,
    seed: Annotated[int, typer.Option(help="Of drawn cases, permutations, simulations and resamples.")] = 0,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write everything that was found, as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Test whether an instruction inside data changes what a model says; exit 1 if a claim fails.

    Claims that cannot be decided abstain, and say what is missing. Needs the extra 'verify'. A model in 4 bits, or with
    other settings of its own, is verified by a recipe: see 'holdfast show verify'.
    """
    settings = _settings(layers=layers, families=families, rows=rows, bound=bound, draws=draws, seed=seed)
    found = _run(model_named(model, adapter, any_base), against, data, settings)
    if out is not None:
        write_atomically(out, json.dumps(_record(found), indent=1, ensure_ascii=False) + "\n")
        say(f"Everything is in {out}.")
    if as_json:
        print_json(_record(found))
    else:
        _print(found, beside=against is not None)
    if found.fails:
        raise typer.Exit(1)


def _settings(*, layers: str, families: str, **given: Any) -> VerifyConfig:
    from pydantic import ValidationError

    from holdfast.core.config import explain
    from holdfast.methods.causal.verify_config import VerifyConfig

    try:
        named, attacks = (tuple(filter(None, text.split(","))) for text in (layers, families))
        return VerifyConfig(layers=named, families=attacks, **given)
    except ValidationError as problem:
        raise explain(problem, "holdfast verify causal", VerifyConfig) from problem


def _run(model: Mapping[str, str], against: str | None, data: str, settings: VerifyConfig) -> Verification:
    """Read, check, load, verify: in this order, so that bad cases are told before a model loads."""
    from holdfast.data.counterfactual import named
    from holdfast.data.sources import SourceConfig
    from holdfast.layers.adapters import read_peft
    from holdfast.methods.causal.verify import prepare, verify
    from holdfast.methods.causal.verify_rows import read
    from holdfast.models.load import ModelConfig, load_model
    from holdfast.models.sources import local_folder

    config = ModelConfig.model_validate(model)
    cases = read(SourceConfig(source=named(data), rows=settings.rows if named(data).startswith("lab/") else None))
    prepare(cases, settings)
    folder = config.adapter
    adapter = None if folder is None else read_peft(local_folder(folder, marker="adapter_config.json"))
    loaded = load_model(config)
    undefended = None if against is None else load_model(ModelConfig(source=against))
    found = verify(loaded, cases, settings, undefended, adapter=adapter, say=Ticker())
    return replace(found, notes=(*loaded.notes, *found.notes))


def _record(found: Verification) -> dict[str, Any]:
    return {
        "fails": [verdict.name for verdict in found.fails],
        "verdicts": [verdict.model_dump() for verdict in found.verdicts],
        "metrics": [metric.model_dump() for metric in found.metrics],
        "curves": {name: [list(point) for point in points] for name, points in found.curves.items()},
        "notes": list(found.notes),
    }


def _print(found: Verification, *, beside: bool) -> None:
    rows = []
    for verdict in found.verdicts:
        p_value = "" if verdict.p_value is None else f"{verdict.p_value:.3f}"
        first, _, rest = verdict.reason.partition("; ")
        reason = rest if first.startswith(("holds", "fails")) else verdict.reason
        cut = reason if len(reason) <= LONGEST else reason[: LONGEST - 1].rstrip() + "…"
        rows.append((verdict.name.removeprefix("causal/"), SAYS[verdict.holds], p_value, str(verdict.n), cut))
    print_table(("claim", "", "p", "n", "found"), rows)
    typer.echo()
    print_table(("figure", "value", *(("undefended",) if beside else ())), _figures(found, beside=beside))
    typer.echo()
    for note in found.notes:
        typer.echo(note)
    counts = [f"{sum(v.holds is holds for v in found.verdicts)} {word}" for holds, word in SAYS.items()]
    typer.echo(f"Claims: {', '.join(counts)}.")


def _figures(found: Verification, *, beside: bool) -> Iterator[tuple[str, ...]]:
    by_key = {(metric.name, metric.group): metric for metric in found.metrics}
    moved = {m.name: f"moved, {m.name.removeprefix('causal/moved/')}" for m in found.metrics if "/moved/" in m.name}
    bounds = {m.name: f"{m.name.removeprefix('causal/bound/')} bound" for m in found.metrics if "/bound/" in m.name}
    for name, label in (MEASURED | moved | bounds).items():
        values = [_value(by_key, name, group) for group in ("", "model=undefended")[: 1 + beside]]
        yield (label, *values)


def _value(by_key: Mapping[tuple[str, str], Metric], name: str, model: str) -> str:
    """A figure with its interval; that of the worst family has the family."""
    worst = name.endswith("/worst")
    for (known, group), metric in by_key.items():
        if known == name and (group == model or (worst and group.startswith(model or "attack="))):
            return _told(metric, worst=worst)
    return "–"


def _told(metric: Metric, *, worst: bool) -> str:
    if metric.value is None:
        return f"– ({metric.reason})"
    limits = f" [{metric.low:.3f}, {metric.high:.3f}]" if metric.low is not None and metric.high is not None else ""
    family = f" {metric.group.rpartition('=')[2]}" if worst else ""
    vacuous = f" ({metric.reason})" if "/bound/" in metric.name and metric.reason else ""
    invalid = f" ({metric.n_invalid} invalid)" if metric.n_invalid else ""
    return f"{metric.value:.3f}{limits}{family}{vacuous}{invalid}"
