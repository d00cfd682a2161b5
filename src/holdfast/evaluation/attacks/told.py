"""What a reader of an attack must know of the model, beside its figures."""

from __future__ import annotations

from holdfast.models.load import LoadedModel

NO_DATA_ROLE = "The chat template has no data role: the data are quoted between delimiters in the user's turn."


def told_of(loaded: LoadedModel) -> tuple[str, ...]:
    """Whether the model can tell data from its user by the role of a turn."""
    return () if loaded.chat.native_data else (NO_DATA_ROLE,)
