"""
Patches of one size, no two alike: an update that changes nothing is not committed.
"""

from itertools import count

from everbus.bus.messages import pack

NUMBERS = count(1)
WIDTH = 8
MARK = "#" * WIDTH

Fields = dict[str, str]
Patch = dict[str, Fields]


def another(fields: Fields) -> Fields:
    """
    *fields* with a number at the start of the last text that no other call gives.
    """
    return _stamped(fields, f"{next(NUMBERS):0{WIDTH}d}")


def another_of(patch: Patch) -> Patch:
    """
    *patch* with another number in each of its fields.
    """
    return {name: another(fields) for name, fields in patch.items()}


class UpdateBodies:
    """
    The packed bodies of updates with *patch*, each with another number.
    """

    def __init__(self, patch: Patch) -> None:
        marked = {name: _stamped(fields, MARK) for name, fields in patch.items()}
        self._template = pack({"patch": marked})

    def another(self) -> bytes:
        """
        The body of one more update.
        """
        number = f"{next(NUMBERS):0{WIDTH}d}"

        return self._template.replace(MARK.encode(), number.encode())


def _stamped(fields: Fields, stamp: str) -> Fields:
    last = list(fields)[-1]

    return fields | {last: stamp + fields[last][len(stamp) :]}
