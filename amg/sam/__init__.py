"""The model: Segment Anything as users of SAM know it, and what makes it fast."""
