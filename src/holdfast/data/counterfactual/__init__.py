"""Counterfactual cases: the same task with nothing injected, in other words, attacked, and with the payload obeyed."""

from holdfast.data.counterfactual.formats import CASE_FORMATS
from holdfast.data.counterfactual.read import named, of_families, read_cases, read_unchecked
from holdfast.data.counterfactual.row import Counterfactual

__all__ = ["CASE_FORMATS", "Counterfactual", "named", "of_families", "read_cases", "read_unchecked"]
