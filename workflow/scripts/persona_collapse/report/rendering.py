"""What `compare` asks of the page, until it asks its modules themselves."""

from .findings import summary
from .page import drawn, environment, page_parts
from .provenance import model_label

__all__ = ["drawn", "environment", "model_label", "page_parts", "summary"]
