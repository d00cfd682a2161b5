"""The rules that read rows, layer by layer: from evidence to merged core coordinates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from holdfast.core.errors import ConfigError, NumericsError
from holdfast.curvature import fisher, gram
from holdfast.methods.merging import alignguard, maths
from holdfast.methods.merging.config import MergingConfig
from holdfast.methods.merging.evidence import Evidence, Lazily

Layer = tuple[str, Tensor, Sequence[Evidence]]
"""A layer's name, its cores ``M_tpq`` and its evidence."""


def merged_cores(config: MergingConfig, weights: Sequence[float], layers: Sequence[Layer]) -> dict[str, Tensor]:
    """By layer, the merged ``M_pq`` in float64.

    Raises:
        NumericsError: the evidence does not decide the merge.
    """
    weights_t = torch.tensor(weights, dtype=torch.double)
    layers = _beside_evidence(layers)
    if config.rule == "sst_projection":
        return _projections(config, weights, layers)
    if config.rule == "sst" and config.fisher == "global":
        return _span_mean(config, weights_t, layers, "all layers")
    mean = BY_RULE.get(config.rule) or MEANS[config.fisher]
    return {name: mean(config, weights_t, (name, M_tpq, seen)) for name, M_tpq, seen in layers}


def _beside_evidence(layers: Sequence[Layer]) -> list[Layer]:
    """The cores on the device where the evidence was found."""
    return [(name, M_tpq.to(seen[0].device), seen) for name, M_tpq, seen in layers]


def _gradients(seen: Sequence[Evidence]) -> list[Tensor]:
    return [each.gradients for each in seen if each.gradients is not None]


def _regmean(config: MergingConfig, weights_t: Tensor, layer: Layer) -> Tensor:
    name, M_tpq, seen = layer
    A_tqq = torch.stack([each.inputs for each in seen if each.inputs is not None])
    return maths.input_mean(A_tqq, M_tpq, weights_t, config.damping, name)


def _full(config: MergingConfig, weights_t: Tensor, layer: Layer) -> Tensor:
    """In the span of the rows where these are fewer than the layer's coordinates: the same mean, with less work."""
    name, M_tpq, seen = layer
    phi_td, G_tnd = M_tpq.flatten(1), _gradients(seen)
    if sum(map(len, G_tnd)) < phi_td.shape[1]:
        return _span_mean(config, weights_t, [layer], name)[name]
    F_tdd = torch.stack([fisher.full(G_nd.double()) for G_nd in G_tnd])
    return maths.quadratic_mean(F_tdd, phi_td, weights_t, config.damping, name).reshape(M_tpq.shape[1:])


def _block(config: MergingConfig, weights_t: Tensor, layer: Layer) -> Tensor:
    name, M_tpq, seen = layer
    return maths.block_mean(_gradients(seen), M_tpq, weights_t, config.damping, name)


def _kfac(config: MergingConfig, weights_t: Tensor, layer: Layer) -> Tensor:
    name, M_tpq, seen = layer
    factors = [(each.inputs, each.outputs) for each in seen if each.inputs is not None and each.outputs is not None]
    return maths.kronecker_mean(factors, M_tpq, weights_t, config.damping, name)


def _diagonal(
    of: Callable[[MergingConfig, Tensor], Tensor], config: MergingConfig, weights_t: Tensor, layer: Layer
) -> Tensor:
    name, M_tpq, seen = layer
    F_td = torch.stack([of(config, G_nd) for G_nd in _gradients(seen)])
    merged_d = maths.diagonal_mean(F_td, M_tpq.flatten(1), weights_t, config.damping, name)
    return merged_d.reshape(M_tpq.shape[1:])


MEANS: Mapping[str, Callable[[MergingConfig, Tensor, Layer], Tensor]] = {
    "full": _full,
    "block": _block,
    "kfac": _kfac,
    "diagonal": partial(_diagonal, lambda _, G_nd: fisher.diagonal(G_nd)),
    "gradient_variance": partial(_diagonal, lambda _, G_nd: fisher.gradient_variance(G_nd)),
    "topk": partial(_diagonal, lambda config, G_nd: fisher.topk(G_nd, config.share)),
}
"""The weighted mean under each form of Fisher matrix, layer by layer."""


