"""What W&B leaves on the disk."""

from pathlib import Path


def records(file: Path) -> bytes:
    """What W&B has logged, without the LevelDB framing: blocks of 32 KiB, records behind 7 bytes (length at 4)."""
    data, place, found = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        length = int.from_bytes(data[place + 4 : place + 6], "little")
        if left < 7 or data[place + 6] == 0:  # a block's padding
            place += left
            continue
        found += data[place + 7 : place + 7 + length]
        place += 7 + length
    return found
