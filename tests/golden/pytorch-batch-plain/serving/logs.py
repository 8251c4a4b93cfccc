"""How lines of the log look."""

import logging

from serving.settings import settings


def configure_logging() -> None:
    """Have all loggers, the server's and the libraries' included, write lines of one form."""
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=settings.log_level, format=form)