def _guarded(config: MergingConfig, weights_t: Tensor, layer: Layer) -> Tensor:
    """Between the updates' own axes, for the collision of entries depends on the basis."""
    name, M_tpq, seen = layer
    U_pp, V_qq = seen[1].left, seen[1].right
    vectors_dd, values_k, task_mm = seen[1].vectors, seen[1].values, seen[1].task
    assert U_pp is not None and V_qq is not None  # noqa: PT018 - plans have them
    assert vectors_dd is not None and values_k is not None and task_mm is not None  # noqa: PT018 - and these
    phi_td = (U_pp.T @ M_tpq.double() @ V_qq).flatten(1)
    utility, safety = weights_t.tolist()
    made = alignguard.Split(vectors_dd, values_k, task_mm)
    merged_d = alignguard.guarded(made, phi_td, (utility, safety), name)
    return U_pp @ merged_d.reshape(M_tpq.shape[1:]) @ V_qq.T


BY_RULE: Mapping[str, Callable[[MergingConfig, Tensor, Layer], Tensor]] = {
    "regmean": _regmean,
    "fisher": MEANS["diagonal"],
    "alignguard": _guarded,
}
"""The rules that have no choice of form, layer by layer."""


def _span_mean(config: MergingConfig, weights_t: Tensor, layers: Sequence[Layer], what: str) -> dict[str, Tensor]:
    """These layers together, in the span of the samples: Fisher matrices with every entry, also between layers."""
    G_tnd = _gradients(layers[0][2])
    device, of_n = G_tnd[0].device, maths.of_samples(G_tnd)
    sizes_t = torch.tensor([len(G_nd) for G_nd in G_tnd], device=device)
    weights_t, count = weights_t.to(device), len(sizes_t)
    n, d = int(sizes_t.sum()), sum(M_tpq[0].numel() for _, M_tpq, _ in layers)
    own_nt = torch.zeros(n, count, dtype=torch.double, device=device)

    def pieces() -> Iterator[Tensor]:
        """All gradients, read once: what they have to do with the updates is summed as they pass."""
        for _, M_tpq, seen in layers:
            phi_td = M_tpq.flatten(1)
            for left, G_nc in maths.side_by_side(_gradients(seen), maths.COLUMNS):
                own_nt.addmm_(G_nc, phi_td[:, left : left + G_nc.shape[1]].double().T)
                yield G_nc

    K_nn = gram.inner_products(pieces())
    eps_t = config.damping * torch.stack([K_nn.diagonal()[of_n == t].mean() / d for t in range(count)])
    eps = float(eps_t @ weights_t)
    if not eps > 0:
        raise NumericsError(
            f"Fisher matrices of {what} do not decide the merge: got a weighted damping of {eps:.3g}, expected "
            "more than 0. Do: give rows with gradients, and weights of 0 or more."
        )
    shares_t = eps_t * weights_t / eps
    asked_n = own_nt.gather(1, of_n[:, None])[:, 0] - own_nt @ shares_t
    gamma_n = gram.gram_solve(K_nn, (weights_t / sizes_t)[of_n], asked_n, damping=eps)
    merged = {}
    for name, M_tpq, seen in layers:
        moved_d = torch.cat([G_nc.T @ gamma_n for _, G_nc in maths.side_by_side(_gradients(seen), maths.COLUMNS)])
        merged[name] = torch.einsum("t,tpq->pq", shares_t, M_tpq.double()) + moved_d.reshape(M_tpq.shape[1:])
    return merged


def with_parts(config: MergingConfig, layers: Sequence[Layer]) -> dict[str, Sequence[Evidence]]:
    """By layer, the evidence with what the rules of `PARTS` find in it whatever the weights.

    Raises:
        ConfigError: ``k`` is larger than the directions that a layer's safety rows use.
        NumericsError: damping is too small, or a Fisher matrix of `alignguard` is 0.
    """
    found: dict[str, Sequence[Evidence]] = {}
    for number, layer in enumerate(_beside_evidence(layers)):
        name, _, seen = layer
        parts = PARTS[config.rule](config, number, layer)
        found[name] = Lazily([partial(seen.__getitem__, 0), partial(_with, seen, parts)])
    return found


def _with(seen: Sequence[Evidence], parts: Mapping[str, Tensor]) -> Evidence:
    return replace(seen[1], **parts)


