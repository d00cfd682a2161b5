"""The sentence about a run says what moved, what did not, and with which intervals."""

from holdfast.core.results import Metric, StepRecord
from holdfast.recipes.summary import figure, summarise


def measured(step_id, value, low, high):
    metric = Metric(name="utility/gsm8k/exact", value=value, n=100, k=round(100 * value), low=low, high=high)
    return StepRecord(id=step_id, do="evaluate", config={}, metrics=(metric,), status="done")


def sentence(after):
    change = StepRecord(id="c", do="compare", config={"before": "a", "after": "b"}, status="done")
    return summarise([measured("a", 0.2, 0.13, 0.29), measured("b", *after), change])


def test_an_unchanged_figure_is_said_to_be_unchanged():
    assert sentence((0.2, 0.13, 0.29)) == (
        "b against a moved no figure beyond its interval: "
        "left right answers on gsm8k unchanged at 20 % [13, 29] (n = 100)."
    )


def test_a_figure_that_moved_has_a_direction():
    assert sentence((0.5, 0.4, 0.6)) == (
        "b against a raised right answers on gsm8k from 20 % [13, 29] to 50 % [40, 60] (n = 100)."
    )
    assert "lowered right answers on gsm8k from 20 % [13, 29] to 1 % [0, 5]" in sentence((0.01, 0.0, 0.05))


def test_changes_are_percentage_points_with_a_sign_and_no_figure_is_a_negative_zero():
    change = Metric(name="x/y/exact/change", value=-0.001, n=900, k=-1, low=-0.004, high=0.31)
    assert figure(change) == "0 pp [0, 31]"
    assert figure(change.model_copy(update={"value": 0.36, "low": -0.2})) == "+36 pp [-20, 31]"
    assert figure(Metric(name="x/y/rouge_l/change", value=-0.001, n=9, low=-0.2, high=0.1)) == "0.00 [-0.20, 0.10]"


def tabled(name, values, *, higher=False, removed=()):
    """A table of a figure and of a second task, which stands first where the figure is an attack's success."""
    columns = [(name, higher, values), ("lab/choice/exact", True, dict.fromkeys(values, 0.5))]
    columns = columns if name.endswith(("/exact", "/token_error")) else columns[::-1]
    metrics = [
        Metric(name=f"table/{n}", value=v, n=100, k=None if v is None else round(100 * v), higher_is_better=better,
               group=f"row={row}", reason="" if v is not None else "no valid row")
        for n, better, side in columns
        for row, v in side.items()
    ]  # fmt: skip
    metrics += [
        Metric(name=f"table/{name}/removed", value=v, n=100, low=v - 0.1, high=v + 0.1, group=f"row={row}")
        for row, v in removed
    ]
    rows = {row: [row] for row in values if row != "before"}
    config = {"before": "base", "reference": "plain", "rows": rows}
    return summarise([StepRecord(id="t", do="table", config=config, metrics=tuple(metrics), status="done")])


def test_a_table_is_told_by_its_best_row_beside_the_reference_and_before():
    errors = {"before": 0.5, "plain": 0.4, "both": 0.1, "rho1": 0.2}
    assert tabled("lab/digits/token_error", errors) == (
        "Error on digits of results on lab/digits: 50 % before, 40 % plain and 10 % both, the lowest of 3 rows."
    )
    assert tabled("lab/arithmetic/exact", errors, higher=True) == (
        "Right answers on lab/arithmetic: 50 % before and 40 % plain, the highest of 3 rows."
    )
    assert tabled("attack/attacked/followed", errors).startswith("Injections followed on attack/attacked: 50 % before")
    assert tabled("lab/injection/followed", errors).startswith("Injections followed on lab/injection: 50 % before")
    unknown = dict.fromkeys(errors)
    assert tabled("attack/attacked/followed", unknown).startswith("Right answers on lab/choice: 50 % before")


def test_a_reference_that_lowered_attack_success_has_no_harm_to_remove():
    name, lower = "lab/harmful/attack_success_rate", {"before": 0.8, "plain": 0.4, "held": 0.6, "both": 0.1}
    gains = [("held", 0.5), ("both", -0.75)]
    assert tabled(name, lower, removed=gains) == (
        "Attack success on lab/harmful: 80 % before, 40 % plain and 10 % both, the lowest of 3 rows."
    )
    higher = {"before": 0.1, "plain": 0.8, "held": 0.2, "both": 0.9}
    assert "held, removes 86 % [76, 96] of that" in tabled(name, higher, removed=[("held", 0.86), ("both", -0.14)])
    worse = {"before": 0.1, "plain": 0.8, "held": 0.9, "both": 0.9}
    assert tabled(name, worse, removed=[("held", -0.14), ("both", -0.14)]).endswith(
        "10 % before and 80 % plain, the lowest of 3 rows."
    )


def kept(value, experts, row):
    group = f"row={row}, experts={experts}"
    return Metric(name="retention/mean", value=value, n=9, low=value - 0.04, high=value + 0.03, group=group)


def test_retention_is_told_of_the_best_row_at_the_most_adapters():
    metrics = (kept(0.99, 2, "ties"), kept(0.7, 20, "ties"), kept(0.93, 20, "sst"))
    steps = [measured("a", 0.2, 0.1, 0.3), StepRecord(id="kept", do="retention", config={}, metrics=metrics)]
    assert summarise(steps) == (
        "At 20 adapters sst, the best of 2 rows, keeps 93 % [89, 96] of the scores that each has alone."
    )
    unknown = Metric(name="retention/mean", value=None, n=9, group="row=sst, experts=2", reason="no score")
    steps[1] = steps[1].model_copy(update={"metrics": (unknown,)})
    assert summarise(steps).startswith("kept could not say what merges keep")


def test_a_run_that_has_steps_to_go_is_said_to_be_unfinished():
    step = measured("a", 0.2, 0.13, 0.29)
    assert summarise([step], 3) == f"Unfinished: 1 of 3 steps is done. So far: {summarise([step])}"
    assert summarise([step, step, step], 3) == summarise([step])
    assert summarise([], 3) == ""
    failed = step.model_copy(update={"status": "failed", "notes": ("No memory.",)})
    assert summarise([step, failed], 3) == "Step a failed: No memory."
