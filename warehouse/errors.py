"""The one exception that alab raises on purpose."""


class AlabError(Exception):
    """A request that could not be met, told in words a user can act on.

    Attributes:
        message: what is wrong and where (file, key, run id).
        hint: what to do next; may be empty.
        exit_code: 1 when the request could not be met, 2 for wrong usage or an invalid scenario.
    """

    def __init__(self, message: str, hint: str = "", exit_code: int = 1):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message
