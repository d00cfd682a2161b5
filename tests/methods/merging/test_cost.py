"""What a merge is said to take, against what it holds and writes."""

from dataclasses import fields
from pathlib import Path

import pytest
from tests.methods.merging.expert_plans import experts
from tests.zoo import tiny

from holdfast.layers.adapters import read_peft, write_peft
from holdfast.methods.merging.apply import merge
from holdfast.methods.merging.config import READS, WITH_ROWS, MergingConfig
from holdfast.methods.merging.cost import Base, Shape, cost, shapes_of
from holdfast.methods.merging.plan import plan

WIDE = {f"layers.{n}.q_proj": Shape(4096, 4096, (16, 16)) for n in range(32)}
LLAMA = Base(8_000_000_000, 16_000_000_000, 20_000_000_000)


@pytest.mark.parametrize("rule", READS)
def test_disk_is_what_is_written_and_memory_holds_what_is_kept(rule: str, tmp_path: Path) -> None:
    loaded = tiny("llama")
    given = experts(loaded, (2, 3), n=5)
    config = MergingConfig(rule=rule)
    made = plan(config, loaded, given)
    found = cost(config, shapes_of([expert.adapter for expert in given]), [5, 5], None)
    write_peft(merge(made).adapter, tmp_path / "a")
    tensors = sum(4 * d.rank * sum(d.shape) for d in read_peft(tmp_path / "a").deltas.values())
    assert tensors <= found.disk_bytes <= 1.7 * tensors, "at most: some rules leave a lower rank"
    kept = sum(4 * delta.rank * sum(delta.shape) for each in made.deltas.values() for delta in each)
    kept += sum(
        tensor.numel() * tensor.element_size()
        for each in made.evidence.values()
        for seen in each
        for tensor in (getattr(seen, field.name) for field in fields(seen))
        if tensor is not None
    )
    kept += sum(4 * (space.left_op.numel() + space.right_iq.numel()) for space in made.spaces.values())
    assert kept <= found.memory_bytes


def test_evidence_is_the_gradients_of_all_rows_in_core_coordinates() -> None:
    """Ranks 16 + 16: 1,024 coordinates a layer, 4 bytes each for every row; and some of them once more."""
    fewer, more = (cost(MergingConfig(samples=n), WIDE, [1000, 1000], None) for n in (100, 200))
    assert 1 <= (more.memory_bytes - fewer.memory_bytes) / (32 * 1024 * 4 * 200) < 1.5
    assert fewer.scratch_bytes == more.scratch_bytes == 0


@pytest.mark.parametrize("form", ["full", "block", "global", "diagonal"])
def test_many_adapters_take_the_disk_of_their_gradients_and_the_memory_of_one_layers(form: str) -> None:
    """20 of rank 16: 102,400 coordinates a layer, 960 rows."""
    many = {name: Shape(4096, 4096, (16,) * 20) for name in WIDE}
    found = cost(MergingConfig(fisher=form), many, [48] * 20, None)
    gradients = 4 * 102_400 * 960
    assert found.scratch_bytes == len(WIDE) * gradients
    fewer = cost(MergingConfig(fisher=form), dict(list(many.items())[:16]), [48] * 20, None)
    given = 4 * (2 * 8192 * 320 + 8192 * 320 + 20 * 102_400)
    assert found.memory_bytes - fewer.memory_bytes == 16 * given, "adapters, result, bases and cores of each layer"
    assert found.memory_bytes < 32 * given + 2 * gradients


@pytest.mark.parametrize("rule", READS)
def test_more_adapters_rows_and_layers_take_more_and_a_lower_rank_less_disk(rule: str) -> None:
    config, plain = MergingConfig(rule=rule), cost(MergingConfig(rule=rule), WIDE, [200, 200], LLAMA)
    more = {name: Shape(4096, 4096, (16, 16, 24)) for name in WIDE}
    for other in (
        cost(config, more, [200, 200, 200], LLAMA),
        cost(config, WIDE | {"layers.0.k_proj": Shape(1024, 4096, (16, 16))}, [200, 200], LLAMA),
    ):
        assert other.memory_bytes > plain.memory_bytes
        assert other.disk_bytes > plain.disk_bytes
        assert other.seconds > plain.seconds
    assert cost(MergingConfig(rule=rule, rank=4), WIDE, [200, 200], LLAMA).disk_bytes == plain.disk_bytes // (
        4 if rule == "svd" else 8
    )
    rows = cost(config, WIDE, [400, 400], LLAMA)
    assert (rows.memory_bytes > plain.memory_bytes, rows.seconds > plain.seconds) in (
        [(True, True), (False, True)] if rule in WITH_ROWS else [(False, False)]
    )


def test_rules_on_small_coordinates_take_seconds_and_reading_rows_on_a_large_model_hours() -> None:
    assert cost(MergingConfig(rule="task_arithmetic"), WIDE, [], None).time == "seconds"
    assert cost(MergingConfig(rule="ties"), WIDE, [], None).time in {"seconds", "minutes"}
    assert cost(MergingConfig(), WIDE, [512, 512], LLAMA).time == "hours"
    quick = Base(LLAMA.parameters, LLAMA.weight_bytes, LLAMA.pass_bytes, "cuda")
    assert cost(MergingConfig(), WIDE, [512, 512], quick).time == "minutes"


def test_a_dense_rule_needs_room_for_matrices_of_one_layer_and_a_sum_needs_none() -> None:
    dense, core = (cost(MergingConfig(rule=rule), WIDE, [], None).memory_bytes for rule in ("ties", "task_arithmetic"))
    assert dense - core > 4 * 4096 * 4096
