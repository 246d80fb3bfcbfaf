"""Judges that read two responses side by side. A reward (`upo.rewards`) judges too: by the higher value."""

from upo.judges.base import Judge, Verdict
from upo.judges.chat import ChatJudge

__all__ = ["ChatJudge", "Judge", "Verdict"]
