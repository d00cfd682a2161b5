"""What a plan of a merge looks at, what it holds, and what it refuses before it looks."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.close import assert_close
from tests.curvature.oracles import assert_same_state, gradient_oracle, state_of
from tests.methods.merging.expert_plans import FEW, adapter, experts, planned
from tests.training.helpers import examples
from tests.zoo import tiny

from holdfast.core.errors import AdapterError, ConfigError, DataError, HoldfastError, LayerError
from holdfast.data.examples import Example, Message
from holdfast.layers.adapters import Adapter, LowRank, added
from holdfast.layers.address import LayerMap
from holdfast.layers.core_space import CoreSpace
from holdfast.methods import METHODS
from holdfast.methods.merging.config import MergingConfig
from holdfast.methods.merging.plan import Expert, plan


def expected_gradients(at: Sequence[tuple[Adapter, float]], rows: Sequence[Example], name: str) -> torch.Tensor:
    """Autograd's own gradients in core coordinates, at the base with these adapters, one row at a time."""
    found = []
    loaded = tiny("llama")
    given = experts(loaded)
    space = CoreSpace.of([expert.adapter.deltas[name] for expert in given])
    for row in rows:
        loaded = tiny("llama")
        layers = LayerMap.of(loaded.model)
        for each, scale in at:
            for layer, delta in each.deltas.items():
                layers.write(layer, layers.read(layer) + scale * delta.dense())
        G_oi = gradient_oracle(loaded, loaded.chat.training(row), layers.select([name]))[name]
        found.append((space.left_op.T @ G_oi @ space.right_iq).flatten())
    return torch.stack(found)


POINTS: dict[str | None, Callable[[int, Sequence[Adapter]], list[tuple[Adapter, float]]]] = {
    "own": lambda number, given: [(given[number], 1.0)],
    "base": lambda number, given: [],
    "utility": lambda number, given: [(given[0], 1.0)],
    "mean": lambda number, given: [(given[0], 0.5), (given[1], 0.5)],
}


@pytest.mark.parametrize("point", POINTS)
def test_gradients_are_those_of_each_adapters_rows_at_the_point_that_was_asked_for(point: str) -> None:
    name = "layers.1.down_proj"
    loaded = tiny("llama")
    given = experts(loaded)
    before = state_of(loaded.model)
    made = plan(MergingConfig(layers=(name,), point=point, samples=2), loaded, given)
    assert_same_state(loaded.model, before)
    for number, seen in enumerate(made.evidence[name]):
        at = POINTS[point](number, [expert.adapter for expert in given])
        assert seen.gradients is not None
        assert_close(seen.gradients, expected_gradients(at, given[number].rows[:2], name), "float32")


def test_the_usual_point_is_each_adapters_own_and_for_a_projection_the_utility_adapter() -> None:
    for rule, point in (("sst", "own"), ("fisher", "own"), ("alignguard", "own"), ("sst_projection", "utility")):
        usual, named = (planned(tiny("llama"), rule=rule, **keys).evidence for keys in ({}, {"point": point}))
        for name, seen in usual.items():
            for mine, other in zip(seen, named[name], strict=True):
                assert mine.gradients is not None
                assert other.gradients is not None
                assert torch.equal(mine.gradients, other.gradients)


def test_labels_are_the_rows_own_or_drawn_by_the_seed() -> None:
    own, drawn, again, other = (
        planned(tiny("llama"), **keys).evidence["layers.0.q_proj"][0].gradients
        for keys in (
            {"seed": 5},
            {"labels": "sampled", "seed": 5},
            {"labels": "sampled", "seed": 5},
            {"labels": "sampled", "seed": 6},
        )
    )
    assert drawn is not None
    assert again is not None
    assert other is not None
    assert own is not None
    assert torch.equal(drawn, again)
    assert not torch.allclose(drawn, other)
    assert not torch.allclose(drawn, own)


def test_samples_takes_the_first_rows() -> None:
    few, all_of_them = (planned(tiny("llama"), n=5, **keys) for keys in ({"samples": 3}, {}))
    assert few.origin.n_rows == (3, 3)
    assert all_of_them.origin.n_rows == (5, 5)
    for name, seen in few.evidence.items():
        for mine, whole in zip(seen, all_of_them.evidence[name], strict=True):
            assert mine.gradients is not None
            assert whole.gradients is not None
            assert_close(mine.gradients, whole.gradients[:3], "float32")


