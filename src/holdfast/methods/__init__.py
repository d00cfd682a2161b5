"""The four methods. Each is one `Method` literal; they never import each other."""

from holdfast.core.registry import Registry
from holdfast.methods.base import Method
from holdfast.methods.causal import CAUSAL
from holdfast.methods.merging import MERGING
from holdfast.methods.rotation import ROTATION
from holdfast.methods.token_weighting import TOKEN_WEIGHTING

METHODS: Registry[Method] = Registry(
    "method", {method.name: method for method in (ROTATION, MERGING, CAUSAL, TOKEN_WEIGHTING)}
)
