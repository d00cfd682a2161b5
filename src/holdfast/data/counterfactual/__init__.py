"""Counterfactual cases: the same task with nothing injected, in other words, attacked, and with the payload obeyed."""

from holdfast.data.counterfactual.read import read_cases
from holdfast.data.counterfactual.row import Counterfactual

__all__ = ["Counterfactual", "read_cases"]