def untrained(expert: Expert) -> Expert:
    """With the factors that training starts from: B is 0."""
    zero = {name: LowRank(delta.A, 0 * delta.B) for name, delta in expert.adapter.deltas.items()}
    return replace(expert, adapter=replace(expert.adapter, deltas=zero))


def test_what_changes_nothing_takes_no_coordinates() -> None:
    first, second = experts(tiny("llama"), (2, 3))
    for other in (untrained(second), only(second, "layers.1.up_proj")):
        made = plan(MergingConfig(layers=("layers.0.q_proj",)), tiny("llama"), [first, other])
        assert [seen.gradients.shape[1] for seen in made.evidence["layers.0.q_proj"] if seen.gradients is not None] == [
            4,
            4,
        ]
        assert made.notes() == (
            "2 adapters, 1 layer, ranks 2 to 2.",
            "The change of expert-1 is 0 in 1 of them.",
        )
    alone = plan(MergingConfig(rule="cat"), None, [first])
    assert alone.notes() == ("1 adapter, 14 layers, ranks 2 to 2.",)


def test_it_is_said_where_no_adapter_changes_anything() -> None:
    first, second = map(untrained, experts(tiny("llama")))
    down = {name: LowRank(0 * delta.A, 1 + delta.B) for name, delta in second.adapter.deltas.items()}
    second = replace(second, adapter=replace(second.adapter, deltas=down))
    made = plan(MergingConfig(layers=("layers.0.q_proj",)), tiny("llama"), [first, second])
    assert made.notes() == (
        "2 adapters, 1 layer, ranks 0 to 0.",
        "The change of expert-0 is 0 in 1 of them.",
        "The change of expert-1 is 0 in 1 of them.",
        "Every change is 0, so the merge changes nothing.",
    )
    assert not any(delta.dense().any() for delta in METHODS["merging"].apply(tiny("llama"), made).deltas.values())


def test_rows_that_two_adapters_share_are_counted_whatever_they_are_called() -> None:
    rows = examples(6, seed=20)
    again = [replace(row, id=f"again-{row.id}") for row in rows[:2]]
    given = [Expert("a", adapter(tiny("llama"), 2, 1), rows[:4])]
    given.append(Expert("b", adapter(tiny("llama"), 2, 2), [*again, *rows[4:], *examples(1, seed=3)]))
    given.append(Expert("c", adapter(tiny("llama"), 2, 3), examples(3, seed=7)))
    made = plan(MergingConfig(layers=FEW, fisher="block"), tiny("llama"), given)
    assert made.origin.shared == (2, 2, 0)
    assert made.notes()[1:] == (
        "Rows that another adapter has too: 2 of 4 of a, 2 of 5 of b. They speak for both, where the merge weighs what "
        "each needs against the other: give each adapter rows of its own task.",
    )
    assert planned(tiny("llama"), fisher="block").origin.shared == (0, 0)


def test_rules_that_read_adapters_alone_need_neither_model_nor_rows() -> None:
    given = [Expert(each.name, each.adapter) for each in experts(tiny("llama"))]
    made = plan(MergingConfig(rule="ties", layers=FEW), None, given)
    assert made.evidence == {}
    assert (made.origin.model, made.origin.rows, made.origin.n_rows) == ("", (), ())
    assert METHODS["merging"].apply(tiny("llama", seed=1), made).deltas.keys() == made.deltas.keys()
    assert made.origin.names == ("expert-0", "expert-1")
    assert list(made.deltas) == ["layers.0.q_proj", "layers.1.q_proj", "layers.1.down_proj"]


def only(expert: Expert, *names: str) -> Expert:
    kept = {name: delta for name, delta in expert.adapter.deltas.items() if name in names}
    return replace(expert, adapter=replace(expert.adapter, deltas=kept))


