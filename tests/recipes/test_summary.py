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
