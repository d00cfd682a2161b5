"""Rules that merge the deltas of one layer without looking at data: rows of one table of pure functions."""

from holdfast.methods.merging.rules.base import Rule, RuleSettings, missing
from holdfast.methods.merging.rules.layer import merge_layer
from holdfast.methods.merging.rules.table import RULES

__all__ = ["RULES", "Rule", "RuleSettings", "merge_layer", "missing"]