def test_adapters_of_unlike_layers_are_joined_and_it_is_said() -> None:
    first, second = experts(tiny("llama"))
    first, second = (
        only(first, "layers.0.q_proj", "layers.1.up_proj"),
        only(second, "layers.0.q_proj", "layers.0.o_proj"),
    )
    made = plan(MergingConfig(), tiny("llama"), [first, second])
    assert list(made.deltas) == ["layers.0.q_proj", "layers.1.up_proj", "layers.0.o_proj"]
    assert not made.deltas["layers.0.o_proj"][0].dense().any()
    assert not made.deltas["layers.1.up_proj"][1].dense().any()
    assert made.notes() == (
        "2 adapters, 3 layers, ranks 2 to 3.",
        "The change of expert-0 is 0 in 1 of them.",
        "The change of expert-1 is 0 in 1 of them.",
        "Full Fisher matrices of up to 25 coordinates see 4 rows of an adapter, so at most as many directions: more "
        "rows, or fisher: block, which needs fewer, may keep more.",
    )
    assert len(plan(MergingConfig(fisher="block"), tiny("llama"), [first, second]).notes()) == 3


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3"])
def test_a_fused_module_is_merged_as_one_layer_under_its_own_name(family: str) -> None:
    made = planned(tiny(family), layers=("qkv_proj",))
    assert list(made.deltas) == ["layers.0.qkv_proj", "layers.1.qkv_proj"]
    with pytest.raises(LayerError, match=r"no layer matches 'q_proj' in the adapters\. Did you mean 'qkv_proj'\?"):
        planned(tiny(family), layers=("q_proj",))


def test_globs_and_names_choose_layers() -> None:
    assert list(planned(tiny("llama"), layers=("layers.1.*_proj",)).deltas) == [
        f"layers.1.{kind}_proj" for kind in ("q", "k", "v", "o", "gate", "up", "down")
    ]
    assert list(planned(tiny("llama"), layers=("layers.0.o_proj", "v_proj")).deltas) == [
        "layers.0.v_proj",
        "layers.0.o_proj",
        "layers.1.v_proj",
    ]


def test_one_base_may_have_lain_in_several_places() -> None:
    given = experts(tiny("llama"))
    names = ("org/Llama-3-8B", "/cache/models--org--Llama-3-8B/snapshots/0a1b")
    moved = [
        replace(expert, adapter=replace(expert.adapter, base=base)) for expert, base in zip(given, names, strict=True)
    ]
    assert plan(MergingConfig(rule="svd"), None, moved).origin.base == names[0]


def recorded(*known: tuple[str, str], any_base: bool = False) -> list[Expert]:
    """Experts by the name of their base and the recorded hash of its weights."""
    return [
        replace(e, adapter=replace(e.adapter, base=name), base_weights=weights, any_base=any_base)
        for e, (name, weights) in zip(experts(tiny("llama")), known, strict=True)
    ]


def test_bases_of_one_folder_name_and_other_weights_are_refused() -> None:
    given = (("/one/base/model", "0a1b"), ("/two/base/model", "2c3d"))
    says = r"expert-0: /one/base/model \(weights 0a1b\), expert-1: /two/base/model \(weights 2c3d\), expected one base"
    with pytest.raises(AdapterError, match=says):
        plan(MergingConfig(rule="svd"), None, recorded(*given))
    made = plan(MergingConfig(rule="svd"), None, recorded(*given, any_base=True))
    assert made.origin.bases == ("0a1b", "2c3d")


def test_a_recorded_hash_says_more_than_a_name_and_a_name_what_no_hash_says() -> None:
    config = MergingConfig(rule="svd")
    assert plan(config, None, recorded(("/a/base", "0a"), ("/b/copied", "0a"))).origin.base == "/a/base"
    assert plan(config, None, recorded(("/a/base", "0a"), ("/b/base", ""))).origin.bases == ("0a", "")
    with pytest.raises(AdapterError, match="different bases: got expert-0: /a/one"):
        plan(config, None, recorded(("/a/one", "0a"), ("/b/two", "")))


def test_the_hash_of_rows_is_of_what_they_say_not_of_what_they_are_called() -> None:
    one, two, other = (
        planned_rows([replace(row, id=f"{stem}-{row.id}") for row in examples(4, seed=seed)])
        for stem, seed in (("a", 20), ("b", 20), ("a", 22))
    )
    assert one == two
    assert one != other


def planned_rows(rows: Sequence[Example]) -> str:
    return plan(MergingConfig(layers=FEW), tiny("llama"), changed(0, rows=rows)).origin.rows[0]


def changed(number: int, **keys: Any) -> list[Expert]:
    given = experts(tiny("llama"))
    given[number] = replace(given[number], **keys)
    return given


def _of_another_width() -> list[Expert]:
    first, second = experts(tiny("llama"))
    wide = {name: LowRank(torch.randn(2, 7), torch.randn(9, 2)) for name in second.adapter.deltas}
    return [first, replace(second, adapter=replace(second.adapter, deltas=wide))]


