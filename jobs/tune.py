"""Propose a false-alarm rate for each product, from decisions and the costs of errors.

python -m jobs.tune --out out --miss-cost 50
python -m jobs.tune --out s3://bucket/out --miss-cost 400 --look-cost 2.5 --output tuned.toml

Of all current images it counts what would have been flagged at another rate, and what people
decided of it (see jobs.review). Rates are those that the held-out images of the model can promise.
--output is a settings file for jobs.query, which judges past nights by it, and for jobs.nightly and
jobs.score, which judge what they score from then on.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.cli import entry
from jobs.cli.console import echo
from ops.errors import SettingError, UserError
from ops.plain_text import printable
from ops.results.tuning import Costs, Proposal
from ops.storage import files
from ops.storage.paths import Out
from pipelines.reports.tune import tune
from pipelines.tables import decisions, model_names, run_records
from pipelines.tables.model_names import NamedModel


@dataclass(frozen=True)
class Settings:
    """Settings of jobs.tune."""

    out: str = "out"
    """The output folder that holds the nights and the decisions."""
    model_id: str = ""
    """The model: its id or the start of it, or a name that a run recorded, such as "tiles v3" or
    champion; default: the model of the latest finished run."""
    miss_cost: float = 0.0
    """What a defective part costs that nobody looks at, in any unit. It must be given."""
    look_cost: float = 1.0
    """What a look at a flagged part costs, in the same unit."""
    output: str = ""
    """The .toml file to write, a path or s3:// URI; default: none."""


def main(argv: Sequence[str]) -> int:
    """Propose rates."""
    settings, _ = entry.parse(Settings, __doc__, argv)
    if not settings.miss_cost:
        raise SettingError(
            "name what a missed defect costs, in looks if you like: --miss-cost 50 is 50 looks"
        )
    costs = Costs(settings.miss_cost, settings.look_cost)
    if settings.output and not settings.output.endswith(".toml"):
        raise SettingError(f"output {settings.output} must end in .toml")
    entry.check_access(settings)
    out = Out(settings.out)
    decisions.check_any(out)
    model = model_names.chosen(out, settings.model_id)
    record = run_records.of_model(out, model.model_id, "held_out", "false_alarm_rates")
    if record is None:
        raise UserError(
            f"no run in {out.runs()} records the held-out images of model {model}; score with it"
        )
    proposals = tune(out, record, costs)
    _print_summary(model, proposals, costs)
    if settings.output:
        text = _settings_file(settings, model, proposals)
        files.write_bytes(settings.output, text.encode())
        echo(
            f"settings: {settings.output}, for python -m jobs.query --config {settings.output}, "
            "and as a second --config of jobs.nightly"
        )
    return 0


def _print_summary(
    model: NamedModel, proposals: Mapping[str, Proposal | None], costs: Costs
) -> None:
    """Print what changes for each product, then what the figures do not say."""
    echo(f"model: {model}")
    echo(
        f"{'product':20} {'decided':>8} {'rate now':>9} {'flagged':>8} {'proposed':>9} "
        f"{'flagged':>8} {'saved':>7} {'given up':>9} {'caught':>7}"
    )
    for name, found in proposals.items():
        if found:
            echo(
                f"{printable(name)[:20]:20} {found.decided:>8,} {found.present:>9.3g} "
                f"{found.flagged_before:>8,} {found.proposed:>9.3g} {found.flagged_after:>8,} "
                f"{found.saved:>7,} {found.missed:>9,} {found.caught:>7,}"
            )
    echo(
        "decided = flagged parts that people decided, by the rate now; saved = decided false "
        "alarms that would not\nhave been flagged; given up = decided defects that would not; "
        "caught = decided defects that would, and\nwere not. All current images of past nights "
        "are counted"
    )
    for name, found in proposals.items():
        for sentence in _sentences(found, costs):
            echo(f"{printable(name)}: {sentence}")
    echo(
        "parts that the model calls good are rarely looked at: defects among them that nobody "
        "found are in no figure"
    )


def _sentences(found: Proposal | None, costs: Costs) -> list[str]:
    """Why nothing else is proposed for a product, and what cannot be judged."""
    if found is None:
        return ["no image was held out, so there is no rate to tune; fit it with --holdout 0.1"]
    sentences = []
    needed = costs.decisions_needed
    if found.proposed == found.present and found.decided < needed:
        sentences.append(
            f"no proposal: {found.decided:,} flagged parts are decided, and fewer alarms need "
            f"{needed:,} decisions at least, all of them false alarms"
        )
    elif found.proposed == found.present:
        sentences.append("no other rate is expected to cost less")
    else:
        if found.proposed < found.present:
            basis = f"{found.decided:,} decisions"
        else:
            basis = f"{found.caught:,} decided defects among parts that are not flagged"
        sentences.append(
            f"{found.proposed:.3g} instead of {found.present:.3g} is expected to change the cost "
            f"by {found.cost:,.1f} over images like these, by {basis}"
        )
    if not found.decided_below:
        sentences.append(
            "more alarms cannot be judged: nobody decided about a part that is not flagged"
        )
    return sentences


def _settings_file(
    settings: Settings, model: NamedModel, proposals: Mapping[str, Proposal | None]
) -> str:
    """Rates of all products as TOML; products without a proposal keep theirs."""
    today = datetime.datetime.now(datetime.UTC).date()
    lines = [
        f"# False-alarm rates by python -m jobs.tune, {today}: a missed defect costs "
        f"{settings.miss_cost:g}, a look {settings.look_cost:g}.",
        f"# Model {printable(str(model))}.",
        "[false_alarm_rate]",
    ]
    rates = {name: found.proposed for name, found in proposals.items() if found}
    if not rates:
        raise UserError("no product has held-out images, so there is no rate to write")
    lines += [f"{_key(name)} = {rate!r}" for name, rate in rates.items()]
    return "\n".join([*lines, ""])


def _key(name: str) -> str:
    """A name as a quoted key: TOML escapes as JSON does, and DEL too."""
    return json.dumps(name, ensure_ascii=False).replace("\x7f", "\\u007F")


if __name__ == "__main__":
    entry.start(main)
