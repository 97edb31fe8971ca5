"""The arithmetic between mask logits and run lengths."""
