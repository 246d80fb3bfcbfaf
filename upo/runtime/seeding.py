"""Randomness by place: what is drawn depends on where a run is, never on what was drawn before."""


def seed_at(seed: int, place: int, part: int = 0, *, places: int = 1_000_003) -> int:
    """The seed of a generator for one place of a run: places * seed + place + 7_919 * part.

    A run that is resumed, cut into other micro-batches or spread over other ranks draws the same there. Where `part` is
    0 and `place` is below `places`, no two pairs of seed and place share a number.

    Args:
        seed: of the run, or of the option that draws.
        place: number of the epoch, optimizer step or round, from 0.
        part: number of what is drawn apart within the place, e.g. the stage of a curriculum.
        places: more than there will be.
    """
    return places * seed + place + 7_919 * part
