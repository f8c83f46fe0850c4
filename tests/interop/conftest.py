"""What tests of foreign files share."""

from test_unpickle import libraries

__all__ = ["libraries"]