def _of_another_base() -> list[Expert]:
    first, second = experts(tiny("llama"))
    return [
        replace(first, adapter=replace(first.adapter, base="org/one")),
        replace(second, adapter=replace(second.adapter, base="org/two")),
    ]


def _same_rows_of_another_name() -> list[Expert]:
    rows = [replace(row, id=f"other-{row.id}") for row in reversed(examples(4, seed=20))]
    return changed(1, name="expert-0", rows=rows)


REFUSED: list[tuple[dict[str, Any], Callable[[], list[Expert]], type[HoldfastError], str]] = [
    ({}, list, AdapterError, "got no adapters, expected at least 1"),
    ({"weights": (1, 2, 3)}, lambda: experts(tiny("llama")), ConfigError, "got 3 weights for 2 adapters"),
    ({"layers": ("qproj",)}, lambda: experts(tiny("llama")), LayerError, "no layer matches 'qproj' in the adapters"),
    ({}, _of_another_base, AdapterError, "different bases: got expert-0: org/one, expert-1: org/two"),
    ({}, _of_another_width, AdapterError, r"got deltas of \(9, 7\) and \(32, 32\), expected one shape"),
    ({}, lambda: changed(1, rows=()), DataError, "Cannot weigh expert-1: got 0 rows, expected at least 2"),
    ({}, lambda: changed(1, rows=examples(1)), DataError, "Cannot weigh expert-1: got 1 row,"),
    (
        {},
        lambda: changed(1, rows=[*examples(2), Example("empty", (Message("user", "Why?"),), " ")]),
        DataError,
        "Cannot weigh expert-1: got no answer in 1 of 3 rows, the first is 'empty'",
    ),
    ({}, lambda: changed(1, rows=examples(4, seed=20)), DataError, "expert-0 and expert-1 have the same rows"),
    ({}, _same_rows_of_another_name, DataError, "expert-0 and expert-0 have the same rows"),
    (
        {"rule": "sst_projection"},
        lambda: experts(tiny("llama"), (1, 2, 3)),
        ConfigError,
        "rule sst_projection takes two adapters, utility and then safety: got 3",
    ),
    ({"rule": "safe_merge"}, lambda: experts(tiny("llama"))[:1], ConfigError, "rule safe_merge takes two adapters"),
    ({"rule": "alignguard"}, lambda: experts(tiny("llama"))[:1], ConfigError, "rule alignguard takes two adapters"),
    (
        {"rule": "alignguard", "k": 26},
        lambda: experts(tiny("llama"), n=40),
        ConfigError,
        "k is larger than the evidence: got 26, expected at most 25, the directions .* in layers.0.q_proj",
    ),
    (
        {"rule": "sst_projection", "k": 5},
        lambda: experts(tiny("llama")),
        ConfigError,
        "k is larger than the evidence: got 5, expected at most 4",
    ),
]


@pytest.mark.parametrize(("keys", "given", "error", "says"), REFUSED)
def test_what_cannot_be_merged_is_refused(
    keys: dict[str, Any], given: Callable[[], list[Expert]], error: type[HoldfastError], says: str
) -> None:
    with pytest.raises(error, match=says):
        plan(MergingConfig(**keys), tiny("llama"), given())


def test_rows_need_the_model_that_they_are_asked_on() -> None:
    given = experts(tiny("llama"))
    with pytest.raises(ConfigError, match=r"rule sst reads rows on the base model: got no model\. Do: give"):
        plan(MergingConfig(), None, given)
    for point in ("own", "base"):
        with pytest.raises(HoldfastError, match=r"does not belong to this|no layer|does not fit"):
            plan(MergingConfig(point=point), tiny("gpt2"), given)


def test_a_model_on_which_planning_fails_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny("llama")
    before = state_of(loaded.model)

    def fails(*_: object, **__: object) -> None:
        raise DataError("gone")

    monkeypatch.setattr("holdfast.methods.merging.evidence.core_gradients", fails)
    with pytest.raises(DataError, match="gone"):
        planned(loaded)
    assert_same_state(loaded.model, before)


def test_adapters_on_top_of_each_other_come_off_in_order() -> None:
    loaded = tiny("llama")
    before = state_of(loaded.model)
    with added(loaded.model, adapter(loaded, 2, 1)), added(loaded.model, adapter(loaded, 2, 2), 0.5):
        pass
    assert_same_state(loaded.model, before)
