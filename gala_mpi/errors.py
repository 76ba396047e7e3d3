"""The one error that a user can mend: it names the quantity, the value seen and the values allowed."""


class SettingError(ValueError):
    """Bad input. Rank 0 prints it as one line and every rank ends with status 2 (`world.World.decide`)."""
