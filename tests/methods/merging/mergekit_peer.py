"""Run by the Python of mergekit's own environment: merges what it is given with the real mergekit.

    python mergekit_peer.py cases.pt merged.pt

A case has ``method``, ``parameters`` (``normalize`` and the like), ``deltas``, and ``uniforms``, the numbers that stand
in for the next draws of ``torch.bernoulli``.
"""

import sys

import torch


def main(given: str, out: str) -> None:
    """Merge every case and save the list of merged deltas."""
    from mergekit.merge_methods import merge_tensors

    merged = []
    for case in torch.load(given):
        left = list(case["uniforms"])
        torch.bernoulli = lambda shares, left=left: (left.pop(0) < shares).to(shares.dtype)
        base = torch.zeros_like(case["deltas"][0])
        merged.append(
            merge_tensors([base, *case["deltas"]], case["method"], parameters=case["parameters"], base_index=0)
        )
    torch.save(merged, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
