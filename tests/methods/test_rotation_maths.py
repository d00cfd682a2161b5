import pytest
import torch
from tests.close import assert_close

from holdfast.core.errors import ConfigError
from holdfast.methods.rotation.maths import (
    Overlap,
    column_score,
    element_score,
    free_of_directions,
    free_of_elements,
    frozen_by_share,
    highest,
    onto_directions,
    output_drift,
    random_rotation,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_share_freezes_exactly_so_many_of_every_layer_and_the_highest() -> None:
    scores = {"a": noise(10), "b": noise(7, 9)}
    for name, frozen in frozen_by_share(scores, 0.3, "layer").items():
        assert frozen.shape == scores[name].shape
        assert int(frozen.sum()) == round(0.3 * scores[name].numel())
        assert scores[name][frozen].min() > scores[name][~frozen].max()


def test_global_scope_freezes_the_highest_of_all_layers_together() -> None:
    scores = {"low": noise(40), "high": noise(5, 8) + 1.5}
    frozen = frozen_by_share(scores, 0.3, "global")
    counts = {name: int(mask.sum()) for name, mask in frozen.items()}
    assert sum(counts.values()) == 24
    assert counts["high"] > counts["low"] > 0
    kept = torch.cat([scores[name][frozen[name]] for name in scores])
    free = torch.cat([scores[name][~frozen[name]] for name in scores])
    assert kept.min() > free.max()


def test_of_equal_scores_the_earlier_is_frozen() -> None:
    assert frozen_by_share({"a": torch.ones(6)}, 0.5, "layer")["a"].tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize("share", [0.01, 0.99])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_share_that_freezes_nothing_or_everything_is_refused_with_the_range(share: float, scope: str) -> None:
    with pytest.raises(ConfigError, match=r"of 20 coordinates of .*set it between 0\.05 and 0\.95"):
        frozen_by_share({"a": noise(20)}, share, scope)
    for edge in (0.05, 0.95):
        frozen_by_share({"a": noise(20)}, edge, scope)


def test_scores_of_elements_and_columns_are_what_they_are_called() -> None:
    G, W = torch.tensor([[3.0, -1.0], [4.0, 2.0]]), torch.tensor([[1.0, 2.0], [-2.0, 0.5]])
    assert element_score("abs", G, W).tolist() == [[3, 1], [4, 2]]
    assert element_score("square", G, W).tolist() == [[9, 1], [16, 4]]
    assert element_score("taylor", G, W).tolist() == [[3, 2], [8, 1]]
    assert_close(column_score(G), [5.0, 5.0**0.5])


def test_a_random_rotation_is_orthonormal_and_belongs_to_its_seed() -> None:
    Q = random_rotation(32, 3)
    assert_close(Q.T @ Q, torch.eye(32))
    assert torch.equal(Q, random_rotation(32, 3))
    assert not torch.equal(Q, random_rotation(32, 4))


def test_random_rotations_prefer_no_direction() -> None:
    """Without the signs of R, LAPACK's QR would give a first entry of one sign."""
    first = torch.stack([random_rotation(4, seed)[0, 0] for seed in range(400)])
    assert_close(first.mean(), 0.0, "estimate", sigma=(1 / 4 / 400) ** 0.5)
    assert_close(first.square().mean(), 0.25, "estimate", sigma=(3 / 24 - 1 / 16) ** 0.5 / 400**0.5)


def test_what_is_free_of_directions_answers_them_with_zero_and_is_a_projection() -> None:
    S, D = random_rotation(12, 0)[:, :5], noise(7, 12)
    free = free_of_directions(D, S)
    assert_close(free @ S, torch.zeros(7, 5))
    assert_close(free_of_directions(free, S), free)
    off = D - free
    assert_close(off @ S, D @ S)


def test_what_reads_the_free_directions_alone_is_what_is_free_of_the_frozen_ones() -> None:
    U, D = random_rotation(12, 0), noise(7, 12)
    assert_close(onto_directions(D, U[:, 5:]), free_of_directions(D, U[:, :5]))
    assert_close(onto_directions(D, U), D)


def test_what_is_free_of_elements_has_zero_coefficients_there_and_keeps_the_others() -> None:
    U, D, frozen = random_rotation(12, 0), noise(7, 12), noise(7, 12, seed=1) > 0
    rotated = free_of_elements(D, frozen, U) @ U
    assert_close(rotated[frozen], torch.zeros(int(frozen.sum())))
    assert_close(rotated[~frozen], D[~frozen])


def test_output_drift_is_the_relative_change_of_outputs_on_the_inputs() -> None:
    h_ti, W, change = noise(50, 6).double(), noise(4, 6, seed=1).double(), noise(4, 6, seed=2).double()
    expected = (h_ti @ change.T).norm() / (h_ti @ W.T).norm()
    assert_close(output_drift(change, W, h_ti.T @ h_ti), float(expected), "float64")
    s, U = torch.linalg.eigh(h_ti.T @ h_ti)
    root = U @ s.sqrt().diag() @ U.T
    assert_close(output_drift(change, W, h_ti.T @ h_ti), float((change @ root).norm() / (W @ root).norm()), "float64")


def test_output_drift_of_an_adapter_is_that_of_its_product() -> None:
    h_ti, W, X, A = noise(50, 6).double(), noise(4, 6, seed=1), noise(4, 2, seed=2), noise(2, 6, seed=3)
    product = X.double() @ A.double()
    assert_close(output_drift(X, W, h_ti.T @ h_ti, A), output_drift(product, W, h_ti.T @ h_ti), "float64")


def test_overlap_by_chance_is_what_random_masks_of_these_sizes_have() -> None:
    """In two layers together, of unequal width and share."""
    generator = torch.Generator().manual_seed(0)

    def drawn(n: int, count: int) -> torch.Tensor:
        return highest(torch.rand(n, generator=generator), count)

    def pair() -> Overlap:
        return Overlap.of(drawn(40, 10), drawn(40, 12)) + Overlap.of(drawn(100, 5), drawn(100, 5))

    pairs = [pair() for _ in range(400)]
    both = torch.tensor([each.both for each in pairs], dtype=torch.float64)
    assert_close(pairs[0].both_by_chance, 10 * 12 / 40 + 5 * 5 / 100)
    assert_close(both.mean(), pairs[0].both_by_chance, "estimate", sigma=float(both.std()) / 20)
    assert all(each.both + each.either == 32 for each in pairs)
    assert_close(pairs[0].both_by_chance + pairs[0].either_by_chance, 32.0)
    assert_close(pairs[0].share_by_chance, 3.25 / 28.75)


def test_overlap_of_a_mask_with_itself_is_one_and_with_the_rest_is_none() -> None:
    a = highest(noise(50), 20)
    assert (Overlap.of(a, a).share, Overlap.of(a, ~a).share) == (1.0, 0.0)
    empty = torch.zeros_like(a)
    assert (Overlap.of(empty, empty).share, Overlap.of(empty, empty).share_by_chance) == (1.0, 1.0)
