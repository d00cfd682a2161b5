"""Attacks on a model by injected instructions: the benchmark, attackers with a budget, and defences to compare with."""
