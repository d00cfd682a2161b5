"""The four methods. Each is one `Method` literal; they never import each other."""

from holdfast.core.registry import Registry
from holdfast.methods.base import Method

METHODS: Registry[Method] = Registry("method", {})
