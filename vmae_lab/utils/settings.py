"""The base class of all settings."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Checked settings. Unknown names are errors, and values cannot be changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True)
