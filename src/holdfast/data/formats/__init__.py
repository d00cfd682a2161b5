"""Row formats: every public set's columns, and two general ones (`messages`, `prompt_answer`)."""

from holdfast.core.registry import Registry
from holdfast.data.formats.base import Format, Home, Row
from holdfast.data.formats.chat import CHAT
from holdfast.data.formats.injection import INJECTION
from holdfast.data.formats.safety import SAFETY
from holdfast.data.formats.utility import UTILITY

FORMATS: Registry[Format] = Registry(
    "format", {format_.name: format_ for format_ in (*SAFETY, *UTILITY, *INJECTION, *CHAT)}
)

__all__ = ["FORMATS", "Format", "Home", "Row"]
