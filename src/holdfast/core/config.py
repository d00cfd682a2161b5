"""Configuration at the border: frozen Pydantic models that refuse what they do not know."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of every configuration model. Attribute docstrings become help and docs."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)
