"""Pure: what a question to the API server ends with, for those who do not load its client."""

from http import HTTPStatus

from vf_manager.errors import SriovError


class ApiServerError(SriovError):
    """No answer, or one that says no. `status`: the HTTP status; None: nobody answered. `retry_after_s`: for
    how long it wants not to be asked again. Transient in any case: an object may come soon, and an
    administrator may give the right that is missing."""

    transient = True

    def __init__(self, message: str, status: int | None = None, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def is_away(self) -> bool:
        """It cannot be reached or is not able to work now; what was asked does not matter."""
        busy = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
        return self.status is None or self.status in busy or self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
