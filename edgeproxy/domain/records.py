"""What is made anew with every request: dataclasses that type checking holds to be frozen, and running code does not.

A frozen dataclass sets each of its fields through a call, which takes three times as long to make one; and a request
makes some twenty of them. Whatever is made less often is an ordinary frozen dataclass.
"""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(made: type[T]) -> type[T]:
    """Make a slotted dataclass that nobody may change."""
    return dataclass(slots=True, unsafe_hash=True)(made)