def _projected(config: MergingConfig, number: int, layer: Layer) -> dict[str, Tensor]:
    """The part of the second adapter's change in the chosen directions."""
    name, M_tpq, seen = layer
    G_ud, G_sd = _gradients(seen)
    keep = _keep(config, name, number, G_sd)
    part_d = maths.projected(G_sd, fisher.full(G_ud.double()), M_tpq[1].flatten(), config.damping, keep)
    return {"part": part_d.reshape(M_tpq.shape[1:])}


def _split(config: MergingConfig, _number: int, layer: Layer) -> dict[str, Tensor]:
    """Critical and task directions, between the updates' own axes."""
    name, M_tpq, seen = layer
    U_pp, V_qq = alignguard.axes(M_tpq)
    G_ud, G_sd = _gradients(seen)
    k = _count(config, name, G_sd)
    F_u, F_s = (
        fisher.full((U_pp.T @ G_nd.double().reshape(-1, *M_tpq.shape[1:]) @ V_qq).flatten(1)) for G_nd in (G_ud, G_sd)
    )
    made = alignguard.split(F_s, F_u, k, name)
    return {
        "vectors": made.vectors_dd,
        "values": made.values_k,
        "task": made.task_mm,
        "left": U_pp,
        "right": V_qq,
    }


PARTS: Mapping[str, Callable[[MergingConfig, int, Layer], dict[str, Tensor]]] = {
    "sst_projection": _projected,
    "alignguard": _split,
}
"""The rules for which the most work is the same at every weight: it is done when a merge is planned."""


def _projections(config: MergingConfig, weights: Sequence[float], layers: Sequence[Layer]) -> dict[str, Tensor]:
    """The utility update, and the kept part of the safety update."""
    shares = _layer_weights(config, [name for name, _, _ in layers])
    merged = {}
    for name, M_tpq, seen in layers:
        part_pq = seen[1].part
        assert part_pq is not None  # plans of this rule have it
        merged[name] = weights[0] * M_tpq[0].double() + weights[1] * shares[name] * part_pq
    return merged


def _keep(config: MergingConfig, name: str, number: int, G_sd: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    """What is kept of a layer, by its safety gradients."""
    if config.tau is not None:
        return partial(maths.soft, config.tau)
    k = _count(config, name, G_sd)
    if config.directions == "random":
        return partial(maths.drawn, k, config.seed + number)
    return partial(maths.first if config.directions == "efficient" else maths.most_used, k)


def _count(config: MergingConfig, name: str, G_sd: Tensor) -> int:
    """``k`` of a layer, at most the directions that safety gradients span: nothing tells the others apart."""
    rank = _rank(G_sd)
    if config.k is None:
        return max(1, (rank + 1) // 2)
    check_k(config.k, rank, name)
    return config.k


def check_k(k: int, most: int, name: str) -> None:
    """Refuse more directions than the safety rows tell apart.

    Raises:
        ConfigError: ``k`` is more than ``most``.
    """
    if k > most:
        raise ConfigError(
            f"k is larger than the evidence: got {k}, expected at most {most}, the directions that the safety rows use "
            f"in {name}. Do: lower k, or give more safety rows."
        )


def _rank(G_nd: Tensor) -> int:
    """`torch.linalg.matrix_rank`, without singular values where the products show that the rank is full."""
    most = (max(G_nd.shape) * torch.finfo(G_nd.dtype).eps) ** 2
    wide_nd = G_nd.double() if len(G_nd) <= G_nd.shape[1] else G_nd.double().T
    K_nn = wide_nd @ wide_nd.T
    floor = max(most, 2 * len(K_nn) * torch.finfo(torch.double).eps) * K_nn.norm()
    K_nn.diagonal().sub_(floor)
    full = int(torch.linalg.cholesky_ex(K_nn)[1]) == 0 and float(floor) > 0
    return len(K_nn) if full else int(torch.linalg.matrix_rank(G_nd))


def _layer_weights(config: MergingConfig, names: Sequence[str]) -> dict[str, float]:
    """By layer, how much of the projection it gets; their mean is 1 unless they are taken raw."""
    weights = {name: config.layer_weights.get(name.rpartition(".")[2], 1.0) for name in names}
    mean = 1.0 if config.raw_weights else sum(weights.values()) / len(weights)
    if mean == 0:
        raise ConfigError(f"layer_weights are 0 for all {len(weights)} layers, expected more for one. Do: change them.")
    return {name: weight / mean for name, weight in weights.items()}
